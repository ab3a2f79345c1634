# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 harness`."""

from __future__ import annotations

import argparse
import sys

from ..evaluation import harness as _registered  # noqa: F401  (its import adds the model type "md4_hf")


def harness(rest: argparse.Namespace):
    """Run the command of the lm-evaluation-harness, which reads `sys.argv`."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv[1:] = rest.arguments
    cli_evaluate()
