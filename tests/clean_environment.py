# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Python processes that see a few libraries and what those need, and nothing else, not even this package."""

import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

from launching import run_python
from packaging.requirements import Requirement

import md4_hf


CORE = Path(md4_hf.__file__).parent / "core"
# Files that a saved pipeline carries, and a saved model.
BASELINES = (
    *("modeling_md4_causal", "modeling_md4_discrete", "discrete_kernels", "discrete_processes"),
    *("baseline_decoding", "causal_decoding", "discrete_decoding", "pipeline_baselines"),
)  # open with the package only
PIPELINE_CODE = {path.name for path in CORE.glob("*.py") if path.stem not in ("__init__", *BASELINES)}
# A model carries its samplers, for `generate`, but not the pipeline around them.
OF_PIPELINES = ("pipeline_masked_diffusion", "remote_pipeline", "image_", "chat_")
MODEL_CODE = {name for name in PIPELINE_CODE if not name.startswith(OF_PIPELINES)}


def distributions(*names: str) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions of these names and, without extras, of all that they require."""
    waiting, found = list(names), {}
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform or Python
            continue
        requirements = map(Requirement, found[name].requires or [])
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def link_packages(folder: Path, *names: str) -> Path:
    """Make a folder of links to the packages of `distributions(*names)`, to stand in `sys.path` for site-packages."""
    folder.mkdir()
    for distribution in distributions(*names).values():
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(distribution.locate_file(top))
            if source.exists() and not (folder / top).exists():
                (folder / top).symlink_to(source)
    return folder


def run_isolated(packages: Path, code: str, home: Path) -> str:
    """Run code with the standard library and these packages, and caches of its own; its output."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules")}
    start = f"import sys; sys.path.append({str(packages)!r})\n"
    options = {"env": environment, "cwd": home.parent, "stdin": subprocess.DEVNULL}
    return run_python("-I", "-S", "-c", start + code, **options)
