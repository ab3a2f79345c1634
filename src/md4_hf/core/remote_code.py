# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Copying of this folder's code beside weights, so that they open where this package is not installed."""

import os
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files


def copy_code(module_file: str | os.PathLike, folder: str | os.PathLike):
    """Copy a file of this folder, and all files that it imports from here, into a saved folder."""
    for path in (module_file, *get_relative_import_files(module_file)):
        shutil.copyfile(path, Path(folder, Path(path).name))
