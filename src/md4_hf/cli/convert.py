# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..hub.convert_md4 import convert_checkpoint


def convert(arguments: argparse.Namespace):
    """Write the model and the scheduler of an official checkpoint to a new folder."""
    convert_checkpoint(Path(arguments.checkpoint), Path(arguments.config), Path(arguments.output_dir))
    print(f"Wrote {arguments.output_dir}")
