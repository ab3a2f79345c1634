# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Block diffusion: the bound against the size of a block, long texts, seconds per token with and without the cache.

python benchmarks/blocks.py --data pydoc my.txt --output benchmarks/results/blocks.md

Every training and set of texts is kept in the work folder: an interrupted benchmark resumes where it was. `--parts`
chooses; a part that is not run keeps its figures from the last run in the report.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from block_parts import PARTS
from measuring import machine, publish

from md4_hf.utils.files import write_whole


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=[*PARTS])
    parser.add_argument(
        "--data", nargs="+", default=["pydoc"], help="Texts, in any of the forms of `md4 train --data`."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=300, help="Steps of each model.")
    parser.add_argument("--draws", type=int, default=4, help="Draws of a bound.")
    parser.add_argument("--judge_steps", type=int, default=400, help="Steps of the judge of texts.")
    parser.add_argument("--num_samples", type=int, default=16, help="Texts of each model and seed.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="Of timed texts.")
    parser.add_argument("--batch", type=int, default=8, help="Texts at a time, in the last timing.")
    parser.add_argument("--repeats", type=int, default=2, help="Timed turns, after one to warm up.")
    parser.add_argument("--threads", type=int, help="Threads of the processor; with 1, processor time is measured.")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/blocks"))
    parser.add_argument("--output", help="Markdown file to write, with plots beside it; printed if left out.")
    return parser.parse_args(argv)


def measured(part: str, args: argparse.Namespace, argv: list[str]) -> dict[str, Any] | None:
    """Figures of a part with command and machine: measured, or those of the last run; None if there are none."""
    file = args.work_dir / f"{part}.json"
    if part in args.parts:
        figures = PARTS[part].measure(args)
        args.work_dir.mkdir(parents=True, exist_ok=True)
        facts = {
            "machine": machine(),
            "command": f"python benchmarks/blocks.py {shlex.join(argv)}",
            "figures": figures,
        }
        write_whole(file, json.dumps(facts, indent=2) + "\n")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def report(args: argparse.Namespace, argv: list[str]) -> str:
    """Measure the parts that are asked for, and write up all that there are."""
    picture = None if args.output is None else Path(args.output).with_suffix("")
    lines = ["# Block diffusion", ""]
    for name, part in PARTS.items():
        found = measured(name, args, argv)
        if found is not None:
            lines += part.section(found["figures"], picture)
            lines += ["", found["machine"], "", "```bash", found["command"], "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    arguments = parse_arguments(sys.argv[1:])
    publish(report(arguments, sys.argv[1:]), arguments.output)
