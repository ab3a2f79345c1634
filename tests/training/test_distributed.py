# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Equal numbers on two processes and on one: DDP, FSDP2 and DeepSpeed's ZeRO, at once, in micro-batches, resumed."""

import functools
import os
import re
import shutil
import sys

import pytest
import torch
from distributed_runs import BACKBONES, BLOCKS, FOLDER_OF_BACKBONES, run, save_backbones
from launching import HERE, TORCHRUN, succeed
from safetensors.torch import load_file

from md4_hf import load_model
from md4_hf.cli import main
from md4_hf.hub.adapters import BASE_RECORD


TOLERANCE = 1e-5
OBJECTIVES = ["md4", "genmd4", "lora", "blocks"]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """`single(objective)`: the folder of the training in one process, 1 x 8."""

    @functools.cache
    def train(objective):
        folder = tmp_path_factory.mktemp(objective)
        run(folder, objective)
        return folder

    return train


@pytest.fixture(scope="module")
def extensions(tmp_path_factory):
    """Folder in which DeepSpeed compiles: a build that was killed locks a folder that other runs share."""
    return str(tmp_path_factory.mktemp("extensions"))


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Backbones where the runs of this file look for them."""
    save_backbones(tmp_path_factory.mktemp("backbones"))
    yield
    del os.environ[FOLDER_OF_BACKBONES]


def weights(folder):
    (path,) = (folder / "model").glob("*.safetensors")
    return load_file(path)


def assert_same_run(folder, expected, steps):
    """Compare the losses of the last steps, the evaluation and the averaged weights."""
    result, reference = (torch.load(place / "result.pt") for place in (folder, expected))
    assert [entry["step"] for entry in result["logs"]][-steps:] == list(range(7 - steps, 7))
    for name in {"loss", "nelbo", "grad_norm", "epoch"} & set(reference["logs"][0]):
        values, wanted = ([entry[name] for entry in logs["logs"][-steps:]] for logs in (result, reference))
        assert values == pytest.approx(wanted, abs=TOLERANCE, rel=TOLERANCE), name
    assert result["metrics"]["eval_num_tokens"] == reference["metrics"]["eval_num_tokens"] == 21 * 8
    for name in ("eval_loss", "eval_loss_stderr"):
        assert result["metrics"][name] == pytest.approx(reference["metrics"][name], rel=1e-6), name
    torch.testing.assert_close(weights(folder), weights(expected), atol=TOLERANCE, rtol=0)
    assert_same_repository(folder / "repository", expected / "repository")


def assert_same_repository(folder, expected):
    """Compare file names, the base of an adapter, and the number of parameters, which a rank alone does not know."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}
    cards = [re.search(r"Parameters.*", (place / "README.md").read_text()).group() for place in (folder, expected)]
    assert cards[0] == cards[1]
    if (expected / BASE_RECORD).exists():
        assert (folder / BASE_RECORD).read_text() == (expected / BASE_RECORD).read_text()


def launch_runs(folder, kind, objectives, **options):
    launcher = [sys.executable] if kind == "ddp" else TORCHRUN
    output = succeed([*launcher, HERE / "distributed_runs.py", folder, kind, *objectives], **options)
    assert "find_unused_parameters" not in output and "returned a view" not in output, output


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (1, 8)])
@pytest.mark.parametrize("objective", [*OBJECTIVES, "blocks-lora", *BLOCKS])
@pytest.mark.usefixtures("backbones")
def test_accumulation_changes_nothing(tmp_path, single, objective, batch, accumulation):
    run(tmp_path, objective, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert_same_run(tmp_path, single(objective), steps=6)


@pytest.mark.parametrize(
    ("kind", "objectives"),
    [
        ("ddp", OBJECTIVES),
        ("fsdp2-sharded", ["genmd4"]),
        pytest.param("fsdp2-sharded", ["md4", "lora", "blocks"], marks=pytest.mark.slow),
        *(pytest.param(kind, OBJECTIVES, marks=pytest.mark.slow) for kind in ("fsdp2", "zero1", "zero2", "zero3")),
    ],
)
def test_two_processes_train_as_one(tmp_path, single, extensions, kind, objectives):
    assert_as_one(tmp_path, single, extensions, kind, objectives)


def assert_as_one(tmp_path, single, extensions, kind, objectives):
    """Compare runs of two processes with those of one: at once, in micro-batches, and resumed."""
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs the extra `deepspeed`, and a C++ compiler")
    launch_runs(tmp_path, kind, objectives, timeout=900, TORCH_EXTENSIONS_DIR=extensions)
    for objective in objectives:
        expected = single(objective)
        for name, steps in (("whole", 6), ("parts", 6), ("resumed", 2)):
            assert_same_run(tmp_path / objective / name, expected, steps)
            drawn = tmp_path / objective / name / "run" / "samples.md"  # not from shards
            assert drawn.exists() == (kind == "ddp") and (expected / "run" / "samples.md").exists()
            if kind not in ("ddp", "fsdp2") and "lora" not in objective:
                assert_shards_export(tmp_path / objective / "whole", expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2-sharded", "fsdp2", "zero2", "zero3"])
@pytest.mark.usefixtures("backbones")
def test_two_processes_train_a_backbone_as_one(tmp_path, single, extensions, kind):
    """Backbones of transformers, causal with tied weights, masked, and below an adapter."""
    assert_as_one(tmp_path, single, extensions, kind, [*BACKBONES])
    for objective in BACKBONES:
        if not objective.endswith("lora"):
            repository = tmp_path / objective / "whole" / "repository"
            opened = load_model(str(repository)).state_dict()
            saved = weights(tmp_path / objective / "whole")
            assert all(torch.equal(opened[name], weight) for name, weight in saved.items())


@pytest.mark.slow
def test_fsdp2_computes_in_bf16_as_one_process_does(tmp_path):
    """Times, noise and the loss stay in float32; accelerate's own policy would round them, and cannot run at all."""
    launch_runs(tmp_path, "fsdp2-bf16", ["md4", "genmd4"])
    for objective in ("md4", "genmd4"):
        run(tmp_path / "single" / objective, objective, bf16=True)
        results = [
            torch.load(tmp_path / f"{place}/result.pt") for place in (f"{objective}/whole", f"single/{objective}")
        ]
        values, wanted = ([entry["loss"] for entry in result["logs"]] for result in results)
        assert values == pytest.approx(wanted, rel=1e-2)


def assert_shards_export(folder, expected):
    """`md4 export` makes one folder of a checkpoint's shards, with the weights as one process has them there."""
    checkpoint, exported = folder / "run" / "checkpoint-4", folder / "exported"
    if not list(checkpoint.glob("*.safetensors")):
        with pytest.raises(ValueError, match="`model` must be whole, got the shards of a checkpoint"):
            load_model(str(checkpoint))
    main(["export", str(checkpoint), str(exported)])
    wanted = load_file(expected / "run" / "checkpoint-4" / "model.safetensors")
    torch.testing.assert_close(load_file(exported / "model.safetensors"), wanted, atol=TOLERANCE, rtol=0)
    shutil.rmtree(exported)


@pytest.mark.parametrize("on_nonfinite", [pytest.param("stop", marks=pytest.mark.slow), "skip"])
def test_processes_agree_on_a_step_that_is_not_finite_on_one(tmp_path, on_nonfinite):
    succeed([*TORCHRUN, HERE / "finite_ranks.py", tmp_path, on_nonfinite])
    results = [torch.load(tmp_path / f"result-{rank}.pt") for rank in (0, 1)]
    checkpoints = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    norms, logged = results[0]["norms"], results[0]["logged norms"]
    assert {1, 2} <= logged.keys() and logged == pytest.approx({step: norms[step] for step in logged})
    if on_nonfinite == "stop":
        assert all("the loss or gradient of step 3 is not finite" in result["error"] for result in results)
        assert checkpoints == ["checkpoint-2"]
    else:
        assert [(result["error"], result["left_out"]) for result in results] == [("", 1)] * 2
        torch.testing.assert_close(results[0]["weights"], results[1]["weights"], atol=0, rtol=0)
        assert all(weight.isfinite().all() for weight in results[0]["weights"]) and checkpoints[-1] == "checkpoint-6"
