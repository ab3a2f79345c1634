# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Conditions of all tests (no network, caches of their own, one thread, a fixed seed) and fixtures shared by them."""

import atexit
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path


# The libraries read these once, when they are imported: this has to come first, and subprocesses inherit it.
CACHE = Path(tempfile.mkdtemp(prefix="md4_hf-tests-"))
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ.update(
    HF_HOME=str(CACHE / "hf"),
    HF_HUB_CACHE=str(CACHE / "hf" / "hub"),
    HF_DATASETS_CACHE=str(CACHE / "hf" / "datasets"),
    HF_MODULES_CACHE=str(CACHE / "hf" / "modules"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    MPLBACKEND="Agg",
    MPLCONFIGDIR=str(CACHE / "matplotlib"),
    TOKENIZERS_PARALLELISM="false",
    # Tests compare bits with those of other processes, and the bits of a product depend on the number of threads. Also,
    # the models are tiny: on busy cores, more threads only wait for each other.
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)
# A shell has what it starts in the background ignore Ctrl-C, and tests raise it, here and in subprocesses.
signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_CACHE"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


GOLDEN = Path(__file__).parent / "golden"


# Files of whole runs, the longest first: a process that begins one of them last would be waited for.
LONG_FILES = ("test_docs.py", "test_distributed.py", "test_trainer.py", "test_cli.py", "test_model_contracts.py")


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def seed():
    """Start every test from the same state of the global generators, in whatever order the tests run."""
    torch.manual_seed(0)
    np.random.seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision("highest")  # the preset "tiny" lowers it for its process


@pytest.fixture(scope="session")
def golden():
    """`golden(name)` gives a recorded case: its tensors by name, and the json record (config, tolerance, ...).

    A record without a safetensors file comes with an empty dictionary.
    """

    def load(name: str) -> tuple[dict[str, torch.Tensor], dict]:
        record = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        tensors = GOLDEN / f"{name}.safetensors"
        return (load_file(tensors) if tensors.exists() else {}), record

    return load


@pytest.fixture(scope="module")
def hub():
    """A Hub on this machine for the tests of one file: see `hub_server.py`."""
    from hub_server import HubServer

    with HubServer() as server:
        yield server


@pytest.fixture
def figures(monkeypatch):
    """Figures of matplotlib that the test writes, in their order."""
    from matplotlib.figure import Figure

    written, savefig = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        written.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return written
