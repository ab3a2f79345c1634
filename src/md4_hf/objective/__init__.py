# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""From clean batches to model inputs and bounds: keyed noise, objectives, estimators and figures."""
