# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Portable code: these files are copied beside saved weights, so they import each other only as `from .x import y`."""
