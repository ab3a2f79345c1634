# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Saved folders open in processes that have only transformers and torch (or diffusers too), and without being asked."""

import inspect
import json

import pytest
import torch
from clean_environment import MODEL_CODE, PIPELINE_CODE, link_packages, run_isolated
from launching import run_python
from tiny import quiet, random_image_model, random_model
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig

from md4_hf import (
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4Config,
    MD4ForMaskedDiffusion,
    MD4ImageProcessor,
    MD4Model,
    build_text8_tokenizer,
)


def answer(model):
    ids = torch.randint(28, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids, timesteps=torch.tensor([0.3, 0.8]))


def answer_image(model):
    ids = torch.randint(5, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids, timesteps=torch.tensor([0.3, 0.8]))


def make_image_model(backbone):
    transformer = {"dit_hidden_size": 16, "dit_num_hidden_layers": 1, "dit_num_attention_heads": 2}
    return random_image_model(4, 4, 3, hidden_size=32, backbone=backbone, **transformer)


def make_pipeline(**kwargs):
    scheduler = MaskedDiffusionScheduler(num_inference_steps=6, top_p=0.9)
    return quiet(MaskedDiffusionPipeline(random_model(28, 16, std=0.3, **kwargs), scheduler, build_text8_tokenizer()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved models with and without time, the bare model, a pipeline with its code, and the outputs of this process."""
    root = tmp_path_factory.mktemp("remote")
    for name, kwargs in (("timed", {}), ("timeless", {"time_conditioning": False})):
        make_pipeline(**kwargs).save_pretrained(root / name)
        model = AutoModel.from_pretrained(root / name)
        torch.save(answer(model).logits, root / f"{name}.pt")
        torch.save(model.generate([[1, 2]], max_new_tokens=9, seed=0), root / f"{name}_text.pt")
    AutoModel.from_pretrained(root / "timed").model.save_pretrained(root / "bare")
    for backbone in ("unet", "uvit"):
        model = make_image_model(backbone)
        model.save_pretrained(root / backbone)
        torch.save(answer_image(model).logits, root / f"{backbone}.pt")
    make_pipeline().save_pretrained(root / "exported", remote_code=True)
    return root


def files(folder, suffix=".py"):
    return {path.name for path in folder.iterdir() if path.suffix == suffix}


def test_a_saved_model_carries_its_code_and_says_where_it_is(folders):
    assert files(folders / "timed") == MODEL_CODE
    config, model = {"AutoConfig": "configuration_md4.MD4Config"}, "modeling_md4.MD4ForMaskedDiffusion"
    expected = {
        "timed": {**config, "AutoModel": model, "AutoModelForMaskedLM": model},
        "bare": {**config, "AutoModel": "modeling_md4.MD4Model"},
    }
    for name, auto_map in expected.items():
        assert json.loads((folders / name / "config.json").read_text())["auto_map"] == auto_map


def test_with_the_package_nothing_is_asked_and_its_own_classes_are_used(folders):
    for trust in (None, True):
        assert type(AutoConfig.from_pretrained(folders / "timed", trust_remote_code=trust)) is MD4Config
        for loader in (AutoModel, AutoModelForMaskedLM):
            assert type(loader.from_pretrained(folders / "timed", trust_remote_code=trust)) is MD4ForMaskedDiffusion
    assert type(AutoModel.from_pretrained(folders / "bare")) is MD4Model
    assert AutoTokenizer.from_pretrained(folders / "timed").mask_token_id == 27


def test_without_the_package_the_auto_classes_give_identical_logits(folders, tmp_path):
    code = f"""import importlib.util, torch
{inspect.getsource(answer)}
{inspect.getsource(answer_image)}
assert not any(importlib.util.find_spec(name) for name in ("md4_hf", "diffusers", "datasets", "accelerate", "peft"))
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer
root = {str(folders)!r}
for name in ("timed", "timeless"):
    for loader in (AutoModel, AutoModelForMaskedLM):
        model = loader.from_pretrained(f"{{root}}/{{name}}", trust_remote_code=True)
        assert torch.equal(answer(model).logits, torch.load(f"{{root}}/{{name}}.pt")), name
        text = model.generate(torch.tensor([[1, 2]]), max_new_tokens=9, seed=0)
        assert torch.equal(text, torch.load(f"{{root}}/{{name}}_text.pt")), "by the scheduler of the folder"
    tokenizer = AutoTokenizer.from_pretrained(f"{{root}}/{{name}}", trust_remote_code=True)
    assert tokenizer.mask_token_id == 27
for backbone in ("unet", "uvit"):
    image_model = AutoModel.from_pretrained(f"{{root}}/{{backbone}}", trust_remote_code=True)
    assert torch.equal(answer_image(image_model).logits, torch.load(f"{{root}}/{{backbone}}.pt")), backbone
labels = torch.zeros(2, 16, dtype=torch.long)
assert model.train()(labels, labels=labels).loss.requires_grad
model.save_pretrained("again")
again = AutoModel.from_pretrained("again", trust_remote_code=True)
assert torch.equal(answer(again).logits, answer(model).logits)
assert type(AutoModel.from_pretrained(f"{{root}}/bare", trust_remote_code=True)).__name__ == "MD4Model"
try:
    AutoModel.from_pretrained(f"{{root}}/timed")
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise AssertionError("code ran without consent")
print("done")
"""
    packages = link_packages(tmp_path / "site", "torch", "transformers")
    assert "done" in run_isolated(packages, code, tmp_path / "home")
    assert files(tmp_path / "again") == MODEL_CODE, "a model opened by its code carries it on"


def test_an_exported_pipeline_is_flat_and_carries_all_its_code(folders):
    assert files(folders / "exported") == PIPELINE_CODE
    assert not [path for path in (folders / "exported").iterdir() if path.is_dir()]
    index = (folders / "exported/model_index.json").read_text()
    assert "_name_or_path" not in index, "no path of this machine"


def test_without_the_package_diffusers_opens_an_exported_pipeline(folders, tmp_path):
    expected = quiet(MaskedDiffusionPipeline.from_pretrained(folders / "exported"))
    expected = expected(num_samples=2, generator=torch.Generator().manual_seed(0)).texts
    code = f"""
import importlib.util, torch
assert not any(importlib.util.find_spec(name) for name in ("md4_hf", "datasets", "accelerate", "peft"))
from diffusers import DiffusionPipeline
def texts(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.top_p == 0.9
    return pipe, pipe(num_samples=2, generator=torch.Generator().manual_seed(0)).texts
pipe, found = texts({str(folders / "exported")!r})
assert found == {expected!r}, found
assert pipe.to(torch.float64).dtype == torch.float64
pipe.to(torch.float32).save_pretrained("again")
assert texts("again")[1] == found
try:
    DiffusionPipeline.from_pretrained("again")
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise AssertionError("code ran without consent")
print("done")
"""
    packages = link_packages(tmp_path / "site", "torch", "transformers", "diffusers")
    assert "done" in run_isolated(packages, code, tmp_path / "home")
    assert files(tmp_path / "again") == PIPELINE_CODE


@pytest.mark.parametrize(
    "statement",
    [
        "import md4_hf; from diffusers import DiffusionPipeline",
        pytest.param("from diffusers import DiffusionPipeline; import md4_hf", marks=pytest.mark.slow),
        pytest.param(
            "import md4_hf.core.scheduling_masked_diffusion; from diffusers import DiffusionPipeline",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_importing_the_package_is_enough_for_diffusers(statement, folders):
    """In any order of the imports, and through any module of the package."""
    code = f"""{statement}
pipe = DiffusionPipeline.from_pretrained({str(folders / "timed")!r})
print(type(pipe).__module__, type(pipe.model).__module__, type(pipe.scheduler).__module__)"""
    names = ["pipeline_masked_diffusion", "modeling_md4", "scheduling_masked_diffusion"]
    assert run_python("-c", code).split() == [f"md4_hf.core.{name}" for name in names]


def test_importing_the_package_imports_no_library():
    code = "import sys; before = {*sys.modules}; import md4_hf; "
    code += "print(sorted(n for n in {*sys.modules} - before if n.split('.')[0] not in sys.stdlib_module_names))"
    assert run_python("-c", code).strip() == "['md4_hf', 'md4_hf.hub', 'md4_hf.hub.registration']"


@pytest.mark.parametrize(
    "first",
    [
        "import md4_hf",
        *(
            pytest.param(statement, marks=pytest.mark.slow)
            for statement in (
                "import transformers.models.auto.modeling_auto",
                "import md4_hf.core.modeling_md4",
                "import md4_hf, importlib.util; importlib.util.find_spec(AUTO)",
            )
        ),
    ],
)
def test_the_auto_classes_know_the_package_whatever_is_imported_first(first, folders):
    code = f"""AUTO = "transformers.models.auto.modeling_auto"
{first}; import md4_hf; from transformers import AutoConfig, AutoModel
print(AutoConfig.from_pretrained({str(folders / "timed")!r}).__class__.__module__)
print(AutoModel.from_pretrained({str(folders / "timed")!r}).__class__.__module__)"""
    assert run_python("-c", code).split() == ["md4_hf.core.configuration_md4", "md4_hf.core.modeling_md4"]


@pytest.mark.parametrize(
    "cases",
    [
        [
            ("AutoModel", {}, "modeling_md4.MD4ForMaskedDiffusion"),
            ("AutoModel", {"architectures": ["MD4Model"]}, "modeling_md4.MD4Model"),
            ("AutoModelForMaskedLM", {}, "modeling_md4.MD4ForMaskedDiffusion"),
        ],
        [("AutoModelForCausalLM", {"is_causal": True}, "modeling_md4_causal.MD4ForCausalLM")],
    ],
    ids=["masked", "causal"],
)
def test_auto_classes_import_the_network_that_they_open(cases):
    code = f"""
import pickle, sys, md4_hf, transformers
assert not [name for name in sys.modules if name.startswith("md4_hf.core.modeling")]
for auto_class, settings, expected in {cases}:
    config = md4_hf.MD4Config(vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, **settings)
    auto_class = getattr(transformers, auto_class)
    mapping = pickle.loads(pickle.dumps(auto_class._model_mapping))
    model_class = type(auto_class.from_config(config))
    assert model_class in mapping[type(config)] and len(mapping[type(config)]) == len([*mapping[type(config)]])
    assert f"{{model_class.__module__}}.{{model_class.__name__}}" == f"md4_hf.core.{{expected}}"
"""
    run_python("-c", code)


@pytest.mark.parametrize("imports", [("md4_hf", "transformers"), ("transformers", "md4_hf")])
def test_image_processors_are_known_whatever_is_imported_first(imports, tmp_path):
    MD4ImageProcessor(4, 1, 17).save_pretrained(tmp_path)
    loader = "transformers.models.auto.image_processing_auto"  # `transformers` 5.17 has it with torchvision only
    code = f"import {imports[0]}, {imports[1]}; from {loader} import AutoImageProcessor; import md4_hf; "
    code += f"print(type(AutoImageProcessor.from_pretrained({str(tmp_path)!r})).__module__)"
    assert run_python("-c", code).strip() == "md4_hf.core.image_processing_md4"


# Folders that must not be opened --------------------------------------------------------------------------------------


def test_a_folder_without_weights_is_an_error(folders, tmp_path):
    AutoConfig.from_pretrained(folders / "timed").save_pretrained(tmp_path)
    for loader in (AutoModel, MD4ForMaskedDiffusion):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            loader.from_pretrained(tmp_path)


def test_pickled_weights_are_opened_on_request_only(folders, tmp_path):
    model = AutoModel.from_pretrained(folders / "timed")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for loader in (AutoModel, MD4ForMaskedDiffusion):
        with pytest.raises(OSError, match="only with `use_safetensors=False`"):
            loader.from_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path, use_safetensors=False)
    assert torch.equal(opened.lm_head.weight, model.lm_head.weight)


def test_a_configuration_of_another_model_is_an_error(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    for loader in (MD4Config, MD4ForMaskedDiffusion):
        with pytest.raises(ValueError, match="`model_type` must be 'md4' for MD4Config, got 'bert'"):
            loader.from_pretrained(tmp_path)
