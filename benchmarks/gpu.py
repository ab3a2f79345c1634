# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Check and measure on a GPU whatever needs one, within minutes: right, no waits, speed, samples, learning, a profile.

python benchmarks/gpu.py --output runs/gpu

Every row is in `gpu.json` as soon as it is measured, and a table is printed last. See `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from pathlib import Path

from gpu_parts import PARTS
from gpu_parts.part import Options
from gpu_parts.report import Report
from gpu_parts.running import run_parts


BEGAN = time.time()
NAMES = [part.name for part in PARTS]


def parse_arguments() -> argparse.Namespace:
    """Options of the command line; wrong ones end the program before anything runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="Time for all parts.")
    parser.add_argument("--parts", nargs="+", default=NAMES, choices=NAMES, help="Parts to run, in their own order.")
    parser.add_argument("--device", default="cuda", help='Device to measure; "cpu" to try the script out.')
    parser.add_argument("--tiny", action="store_true", help="Small networks and few repeats, to try the script out.")
    parser.add_argument("--corpus", type=Path, help="Text to learn from, as benchmarks/gpu_corpus.py writes it.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="Folder for gpu.json and pictures.")
    args = parser.parse_args()
    if not 0.0 < args.minutes < math.inf:
        parser.error(f"`minutes` must be > 0 and finite, got {args.minutes}.")
    if args.corpus is not None and not args.corpus.is_file():
        parser.error(f"`corpus` must be a file, got {args.corpus}.")
    return args


def header(args: argparse.Namespace) -> dict[str, object]:
    """Machine, versions and options of a run."""
    from measuring import machine, versions

    return {
        "machine": machine(args.device),
        "versions": versions(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "began": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def main():
    """Run the parts and print what they found."""
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what was measured is on disk, and is printed
    report = Report(args.output / "gpu.json", header(args))
    options = Options(args.device, args.output, args.tiny, args.corpus, args.seed)
    try:
        run_parts([part for part in PARTS if part.name in args.parts], options, report, BEGAN + 60.0 * args.minutes)
    finally:
        print(report.table())
        print(json.dumps({"results": str(report.path)}))


if __name__ == "__main__":
    main()
