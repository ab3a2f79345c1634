# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The portable room: files that are copied beside weights, and so import each other as `from .x import y` only."""
