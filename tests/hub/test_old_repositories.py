# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Repositories saved by version 0.1.0 open: with the package, without it, and with both codes in one process.

`repository_0_1_0.zip` holds a pipeline that version 0.1.0 saved with `save_pretrained(folder, remote_code=True)`: two
layers of width 32 with random weights, and a byte tokenizer. `expected.safetensors` in it has `input_ids`, `timesteps`
and the `logits` that this version computed for them.
"""

import inspect
import re
import zipfile
from pathlib import Path

import pytest
import torch
from clean_environment import CORE, link_packages, run_isolated
from diffusers import DiffusionPipeline
from launching import run_python
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.utils import hub as transformers_hub

from md4_hf import MaskedDiffusionPipeline, MD4ForMaskedDiffusion


runs_their_code = pytest.mark.skipif(
    not hasattr(transformers_hub, "resolve_revision"), reason="the code of version 0.1.0 needs transformers 5.18"
)


@pytest.fixture
def repository(tmp_path):
    with zipfile.ZipFile(Path(__file__).with_name("repository_0_1_0.zip")) as archive:
        archive.extractall(tmp_path / "repository")
    return tmp_path / "repository"


def assert_recorded_logits(model, repository):
    """Logits of up to 5 in float32: AVX-512 and SSE differ by 4e-6, hence the tolerance."""
    recorded = load_file(f"{repository}/expected.safetensors")
    expected = recorded.pop("logits")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**recorded).logits, expected, atol=2e-5, rtol=1e-5)


def sample(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_samples": 2, "num_inference_steps": 8, "generator": torch.Generator().manual_seed(0)}
    return pipeline(**options).sequences.tolist()


def training_loss(model, repository):
    """The loss of fixed times and masks, after a backward pass: the operator `md4_hf::linear_nelbo` runs."""
    ids = load_file(f"{repository}/expected.safetensors")["input_ids"].clamp(max=model.config.mask_token_id - 1)
    noise = torch.linspace(0, 1, ids.numel()).view(ids.shape)
    loss = model.train()(ids, labels=ids, timesteps=torch.tensor([0.4, 0.6]), mask_noise=noise).loss
    loss.backward()
    return loss.item()


HELPERS = "import torch\nfrom safetensors.torch import load_file\n\n" + "\n\n".join(
    map(inspect.getsource, (assert_recorded_logits, sample, training_loss))
)


def assert_current_code(folder):
    """A folder holds the code of this version, and all that its files import."""
    names = {path.name for path in folder.glob("*.py")}
    assert "modeling_md4.py" in names
    for name in names:
        source = (folder / name).read_text(encoding="utf-8")
        assert source == (CORE / name).read_text(encoding="utf-8"), name
        assert {f"{module}.py" for module in re.findall(r"^from \.(\w+) import", source, re.M)} <= names, name


@pytest.mark.parametrize("trust", [None, True])
def test_the_package_opens_them_with_its_own_classes(repository, trust):
    model = AutoModel.from_pretrained(repository, trust_remote_code=trust)
    assert type(model) is MD4ForMaskedDiffusion
    assert_recorded_logits(model, repository)


def test_a_pipeline_saved_again_carries_the_current_code(repository, tmp_path):
    pipeline = MaskedDiffusionPipeline.from_pretrained(repository)
    assert type(pipeline.model) is MD4ForMaskedDiffusion
    assert_recorded_logits(pipeline.model, repository)
    pipeline.model.save_pretrained(tmp_path / "model")
    pipeline.save_pretrained(tmp_path / "pipeline", remote_code=True)
    for folder in (tmp_path / "model", tmp_path / "pipeline"):
        assert_current_code(folder)
    assert sample(DiffusionPipeline.from_pretrained(tmp_path / "pipeline", trust_remote_code=True)) == sample(pipeline)


@runs_their_code
def test_without_the_package_they_open_by_the_code_that_they_carry(repository, tmp_path):
    expected = sample(MaskedDiffusionPipeline.from_pretrained(repository))
    code = f"""import importlib.util
assert importlib.util.find_spec("md4_hf") is None
from diffusers import DiffusionPipeline
from transformers import AutoModel
{HELPERS}
repository = {str(repository)!r}
assert_recorded_logits(AutoModel.from_pretrained(repository, trust_remote_code=True), repository)
pipeline = DiffusionPipeline.from_pretrained(repository, trust_remote_code=True)
assert_recorded_logits(pipeline.model, repository)
assert sample(pipeline) == {expected!r}
"""
    run_isolated(link_packages(tmp_path / "site", "torch", "transformers", "diffusers"), code, tmp_path / "home")


@runs_their_code
@pytest.mark.parametrize("order", [("package", "repository"), ("repository", "package")], ids="-then-".join)
def test_the_package_and_their_code_work_in_one_process(repository, order):
    """Both have the operator `md4_hf::linear_nelbo`, which a process registers once."""
    expected = sample(MaskedDiffusionPipeline.from_pretrained(repository))
    code = f"""{HELPERS}
registered, register = [], torch.library.custom_op

def register_and_record(name, *args, **kwargs):
    registered.append(name)
    return register(name, *args, **kwargs)

torch.library.custom_op = register_and_record
from diffusers import DiffusionPipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module
repository = {str(repository)!r}

def package_class():
    import md4_hf
    return md4_hf.MD4ForMaskedDiffusion

def repository_class():
    return get_class_from_dynamic_module("modeling_md4.MD4ForMaskedDiffusion", repository)

models = [model_class().from_pretrained(repository) for model_class in ({order[0]}_class, {order[1]}_class)]
assert {{type(model).__module__.split(".")[0] for model in models}} == {{"md4_hf", "transformers_modules"}}
for model in models:
    assert_recorded_logits(model, repository)
losses = [training_loss(model, repository) for model in models]
assert abs(losses[0] - losses[1]) < 1e-5 * losses[0], losses
assert registered.count("md4_hf::linear_nelbo") == 1, registered
pipeline = DiffusionPipeline.from_pretrained(repository, trust_remote_code=True)
assert type(pipeline).__module__.startswith("diffusers_modules")
assert sample(pipeline) == {expected!r}
"""
    run_python("-c", code)
