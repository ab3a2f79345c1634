# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Published evaluations, their reports, and measures of samples."""
