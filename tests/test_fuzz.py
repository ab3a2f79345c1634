# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Malformed configurations, files and inputs: each works and keeps its promises, or is one of the documented errors.

Such an error names an argument, option or file, and leaves every file as it was. The examples are the same at each run;
`MD4_FUZZ_EXAMPLES=2000 pytest tests/test_fuzz.py` draws new ones, so many for each test.
"""

import contextlib
import hashlib
import inspect
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch
import yaml
from commands import outcome
from datasets import Dataset, disable_progress_bars
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from tiny import random_image_model, random_model

from md4_hf import (
    DataArguments,
    DataCollatorForMaskedDiffusion,
    LoraArguments,
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4Config,
    MD4ForMaskedDiffusion,
    PairArguments,
    TokenPolynomialSchedule,
    add_adapter,
    build_byte_tokenizer,
    build_text8_tokenizer,
    config_from_official,
    distinct_n,
    encode_pairs,
    load_documents,
    load_model,
    load_pipeline,
    load_tokenizer,
    load_train_validation,
    make_schedule,
    pack,
    repetition,
    token_entropy,
)
from md4_hf.cli.arguments import parse_arguments
from md4_hf.cli.train_options import ModelArguments, RunArguments, StartArguments
from md4_hf.core.chat_inputs import ChatInputs
from md4_hf.data.conversations import CHATML
from md4_hf.data.packing import Separator
from md4_hf.evaluation.recipes import PREPARATIONS, TASKS, make_recipe
from md4_hf.evaluation.tasks import make_windows
from md4_hf.hub.adapters import fingerprint, save_base_record
from md4_hf.hub.convert import FAMILIES, convert


EXAMPLES = int(os.environ.get("MD4_FUZZ_EXAMPLES", "0"))
DOCUMENTED = (ValueError, OSError, StrictDataclassError)
LENGTH, VOCAB, MASK = 8, 28, 27


def fuzz(examples, **strategies):
    """`given`, for so many examples, the same at each run and on every machine."""
    options = settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    return lambda test: options(given(**strategies)(test))


# Values ---------------------------------------------------------------------------------------------------------------

INTEGERS = st.integers(-2, 9) | st.sampled_from([10**6, 2**31, 2**63, 10**30, -(2**63)])
FLOATS = st.floats(-0.5, 1.5) | st.floats()
LISTS = st.lists(st.integers(-1, 30) | st.none() | st.text(max_size=2), max_size=3)
# What json can hold, so that the same values serve arguments and files.
ANYTHING = (
    st.none() | st.booleans() | INTEGERS | FLOATS | st.text(max_size=4) | LISTS | st.just({}) | st.just({"a": 1})
)
WORDS = ["linear", "cosine", "poly", "geometric", "uniform", "mean", "adaln", "glu", "sample", "argmax", "", "x"]


def changed(valid, values=ANYTHING):
    """Keyword arguments that are valid, but for up to three that are anything."""
    some = st.dictionaries(st.sampled_from(sorted(valid)), values | st.sampled_from(WORDS), max_size=3)
    return some.map(lambda some: {**valid, **some})


def arguments_of(function, *left_out, **values):
    """The arguments of a function by name, with these values or their defaults."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "self"}
    return {name: value for name, value in {**defaults, **values}.items() if name not in left_out}


def documented(function, *args, names, **kwargs):
    """Result of the call; None if it fails as documented, with an error of ours that names one of the arguments."""
    try:
        return function(*args, **kwargs)
    except DOCUMENTED as error:
        said = str(error)
    assert any(name in said for name in names), said
    return None


def contents(folder):
    """The files of a folder, each with its digest."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextlib.contextmanager
def unchanged(*folders):
    """Within the context, no file of the folders may change, appear or go."""
    before = [contents(folder) for folder in folders]
    yield
    assert [contents(folder) for folder in folders] == before


# Configurations -------------------------------------------------------------------------------------------------------

IMAGE_CONFIG = {"backbone": "uvit", "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1}
IMAGE_CONFIG |= {"image_size": [2, 2], "num_channels": 1, "channel_multipliers": [1], "num_classes": 2}
IMAGE_CONFIG |= {"dit_hidden_size": 4, "dit_num_hidden_layers": 1, "dit_num_attention_heads": 2, "class_dropout": 0.1}
SMALL = {"vocab_size": VOCAB, "mask_token_id": MASK, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
SMALL |= {"num_attention_heads": 2, "mlp_type": "glu", "conditioning_size": 4, "modulation": "adaln"}
SMALL["num_classes"] = None
SMALL |= {"residual_dropout": 0.1, "max_position_embeddings": LENGTH, "masking_schedule": "poly", "norm_eps": 1e-5}
NOT_OF_TEXT = {*(IMAGE_CONFIG.keys() - SMALL.keys()), "is_causal"}
CONFIG = {name: getattr(MD4Config, name) for name in MD4Config.__annotations__ if name not in NOT_OF_TEXT} | SMALL
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "embedding_size", "conditioning_size")
ROPE = st.fixed_dictionaries(
    {}, optional={"rope_type": ANYTHING | st.sampled_from(["default", "linear", "yarn"]), "rope_theta": ANYTHING}
)


@fuzz(150, values=changed(CONFIG), rope=st.none() | ROPE)
def test_configurations_work_or_name_what_is_wrong(values, rope):
    if rope is not None:
        values["rope_parameters"] = rope
    config = documented(MD4Config, names=CONFIG, **values)
    if config is None:
        return
    assert MD4Config.from_dict(config.to_dict()).to_dict() == config.to_dict()
    if max(value for value in (getattr(config, name) for name in (*SIZES, "num_classes")) if value) < 100:
        model = documented(MD4ForMaskedDiffusion, config, names=["rope_parameters"])
        if model is not None:
            check_loss(model.eval())


@fuzz(150, backbone=st.sampled_from(["unet", "uvit"]), values=changed(IMAGE_CONFIG))
def test_configurations_of_images_work_or_name_what_is_wrong(backbone, values):
    config = documented(MD4Config, names=IMAGE_CONFIG, **{**values, "backbone": backbone})
    if config is None:
        return
    assert MD4Config.from_dict(config.to_dict()).to_dict() == config.to_dict()
    sizes = (getattr(config, name) for name in IMAGE_CONFIG if isinstance(getattr(config, name), int))
    if max(*sizes, *config.channel_multipliers, *config.sample_shape) < 100:
        check_loss(MD4ForMaskedDiffusion(config).eval(), config.sample_shape)


@torch.no_grad()
def check_loss(model, shape=(LENGTH,)):
    config = model.config
    ids = torch.arange(2 * math.prod(shape)).view(2, *shape) % (config.vocab_size - 1)
    ids = ids + (ids >= config.mask_token_id)
    classes = None if config.num_classes is None else torch.zeros(2, dtype=torch.long)
    output = model(ids, labels=ids, class_labels=classes)
    assert output.loss.isfinite() and output.logits.shape == (2, *shape, config.vocab_size)


SCHEDULE = {"name": "poly", "power": 1.0, "eps": 1e-4}


@fuzz(150, values=changed(SCHEDULE))
def test_masking_schedules_work_or_name_what_is_wrong(values):
    schedule = documented(make_schedule, names=["masking_schedule", "power", "eps"], **values)
    if schedule is None:
        return
    alpha = schedule.alpha(torch.linspace(0.0, 1.0, 9))
    assert ((alpha >= 0.0) & (alpha <= 1.0)).all() and (alpha.diff() <= 1e-6).all()
    assert (schedule.alpha_prime(torch.linspace(0.1, 1.0, 9)) <= 0.0).all()


@fuzz(
    60, values=changed({"num_tokens": 4, "power": 1.0, "eps": 1e-4}, st.integers(-2, 9) | FLOATS | st.text(max_size=2))
)
def test_token_schedules_work_or_name_what_is_wrong(values):
    schedule = documented(TokenPolynomialSchedule, names=values, **values)
    if schedule is not None:
        alpha = schedule.alpha(torch.linspace(0.0, 1.0, 9))
        assert ((alpha >= 0.0) & (alpha <= 1.0)).all()


# The scheduler and the pipeline ---------------------------------------------------------------------------------------

OTHERS = {"masking_schedule": "poly", "timestep_grid": "uniform", "sampler": "mean", "num_inference_steps": 4}
SCHEDULER = arguments_of(MaskedDiffusionScheduler, mask_token_id=MASK, **OTHERS)


@fuzz(150, values=changed(SCHEDULER, st.integers(-2, 9) | FLOATS | ANYTHING))
def test_schedulers_work_or_name_what_is_wrong(values):
    scheduler = documented(MaskedDiffusionScheduler, names=[*SCHEDULER, "power", "eps"], **values)
    if scheduler is None:
        return
    assert (scheduler.timesteps.diff() < 0).all() and scheduler.timesteps[0] == 1.0
    probability = scheduler.unmask_probabilities()
    assert ((probability >= 0.0) & (probability <= 1.0)).all()
    assert dict(MaskedDiffusionScheduler.from_config(scheduler.config).config) == dict(scheduler.config)


TENSORS = st.sampled_from(
    [
        torch.full((2, LENGTH), MASK),
        torch.arange(LENGTH).expand(2, -1),
        torch.full((2, LENGTH), -5),
        torch.full((2, LENGTH), 10**6),
        torch.full((3, LENGTH - 1), MASK),
        torch.zeros(2, LENGTH),
        torch.full((2, LENGTH), torch.nan),
        torch.ones(2, LENGTH, dtype=torch.bool),
        torch.zeros(2, LENGTH, VOCAB),
        torch.full((2, LENGTH, VOCAB), torch.nan),
        torch.zeros(2, 2, LENGTH, dtype=torch.long),
        torch.zeros(2 * LENGTH, VOCAB),
        torch.zeros(2, LENGTH, 3),
        torch.zeros(()),
        torch.zeros(2),
        torch.ones(2),
        torch.tensor([0.5, torch.nan]),
        torch.tensor([-0.5, 1.5]),
        torch.tensor([0, 30]),
        torch.zeros(2, dtype=torch.long),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0, LENGTH, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.long),
    ]
)
INPUTS = {"model_output": torch.zeros(2, LENGTH, VOCAB), "timestep": 1.0, "sample": torch.full((2, LENGTH), MASK)}
STEP = arguments_of(MaskedDiffusionScheduler.step, "generator", "plan", "return_dict", **INPUTS)


@fuzz(200, values=changed(STEP, TENSORS | ANYTHING))
def test_scheduler_steps_work_or_name_what_is_wrong(values):
    scheduler = MaskedDiffusionScheduler(**SCHEDULER)
    output = documented(scheduler.step, names=STEP, **values)
    if output is not None:
        kept = values["sample"] != MASK
        assert output.prev_sample.shape == values["sample"].shape
        assert torch.equal(output.prev_sample[kept], values["sample"][kept])
        assert output.sampled_probs.isfinite().all() and output.prev_sample.max() < VOCAB


NOISE = {"original_samples": torch.arange(LENGTH).expand(2, -1), "timesteps": torch.tensor([0.2, 1.0])}


@fuzz(80, values=changed(NOISE, TENSORS | ANYTHING))
def test_adding_noise_works_or_name_what_is_wrong(values):
    scheduler = MaskedDiffusionScheduler(**SCHEDULER)
    xt = documented(scheduler.add_noise, names=NOISE, **values)
    if xt is not None:
        assert ((xt == values["original_samples"]) | (xt == MASK)).all()


UNCHANGED = ("skip_special_tokens", "return_dict", "callback_on_step_end")
QUICK = {"num_inference_steps": 2, "output_type": "ids"}
PIPELINE = arguments_of(MaskedDiffusionPipeline.__call__, *UNCHANGED, **QUICK)
NO_LARGE_ONES = ANYTHING.filter(lambda value: not isinstance(value, (int, float)) or not value > 10**5)
IDS = st.lists(st.lists(st.integers(-1, VOCAB), max_size=LENGTH + 1), max_size=3)
PROMPTS = st.text("ab [MASK]", max_size=9) | st.lists(st.text(max_size=3) | st.none(), max_size=2)


@pytest.fixture(scope="module")
def pipelines():
    disable_progress_bars()
    made = []
    for options in ({"time_conditioning": False}, {"num_classes": 3}):
        model = random_model(VOCAB, LENGTH, std=0.2, **options)
        made.append(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(), build_text8_tokenizer()))
        made[-1].set_progress_bar_config(disable=True)
    return made


@fuzz(200, which=st.integers(0, 1), values=changed(PIPELINE, NO_LARGE_ONES | TENSORS | IDS | PROMPTS))
def test_pipelines_work_or_name_what_is_wrong(pipelines, which, values):
    output = documented(pipelines[which], names=[*PIPELINE, "prompt"], **values)
    if output is not None:
        assert all(MASK not in row and len(row) >= 0 for row in output.sequences)


GENERATE = arguments_of(MD4ForMaskedDiffusion.generate, num_inference_steps=2)


@fuzz(200, which=st.integers(0, 1), values=changed(GENERATE, NO_LARGE_ONES | TENSORS | IDS))
def test_generating_works_or_names_what_is_wrong(pipelines, which, values):
    ids = documented(pipelines[which].model.generate, names=GENERATE, **values)
    if ids is not None:
        assert ids.dim() == 2 and (ids != MASK).all()


IMAGES = st.sampled_from(
    [
        torch.full((2, 1, 2, 3), MASK),
        torch.arange(6).view(1, 1, 2, 3),
        torch.ones(2, 3, dtype=torch.bool),
        torch.ones(2, 2, 3) / 2,
        torch.full((2, 3), torch.nan),
        torch.full((2, 3), 255, dtype=torch.uint8),
        np.eye(3, dtype=bool)[:2],
        np.eye(3)[:2],
        np.array([["a", None, 1]] * 2),
        np.ones((2, 3), dtype=np.uint16),
        [np.ones((2, 3), dtype=bool)] * 2,
        [np.ones((2, 3), dtype=bool), np.ones((3, 2), dtype=bool)],
        PIL.Image.new("L", (3, 2), 255),
        PIL.Image.new("P", (2, 3)),
    ]
)


OF_IMAGES = {**PIPELINE, "input_ids": torch.full((2, 1, 2, 3), MASK), "class_labels": 1}


@fuzz(200, values=changed(OF_IMAGES, NO_LARGE_ONES | TENSORS | IMAGES))
def test_pipelines_of_images_work_or_name_what_is_wrong(image_pipeline, values):
    output = documented(image_pipeline, names=PIPELINE, **values)
    if output is not None:
        assert (output.sequences < MASK).all() and output.sequences.dim() == 4


@pytest.fixture(scope="module")
def image_pipeline():
    model = random_image_model(MASK, [2, 3], num_classes=3, class_dropout=0.1)
    pipeline = MaskedDiffusionPipeline(model, MaskedDiffusionScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# The model ------------------------------------------------------------------------------------------------------------

INPUTS = {"input_ids": torch.full((2, LENGTH), MASK), "timesteps": torch.tensor([0.2, 1.0])}
INPUTS["class_labels"] = torch.tensor([0, 2])
FORWARD = arguments_of(MD4ForMaskedDiffusion.forward, "output_logits", "past_key_values", **INPUTS)
LABELS = st.none() | st.just(torch.arange(LENGTH).expand(2, -1))


@fuzz(300, labels=LABELS, values=changed(FORWARD, TENSORS))
def test_forwards_work_or_name_what_is_wrong(pipelines, labels, values):
    if values["labels"] is None:
        values["labels"] = labels
    with torch.no_grad():
        output = documented(pipelines[1].model, names=FORWARD, **values)
    if output is not None:
        assert output.logits is None or not output.logits.isnan().any()
        assert output.loss is None or output.loss.isfinite()


# Files of models and tokenizers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory, pipelines):
    """A model with its tokenizer, and an adapter for it."""
    folder = tmp_path_factory.mktemp("saved")
    pipelines[0].save_pretrained(folder / "model")
    model = add_adapter(load_model(str(folder / "model")), LoraArguments(lora_r=1))
    model.save_pretrained(folder / "adapter")
    save_base_record(fingerprint(model.get_base_model()), folder / "adapter")
    pipelines[0].tokenizer.save_pretrained(folder / "adapter")
    return folder


def overwritten(data, draw):
    """Content of a file with other bytes in the place of some of its first ones."""
    start = draw(st.integers(0, min(len(data), 2000)))
    return data[:start] + draw(st.binary(max_size=8)) + data[start + draw(st.integers(0, 20)) :]


def damage(data, draw):
    """Damaged content of a file: a part, other bytes, or a json value that is anything."""
    kind = draw(st.sampled_from(["cut", "bytes", "json", "json", "json", "json"]))
    if kind == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if kind == "bytes":
        return overwritten(data, draw)
    content = json.loads(data)
    at = content
    while isinstance(at, dict) and at:
        name = draw(st.sampled_from(sorted(at)))
        if not isinstance(at[name], dict) or draw(st.booleans()):
            at[name] = draw(ANYTHING | st.sampled_from(["../x", "/x", "bert", "MD4Model", "LORA", "LOHA"]))
            return json.dumps(content).encode()
        at = at[name]
    return json.dumps(draw(ANYTHING)).encode()


def opened_damaged(saved, tmp_path_factory, data, kind, name, function):
    """Copy a saved folder, damage one file of it and open it: no other file changes, errors are documented ones."""
    folder = tmp_path_factory.mktemp("damaged")
    for path in (saved / kind).iterdir():
        shutil.copy(path, folder)
    change = damage if name.endswith(".json") else overwritten
    (folder / name).write_bytes(change((folder / name).read_bytes(), data.draw))
    with unchanged(folder):
        documented(function, str(folder), names=[""])
    shutil.rmtree(folder)


MODEL_FILES = ["config.json", "config.json", "scheduler_config.json", "tokenizer_config.json", "tokenizer.json"]


@fuzz(60, data=st.data(), name=st.sampled_from([*MODEL_FILES, "model.safetensors"]))
def test_damaged_models_work_or_name_what_is_wrong(saved, tmp_path_factory, data, name):
    opened_damaged(saved, tmp_path_factory, data, "model", name, lambda folder: load_pipeline(folder, device="cpu"))


@fuzz(
    60, data=st.data(), name=st.sampled_from(["adapter_config.json", "base_model.json", "adapter_model.safetensors"])
)
def test_damaged_adapters_work_or_name_what_is_wrong(saved, tmp_path_factory, data, name):
    opened_damaged(saved, tmp_path_factory, data, "adapter", name, load_model)


@fuzz(60, data=st.data(), name=st.sampled_from(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"]))
def test_damaged_tokenizers_work_or_name_what_is_wrong(saved, tmp_path_factory, data, name):
    opened_damaged(saved, tmp_path_factory, data, "model", name, lambda folder: load_tokenizer(folder)("the word"))


# Data -----------------------------------------------------------------------------------------------------------------

TEXTS = st.lists(st.none() | st.text(max_size=20) | st.sampled_from(["the word [MASK] ", "a" * 30]), max_size=4)


@fuzz(30, texts=TEXTS, block_size=st.integers(-1, 9) | ANYTHING, which=st.integers(0, 1), document_ids=st.booleans())
def test_packing_works_or_name_what_is_wrong(texts, block_size, which, document_ids):
    tokenizer = [build_text8_tokenizer(), build_byte_tokenizer()][which]
    documents = Dataset.from_dict({"text": pa.array(texts, pa.string())})
    options = {"document_ids": document_ids, "names": ["block_size", "documents"]}
    packed = documented(pack, documents, tokenizer, block_size, **options)
    if packed is not None:
        blocks, report = packed
        assert len(blocks) == report.num_blocks and all(len(row["input_ids"]) == block_size for row in blocks)


@fuzz(
    60, data=st.data(), suffix=st.sampled_from([".txt", ".jsonl", ".parquet"]), column=st.sampled_from(["text", "x"])
)
def test_data_files_work_or_name_what_is_wrong(tmp_path_factory, data, suffix, column):
    folder = tmp_path_factory.mktemp("data")
    file = folder / f"data{suffix}"
    if suffix == ".parquet":
        Dataset.from_dict({"text": ["a", "b"]}).to_parquet(file)
    else:
        file.write_text('{"text": "a"}\n{"text": "b", "x": 1}\n')
    file.write_bytes(overwritten(file.read_bytes(), data.draw))
    with unchanged(folder):
        documents = documented(load_documents, str(file), text_column=column, names=["data", "text_column"])
    if documents is not None:
        assert documents.column_names == ["text"]


HELD_OUT = {"data": "pydoc", "validation_fraction": 0.1, "streaming": False, "validation_split": None}
HELD_OUT["data_split"] = "train"


@fuzz(40, values=changed(HELD_OUT))
def test_data_arguments_work_or_name_what_is_wrong(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = documented(DataArguments, names=values, **values)
    if arguments is not None:
        parts = documented(load_train_validation, arguments, names=[*values, "validation_data", "on the Hub"])
        assert parts is None or all(len(part) for part in parts)


PAIRS = {"prompt_column": "prompt", "response_column": "response", "eos": "padded"}


@fuzz(60, values=changed(PAIRS), block_size=st.integers(-1, 12) | ANYTHING, texts=TEXTS)
def test_pairs_work_or_name_what_is_wrong(values, block_size, texts):
    arguments = documented(PairArguments, names=PAIRS, **values)
    if arguments is not None and arguments.given:
        pairs = Dataset.from_dict({name: pa.array(texts, pa.string()) for name in ("prompt", "response")})
        inputs = (pairs, build_byte_tokenizer(), block_size, arguments)
        encoded = documented(encode_pairs, *inputs, names=[*PAIRS, "block_size", "pairs"])
        if encoded is not None:
            assert all(len(row["input_ids"]) == len(row["labels"]) <= block_size for row in encoded[0])


CONTENT = st.text(max_size=8) | st.sampled_from(["[MASK]", "<|im_end|>", "\ud800"])
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "robot"]), "content": CONTENT})


@fuzz(80, messages=st.lists(MESSAGE | ANYTHING | st.lists(MESSAGE, max_size=3), max_size=4) | ANYTHING)
def test_messages_work_or_name_what_is_wrong(messages):
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = CHATML
    inputs = documented(ChatInputs, MD4Config(**CONFIG), tokenizer, messages, names=["messages"])
    if inputs is not None:
        assert all(tokenizer.mask_token_id not in prompt for prompt in inputs.prompts) and inputs.prompts
        texts = [tokenizer.decode(prompt) for prompt in inputs.prompts]
        assert all(text.endswith("<|im_start|>assistant\n") for text in texts)


FEATURE = st.lists(st.integers(-1, 30), max_size=3) | ANYTHING
FEATURES = st.dictionaries(st.sampled_from(["input_ids", "labels", "attention_mask"]), FEATURE, max_size=3)


@fuzz(80, features=st.lists(FEATURES, max_size=3))
def test_collators_work_or_name_what_is_wrong(features):
    collator = DataCollatorForMaskedDiffusion(MD4Config(**CONFIG))
    batch = documented(collator, features, names=["features", "input_ids", "labels", "attention_mask"])
    if batch is not None:
        assert len(batch["timesteps"]) == len(features) and batch["labels"].shape == batch["input_ids"].shape


# Options --------------------------------------------------------------------------------------------------------------

LORA = {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": "all-linear", "modules_to_save": None}
LORA |= {"use_dora": False, "quantization": None}


@fuzz(60, values=changed(LORA, NO_LARGE_ONES | st.sampled_from(["qkv_proj,o_proj", "lm_head", "no_such_layer", ","])))
def test_lora_arguments_work_or_name_what_is_wrong(values):
    arguments = documented(LoraArguments, names=LORA, **values)
    if arguments is not None and documented(arguments.loading_arguments, names=["quantization"]) is not None:
        model = random_model(VOCAB, LENGTH, std=0.2)
        adapted = documented(add_adapter, model, arguments, names=[*LORA, "Target modules"])
        if adapted is not None:
            check_loss(adapted.eval())


TYPES = (StartArguments, RunArguments, ModelArguments, DataArguments)
OPTIONS = ["hidden_size", "data", "schedule_eps", "total_batch_size", "streaming", "preset", "mlp_type", "x"]
CONTENT = st.dictionaries(st.sampled_from(OPTIONS), ANYTHING, max_size=3) | ANYTHING
YAML = CONTENT.map(yaml.safe_dump) | st.text(max_size=9) | st.just("!!python/object/apply:os.getcwd []")


def parse_options(argv):
    *parsed, _ = parse_arguments(TYPES, argv, prog="x", description="x")
    for arguments in parsed:
        assert all(isinstance(value, (str, int, float, type(None))) for value in vars(arguments).values())


@fuzz(100, text=YAML)
def test_option_files_work_or_name_what_is_wrong(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("options")
    (folder / "options.yaml").write_text(text, encoding="utf-8")
    names = [*OPTIONS, "options", "config"]
    with unchanged(folder):
        argv = ["--config", str(folder / "options.yaml")]
        code, said = outcome(argv, lambda argv: documented(parse_options, argv, names=names))
    assert code in (0, 2), said


WORD = st.text("ab-1.", max_size=4) | INTEGERS.map(str) | FLOATS.map(str) | st.sampled_from(["", "none", "true"])
SAMPLE_OPTIONS = "num_samples num_inference_steps length block_length temperature top_p top_k seed device x".split()
SAMPLE_OPTIONS += "gen_length use_cache eos_early_stop order threshold remasking eta corrector_size".split()
EVALUATE_OPTIONS = "draws batch_size seed block_size estimator num_timesteps rounds max_rounds target_stderr".split()
EVALUATE_OPTIONS += "preparation stride wrap detokenizer tasks replace x".split()
SCORE_OPTIONS = "batch_size max_length num_samples num_inference_steps retokenise add_bos top_p x".split()


def options_of(names):
    return st.dictionaries(st.sampled_from(names), WORD, max_size=2)


def check_command(folder, argv, options):
    """A command with these options works or names one of them, and leaves the model's folder alone."""
    with unchanged(folder):
        code, said = outcome([*argv, *(f"--{name}={value}" for name, value in options.items())])
    assert code == 0 or (code in (1, 2) and any(name in said for name in [*options, "unknown"])), said


@fuzz(80, options=options_of(SAMPLE_OPTIONS))
def test_sampling_commands_work_or_name_what_is_wrong(saved, options):
    assume(len(options.get("num_samples", "")) < 4)
    check_command(saved, ["sample", str(saved / "model"), "--device=cpu", "--num_inference_steps=2"], options)


@fuzz(
    20, text=st.text("ab<mask:>129-", max_size=12) | st.sampled_from(["<mask:99999999999>", "<mask:0>", "a<mask:2>"])
)
def test_infilling_texts_work_or_name_what_is_wrong(saved, text):
    with unchanged(saved):
        code, said = outcome(["infill", str(saved / "model"), "--device=cpu", "--", text])
    assert code == 0 or (code in (1, 2) and said)


@fuzz(40, options=options_of(EVALUATE_OPTIONS), suite=st.booleans())
def test_evaluations_work_or_name_what_is_wrong(saved, tmp_path_factory, options, suite):
    assume(max(len(options.get(name, "")) for name in ("draws", "rounds")) < 3 and "target_stderr" not in options)
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "text.txt").write_text("held out text of a few words\n" * 4, encoding="utf-8")
    suite_of_file = ["text8", f"--replace=text8={folder / 'text.txt'}", f"--output_dir={folder / 'out'}"]
    data = suite_of_file if suite else [f"--data={folder / 'text.txt'}", "--validation_fraction=0.5"]
    argv = ["suite" if suite else "evaluate", str(saved / "model"), *data, "--use_cpu=true"]
    check_command(saved, argv, options)


@fuzz(40, options=options_of(SCORE_OPTIONS))
def test_scores_work_or_name_what_is_wrong(saved, options):
    assume(len(options.get("num_samples", "")) < 3)
    check_command(saved, ["score", str(saved / "model"), "--device=cpu", "--num_inference_steps=2"], options)


@fuzz(100, sequences=st.lists(LISTS, max_size=3) | ANYTHING, n=st.integers(1, 4) | ANYTHING)
def test_statistics_of_samples_work_or_name_what_is_wrong(sequences, n):
    entropy = documented(token_entropy, sequences, names=["sequences"])
    if entropy is not None:
        assert 0.0 <= entropy["token_entropy"] <= math.log(max(map(len, sequences))) + 1e-6
    for statistic, shares in ((distinct_n, ["distinct_n"]), (repetition, ["seq_rep_n", "repeated_tokens"])):
        figures = documented(statistic, sequences, n, names=["sequences", "`n`"])
        assert figures is None or all(0.0 <= figures[share] <= 1.0 for share in shares)


@fuzz(
    300,
    texts=st.lists(st.text("ab c", max_size=12) | st.none(), max_size=4),
    preparation=st.sampled_from([*PREPARATIONS, "x"]),
    context=st.integers(0, 9),
    changes=st.fixed_dictionaries(
        {}, optional={"stride": INTEGERS, "wrap": st.booleans(), "detokenizer": st.sampled_from(["none", "ptb", "a"])}
    ),
)
def test_recipes_make_windows_that_fit_or_name_what_is_wrong(texts, preparation, context, changes):
    disable_progress_bars()
    arguments = (TASKS["lambada"], preparation, context, "x.txt")
    recipe = documented(make_recipe, *arguments, names=["preparation", "context", *changes], **changes)
    if recipe is None:
        return
    rows, tokenizer = Dataset.from_dict({"text": [text or "" for text in texts]}), build_text8_tokenizer()
    windows = documented(make_windows, rows, tokenizer, recipe, names=["data"])
    scored, frame = [], int(recipe.frame)
    for window in windows or ():
        assert len(window["input_ids"]) == len(window["labels"]) <= context
        assert any(label != -100 for label in window["labels"])
        scored += [label for label in window["labels"][frame : len(window["labels"]) - frame] if label != -100]
    ends = {"eos": Separator.of(tokenizer), "blank line": Separator.of_text("\n\n", tokenizer)}
    end = ends[recipe.row_end].input_ids
    tokens = [token for text in rows["text"] for token in (*tokenizer.encode(text, add_special_tokens=False), *end)]
    # Every token is scored once; only where rows are joined by groups, the last ones may be too few for a block.
    joins_groups = recipe.wrap and PREPARATIONS[preparation].group is not None
    num_left = len(tokens) - len(scored)
    assert scored == tokens[: len(scored)] and 0 <= num_left < (context - 2 * frame if joins_groups else 1)


# Converted checkpoints ------------------------------------------------------------------------------------------------

OFFICIAL = {"vocab_size": 5, "feature_dim": 4, "num_heads": 2, "n_layers": 1, "data_shape": [LENGTH], "classes": -1}
OFFICIAL |= {"noise_schedule_type": "linear", "mlp_type": "glu", "time_features": "t", "cond_type": "adaln"}
OFFICIAL |= {"outside_embed": True, "dropout_rate": 0.0, "timesteps": 10, "sampler": "ancestral"}
OFFICIAL |= {"sampling_grid": "cosine", "model_type": "md4"}


@fuzz(150, values=changed(OFFICIAL, ANYTHING | st.sampled_from(["poly2", "poly.", "poly1e9", "topp", "genmd4"])))
def test_official_configurations_work_or_name_what_is_wrong(values):
    config = documented(config_from_official, values, names=[*OFFICIAL, *CONFIG])
    assert config is None or config.vocab_size == values["vocab_size"] + 1


RECORDS = [json.loads(path.read_text()) for path in sorted(Path(__file__).parent.glob("golden/peers/*.json"))]
NETWORKS = [record for record in RECORDS if any(name.startswith("state_dict/") for name in record["tensors"])]
PEERS = {record["family"]: record["config"] for record in NETWORKS if record["family"] in FAMILIES}
PEERS["bd3lm"] |= {"block_size": 24}
# Numbers of layers above a thousand would be made into lists.
SMALL_VALUES = st.none() | st.booleans() | st.integers(-2, 999) | FLOATS | st.text(max_size=4) | LISTS | st.just({})


@pytest.mark.parametrize("name", PEERS)
@fuzz(60, data=st.data())
def test_configurations_of_peers_work_or_name_what_is_wrong(name, data):
    source = PEERS[name]
    values = data.draw(changed(source, SMALL_VALUES))
    if isinstance(source.get("model"), dict) and isinstance(values["model"], dict):
        values["model"] = data.draw(changed(source["model"], SMALL_VALUES))
    names = [*source, *source.get("model", ()), "graph.type", "noise.type", *CONFIG]
    config = documented(FAMILIES[name].configuration, values, names=names)
    assert config is None or config.mask_token_id < config.vocab_size


OFFICIAL_TEXT = st.just(json.dumps(OFFICIAL)) | ANYTHING.map(json.dumps) | st.text(max_size=9)


@fuzz(40, config=OFFICIAL_TEXT, weights=st.binary(max_size=40))
def test_converter_files_work_or_name_what_is_wrong(tmp_path_factory, config, weights):
    folder = tmp_path_factory.mktemp("official")
    (folder / "config.json").write_text(config, encoding="utf-8")
    (folder / "weights.safetensors").write_bytes(weights)
    names = ["checkpoint", "config", "official", "vocab_size", "Expecting"]
    weights_file, config_file, out = (folder / name for name in ("weights.safetensors", "config.json", "out"))
    with unchanged(folder):
        done = documented(convert, str(weights_file), out, config_file=config_file, family="official", names=names)
    assert done is None and not (folder / "out").exists()
