# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training on the MD4 ELBO: the trainer, its arguments, checkpoints, streams and presets."""
