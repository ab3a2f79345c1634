# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""From files to examples: documents, packing, tokenizers, pairs, images and collators."""
