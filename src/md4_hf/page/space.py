# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Folder of a Gradio Space that shows a model on the page of `md4 demo`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..utils.files import whole_folder
from ..utils.libraries import LIBRARIES, installed_versions


GRADIO_VERSION = "6.31.0"  # that the page is tested with
PACKAGE = "md4_hf"
MODEL_FOLDER = "model"
COLOR = "indigo"
APP = '''"""Page of a masked diffusion model, written by `md4 export --space`."""

from pathlib import Path

from md4_hf import load_pipeline
from md4_hf.page.blocks import launch, make_page


MODEL = {model}
OPTIONS = {options}  # of `load_pipeline`

demo = make_page(load_pipeline(MODEL, **OPTIONS), title={title})

if __name__ == "__main__":
    launch(demo)
'''


def write_space(
    folder: str | Path,
    title: str,
    model: str | Callable[[Path], Any],
    options: Mapping[str, Any] | None = None,
    package: str | None = None,
    extra_libraries: Sequence[str] = (),
):
    """Write a Space: `app.py`, `requirements.txt`, `README.md` and, unless they come from elsewhere, model and package.

    Args:
        folder: Folder to write, empty or absent; nothing is there until all is.
        title: Heading of the page.
        model: Hub id of the model, or a function that writes it to a folder.
        options: Arguments of `load_pipeline` in the Space.
        package: Requirement that installs this package, such as "md4_hf @ git+https://..."; None puts its source into
            the folder.
        extra_libraries: Libraries that the model needs besides those of the package.
    """
    with whole_folder(folder) as staging:
        staging.mkdir(parents=True)
        place = repr(model) if isinstance(model, str) else f'str(Path(__file__).with_name("{MODEL_FOLDER}"))'
        app = APP.format(model=place, options=dict(options or {}), title=json.dumps(title))
        if isinstance(model, str):
            app = app.replace("from pathlib import Path\n\n", "")
        else:
            model(staging / MODEL_FOLDER)
        if package is None:
            source = Path(__file__).parents[1]
            shutil.copytree(source, staging / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        files = {
            "app.py": app,
            "requirements.txt": "".join(f"{line}\n" for line in requirements(package, extra_libraries)),
            "README.md": readme(title, model if isinstance(model, str) else None),
        }
        for name, text in files.items():
            (staging / name).write_text(text, encoding="utf-8")


def requirements(package: str | None = None, extra_libraries: Sequence[str] = ()) -> list[str]:
    """Lines of a `requirements.txt`: the libraries in the versions installed here, Gradio in the one of the page."""
    found = installed_versions((*LIBRARIES, *extra_libraries))
    pins = [f"{name}=={version.partition('+')[0]}" for name, version in found.items()]
    return [*([] if package is None else [package]), f"gradio=={GRADIO_VERSION}", *pins]


def readme(title: str, model: str | None = None) -> str:
    """Text of the card of a Space, with the entries that the Hub reads."""
    entries = {
        "title": title,
        "colorFrom": COLOR,
        "colorTo": COLOR,
        "sdk": "gradio",
        "sdk_version": GRADIO_VERSION,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        **({} if model is None else {"models": [model]}),
        "tags": ["masked-diffusion", "md4", PACKAGE],
    }
    head = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    where = f"[{model}](https://huggingface.co/{model})" if model else f"in `{MODEL_FOLDER}/`"
    return (
        f"---\n{head}---\n\nA page to try the masked diffusion model {where}: watch how it unmasks.\n\n"
        "On a machine of yours: `pip install -r requirements.txt`, then `python app.py`.\n"
    )
