# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Open and register models: Auto classes, adapters, sharded checkpoints, converters."""
