# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Helpers without knowledge of diffusion: files, errors, options, devices, processes and plots."""
