# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Contracts that transformers' own test suite checks of every model."""

import copy
import itertools
import json

import pytest
import torch
from accelerate import (
    infer_auto_device_map,
    init_empty_weights,
    load_checkpoint_and_dispatch,
    load_checkpoint_in_model,
)
from accelerate.utils import compute_module_sizes, find_tied_parameters
from tiny import random_model, training_arguments, with_normal_weights
from torch import nn
from transformers import AutoConfig, AutoModel, Trainer, pipeline
from transformers.pipelines.base import PipelineException

from md4_hf import (
    MD4Config,
    MD4ForCausalLM,
    MD4ForMaskedDiffusion,
    MD4Model,
    build_byte_tokenizer,
    build_text8_tokenizer,
)
from md4_hf.core.modeling_md4_layers import MD4Layer


VOCAB, LENGTH, WIDTH, HEADS, LAYERS = 28, 32, 32, 2, 2
MASK = VOCAB - 1
VARIANTS = {
    "time": {},
    "time-agnostic": {"time_conditioning": False},
    "class": {"num_classes": 3, "modulation": "adaln"},
    "tied": {"tie_word_embeddings": True},
    "outside embedding": {"embedding_size": 16},
    "ddit": {"backbone": "ddit"},
    "ddit, time-agnostic, tied": {"backbone": "ddit", "time_conditioning": False, "tie_word_embeddings": True},
}
GENMD4 = {"learn_masking_schedule": True, "masking_schedule": "poly"}
IMAGES = {"image_size": 8, "num_channels": 1}
KINDS = {
    **VARIANTS,
    "learned schedule": GENMD4,
    "causal": {"is_causal": True},
    "causal, tied": {"is_causal": True, "tie_word_embeddings": True},
    "unet": {"backbone": "unet", **IMAGES},
    "unet, learned schedule": {"backbone": "unet", **IMAGES, **GENMD4},
    "uvit": {"backbone": "uvit", "channel_multipliers": [1, 2], "dit_num_hidden_layers": 1, **IMAGES},
}
every_variant = pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
both_classes = pytest.mark.parametrize("model_class", [MD4Model, MD4ForMaskedDiffusion])


def make_model(model_class=MD4ForMaskedDiffusion, seed=0, **overrides):
    model = random_model(VOCAB, LENGTH, std=0.2, seed=seed, **overrides).eval()
    return model if model_class is MD4ForMaskedDiffusion else model.model


def new_model(options):
    """The class of a kind of model, and one of it with normal weights."""
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    model_class = MD4ForCausalLM if options.get("is_causal") else MD4ForMaskedDiffusion
    config = MD4Config(**sizes, max_position_embeddings=LENGTH, **options)
    return model_class, with_normal_weights(config, std=0.2, model_class=model_class).eval()


def make_inputs(config, batch=3, length=7, seed=1):
    """Ids of which some are masked, a padded row, and what else the model needs."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(MASK, (batch, length), generator=generator)
    input_ids[:, 1::2] = config.mask_token_id
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones(batch, length, dtype=torch.long)}
    inputs["attention_mask"][-1, -2:] = 0
    if config.time_conditioning:
        inputs["timesteps"] = torch.linspace(0.1, 0.9, batch)
    if config.num_classes is not None:
        inputs["class_labels"] = torch.arange(batch) % config.num_classes
    return inputs


def assert_same_output(actual, expected, inputs, atol=1e-5):
    """Compare the first outputs of two models."""
    with torch.no_grad():
        torch.testing.assert_close(actual(**inputs)[0], expected(**inputs)[0], atol=atol, rtol=0.0)


# Outputs --------------------------------------------------------------------------------------------------------------


@both_classes
@every_variant
def test_hidden_states_and_attentions_are_asked_for_in_the_call_or_in_the_configuration(model_class, overrides):
    model = make_model(model_class, **overrides)
    model.set_attn_implementation("eager")
    inputs = make_inputs(model.config)
    asked = model(**inputs, output_hidden_states=True, output_attentions=True)
    model.config.output_hidden_states = model.config.output_attentions = True
    configured = model(**inputs)
    assert list(asked) == list(configured), "hidden states come before attentions, and both last"
    assert list(asked)[-2:] == ["hidden_states", "attentions"]
    assert {x.shape for x in asked.hidden_states} == {(3, 7, WIDTH)} and len(asked.hidden_states) == LAYERS + 1
    assert {x.shape for x in asked.attentions} == {(3, HEADS, 7, 7)} and len(asked.attentions) == LAYERS
    for name in ("hidden_states", "attentions"):
        assert all(torch.equal(a, b) for a, b in zip(asked[name], configured[name], strict=True))
    if model_class is MD4Model:
        assert torch.equal(asked.hidden_states[-1], asked.last_hidden_state)


@both_classes
@pytest.mark.parametrize("hidden, attentions", list(itertools.product([False, True], repeat=2)))
def test_a_tuple_holds_what_the_output_object_holds(model_class, hidden, attentions):
    model = make_model(model_class)
    model.set_attn_implementation("eager")
    inputs = {**make_inputs(model.config), "output_hidden_states": hidden, "output_attentions": attentions}
    as_tuple, as_dict = model(**inputs, return_dict=False), model(**inputs)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(as_dict)
    torch.testing.assert_close(as_tuple, as_dict.to_tuple(), atol=0.0, rtol=0.0)
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)


@both_classes
def test_gradients_of_inner_states_can_be_kept(model_class):
    model = make_model(model_class)
    model.set_attn_implementation("eager")
    output = model(**make_inputs(model.config), output_hidden_states=True, output_attentions=True)
    states = (output.hidden_states[0], output.attentions[0])
    for state in states:
        state.retain_grad()
    output[0].flatten()[0].backward()
    assert all(state.grad is not None for state in states)


@both_classes
def test_the_signature_tells_tools_which_options_of_transformers_it_takes(model_class):
    """transformers skips checks of models whose `**kwargs` are not annotated, as it cannot know what they take."""
    (options,) = model_class.forward.__annotations__["kwargs"].__args__
    assert {"output_attentions", "output_hidden_states"} <= set(options.__annotations__)


# Attention backends and positions -------------------------------------------------------------------------------------


@both_classes
@every_variant
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
def test_eager_and_sdpa_agree_in_every_precision(model_class, overrides, dtype, atol):
    """Relative to the largest output; the tolerance is a few units in the last place of each precision."""
    model = make_model(model_class, **overrides).to(dtype)
    inputs = make_inputs(model.config)
    results = []
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        assert model.config._attn_implementation == backend
        output = model(**inputs)[0][..., :MASK].float()[inputs["attention_mask"].bool()]
        results.append(output.detach())
    assert (results[0] - results[1]).abs().max() <= atol * results[0].abs().max()


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "yarn"])
def test_scaled_rotary_embeddings_change_long_inputs_and_dynamic_ones_no_others(rope_type):
    default = {"rope_type": "default", "rope_theta": 10_000.0}
    scaled = {**default, "rope_type": rope_type, "factor": 10.0}
    models = [make_model(MD4Model, time_conditioning=False, rope_parameters=x) for x in (default, scaled)]
    short, long = torch.randint(VOCAB, (1, 10)), torch.randint(VOCAB, (1, LENGTH + 16))
    changes = [(models[0](x)[0] - models[1](x)[0]).abs().max().item() for x in (short, long)]
    assert changes[1] > 1e-3
    assert changes[0] < 1e-5 if rope_type == "dynamic" else changes[0] > 1e-3


# Saving and loading ---------------------------------------------------------------------------------------------------


@every_variant
def test_a_configuration_survives_json_subfolders_and_options_of_transformers(overrides, tmp_path):
    options = {"output_hidden_states": True, "output_attentions": True, "return_dict": False, "num_labels": 5}
    config = MD4Config(vocab_size=VOCAB, **overrides, **options, dtype="float16")
    config.save_pretrained(tmp_path / "sub")
    loaded = MD4Config.from_pretrained(tmp_path, subfolder="sub")
    assert loaded.to_dict() == config.to_dict()
    by_type = AutoConfig.from_pretrained(tmp_path / "sub")
    assert type(by_type) is MD4Config and by_type.to_diff_dict().items() >= config.to_diff_dict().items()
    assert json.loads(config.to_json_string())["vocab_size"] == VOCAB
    assert len(loaded.id2label) == 5 and loaded.dtype == torch.float16
    assert copy.deepcopy(config).to_dict() == config.to_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("overrides", [VARIANTS["class"], VARIANTS["time-agnostic"]], ids=["class", "time-agnostic"])
def test_half_precision_is_kept_loaded_on_request_and_runs(dtype, overrides, tmp_path):
    model = make_model(**overrides)
    inputs = make_inputs(model.config)
    model.save_pretrained(tmp_path / "float32")
    model.to(dtype).save_pretrained(tmp_path / "half")
    for folder, options in (("half", {}), ("half", {"dtype": "auto"}), ("float32", {"dtype": dtype})):
        loaded = AutoModel.from_pretrained(tmp_path / folder, **options)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        assert loaded.config.dtype == dtype
        assert_same_output(loaded, model, inputs, atol=0.0)
    assert MD4Model.from_pretrained(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_what_stays_in_float32_is_there_in_every_kind_of_model(options, dtype, tmp_path, caplog):
    model_class, model = new_model(options)
    names = [name for name, _ in model.named_parameters()]
    kept = set(model._keep_in_fp32_modules_strict or ()) | set(model._keep_in_fp32_modules or ())
    assert all(any(module in name.split(".") for name in names) for module in kept)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == (torch.float32 if "token_schedule" in name else dtype), name
    assert not caplog.records


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_accelerate_finds_what_is_tied_and_loads_a_checkpoint_into_an_empty_model(options, tmp_path):
    model_class, model = new_model(options)
    model.save_pretrained(tmp_path)
    with init_empty_weights():
        empty = model_class(model.config)
    tied = [["lm_head.weight", "model.embed_tokens.weight"]] if options.get("tie_word_embeddings") else []
    assert find_tied_parameters(empty) == find_tied_parameters(model) == tied
    load_checkpoint_in_model(empty, tmp_path, device_map={"": "cpu"})
    empty.tie_weights()
    for (name, expected), actual in zip(model.named_parameters(), empty.parameters(), strict=True):
        assert torch.equal(actual, expected), name


@every_variant
def test_a_model_comes_back_from_shards_onto_any_device_map(overrides, tmp_path):
    model = make_model(**overrides)
    inputs = make_inputs(model.config)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for device_map in ("auto", "sequential", "cpu", {"": "cpu"}):
        loaded = MD4ForMaskedDiffusion.from_pretrained(tmp_path, device_map=device_map)
        assert_same_output(loaded, model, inputs)


@both_classes
@every_variant
def test_parts_that_do_not_fit_in_memory_are_run_from_disk(model_class, overrides, tmp_path):
    model = make_model(model_class, **overrides)
    model.save_pretrained(tmp_path / "model")
    size = compute_module_sizes(model)[""]
    limits = {"max_memory": {"cpu": size * 7 // 10}, "offload_folder": tmp_path / "offload"}
    loaded = model_class.from_pretrained(tmp_path / "model", device_map="auto", **limits)
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    assert_same_output(loaded, model, make_inputs(model.config))


@pytest.mark.filterwarnings("ignore:Current model requires")  # no offloading is done here
def test_a_device_map_does_not_split_what_adds_up_the_outputs_of_its_parts():
    model = make_model(num_classes=3)
    size = compute_module_sizes(model)[""]
    unsplit = [name for name, module in model.named_modules() if isinstance(module, MD4Layer)] + ["model.conditioning"]
    first_devices = set()
    for memory in range(0, size, size // 50):
        sizes = {0: memory, "cpu": size}
        device_map = infer_auto_device_map(model, sizes, no_split_module_classes=[*model._no_split_modules])
        assert not [part for part in device_map if any(part.startswith(f"{name}.") for name in unsplit)]
        first_devices.add(device_map.get("model.conditioning"))
    assert first_devices >= {0, "cpu"}, "the border has passed over it"


@both_classes
@every_variant
def test_weights_that_a_checkpoint_lacks_are_initialised_as_in_a_new_model(model_class, overrides):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = MD4Config(vocab_size=VOCAB, **sizes, **overrides)
    torch.manual_seed(0)
    new = model_class(config)
    torch.manual_seed(0)
    loaded = model_class.from_pretrained(None, config=config, state_dict={})
    assert [name for name, _ in new.named_parameters()] == [name for name, _ in loaded.named_parameters()]
    for (name, expected), actual in zip(new.named_parameters(), loaded.parameters(), strict=True):
        # The order of the draws may differ, the distributions may not: zero, or 6 standard errors of both moments.
        assert bool(expected.any()) == bool(actual.any()), name
        if expected.any():
            error = 6.0 * expected.std() / expected.numel() ** 0.5
            assert abs(expected.mean() - actual.mean()) <= 1.5 * error, name
            assert abs(expected.std() - actual.std()) <= error, name
    for (name, expected), actual in zip(new.named_buffers(), loaded.buffers(), strict=True):
        assert torch.equal(expected, actual), name


def test_another_vocabulary_loads_only_when_mismatches_are_ignored(tmp_path):
    make_model().save_pretrained(tmp_path)
    other = {"vocab_size": 40, "mask_token_id": 39}
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        MD4ForMaskedDiffusion.from_pretrained(tmp_path, **other)
    loaded = MD4ForMaskedDiffusion.from_pretrained(tmp_path, **other, ignore_mismatched_sizes=True)
    assert loaded.get_input_embeddings().num_embeddings == loaded.get_output_embeddings().out_features == 40
    assert torch.equal(loaded.model.layers[0].mlp.down_proj.weight, make_model().model.layers[0].mlp.down_proj.weight)
    assert loaded(**make_inputs(loaded.config)).logits.isfinite().all()


def test_a_tied_head_is_not_saved_and_can_be_untied_later(tmp_path):
    model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "tied")
    untied = make_model()
    untied.save_pretrained(tmp_path / "untied")
    loaded, info = MD4ForMaskedDiffusion.from_pretrained(tmp_path / "tied", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(x.get_output_embeddings().weight is x.get_input_embeddings().weight for x in (model, loaded))
    assert_same_output(loaded, model, make_inputs(model.config), atol=0.0)
    loaded, info = MD4ForMaskedDiffusion.from_pretrained(tmp_path / "untied", output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    assert_same_output(loaded, untied, make_inputs(untied.config), atol=0.0)


DEVICE_MAPS = {
    "one device": {"": "cpu"},
    "layers on the disk": {
        **{"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.conditioning": "cpu"},
        **{"model.modulation": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"},
    },
}


@pytest.mark.parametrize("model_class", [MD4ForMaskedDiffusion, MD4ForCausalLM])
@pytest.mark.parametrize(
    "tie", [pytest.param(True, id="tied"), pytest.param(False, id="untied", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("device_map", DEVICE_MAPS.values(), ids=DEVICE_MAPS)
def test_a_checkpoint_in_parts_is_loaded_by_a_device_map(tmp_path, device_map, tie, model_class):
    is_causal = model_class is MD4ForCausalLM
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    model = model_class(MD4Config(**sizes, tie_word_embeddings=tie, is_causal=is_causal)).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    with init_empty_weights():
        empty = model_class(model.config)
    assert find_tied_parameters(empty) == ([["lm_head.weight", "model.embed_tokens.weight"]] if tie else [])
    folders = {"device_map": device_map, "offload_folder": tmp_path / "disk"}
    for loaded in (
        load_checkpoint_and_dispatch(empty, tmp_path / "parts", **folders),
        model_class.from_pretrained(tmp_path / "parts", **folders),
    ):
        assert loaded.lm_head.weight.device == model.lm_head.weight.device
        inputs = {"input_ids": torch.arange(6)[None], **({} if is_causal else {"timesteps": torch.tensor([0.5])})}
        assert_same_output(loaded.eval(), model, inputs, atol=1e-6)


@both_classes
def test_pickling_and_copying_keep_the_function(model_class, tmp_path):
    model = make_model(model_class)
    torch.save(model, tmp_path / "model.pt")
    for other in (torch.load(tmp_path / "model.pt", weights_only=False), copy.deepcopy(model)):
        assert_same_output(other, model, make_inputs(model.config), atol=0.0)


def test_the_time_embedding_is_not_cast_to_the_integers_of_a_quantised_layer():
    class Int8Linear(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.scale = linear.weight.abs().max() / 127
            self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
            self.bias = linear.bias

        def forward(self, x):
            return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)

    model = make_model()
    quantised = copy.deepcopy(model)
    quantised.model.conditioning.dense_in = Int8Linear(model.model.conditioning.dense_in)
    inputs = make_inputs(model.config)
    # Rounding to 1 part in 127 of the largest weight moves the logits by a few percent of their spread.
    difference = (quantised(**inputs).logits - model(**inputs).logits)[..., :MASK]
    assert 0 < difference.abs().max() < 0.1 * model(**inputs).logits[..., :MASK].std()


# Resizing -------------------------------------------------------------------------------------------------------------


@every_variant
def test_a_resized_vocabulary_is_saved_with_the_model(overrides, tmp_path):
    model = make_model(**overrides)
    model.resize_token_embeddings(VOCAB + 3, pad_to_multiple_of=16)
    assert (model.config.vocab_size, model.config.mask_token_id) == (32, MASK)
    model.save_pretrained(tmp_path)
    loaded = MD4ForMaskedDiffusion.from_pretrained(tmp_path)
    assert (loaded.config.vocab_size, loaded.config.mask_token_id) == (32, MASK)
    assert_same_output(loaded, model, make_inputs(model.config), atol=0.0)


def test_new_rows_are_near_the_mean_of_the_old_ones_and_survive_a_second_initialisation():
    model = make_model()
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(VOCAB + 10)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert torch.equal(embeddings[:VOCAB], old)
    # The new rows are drawn with a billionth of the old rows' covariance.
    torch.testing.assert_close(embeddings[VOCAB:].mean(0), old.mean(0), atol=1e-3, rtol=0.0)
    before = head.detach().clone()
    model.post_init()
    assert torch.equal(head, before)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")  # newer transformers prefer another name
def test_checkpointing_is_switched_on_and_off_for_every_layer():
    model = make_model()
    layers = [module for module in model.modules() if isinstance(module, MD4Layer)]
    for expected in (True, False):
        model.gradient_checkpointing_enable() if expected else model.gradient_checkpointing_disable()
        assert {layer.gradient_checkpointing for layer in layers} == {expected}
        assert model.is_gradient_checkpointing == expected


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointed_layers_train_above_frozen_embeddings():
    """Parameter-efficient training relies on this."""
    model = make_model().train()
    model.requires_grad_(False)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    model.model.layers[0].mlp.down_proj.weight.requires_grad_(True)
    inputs = make_inputs(model.config)
    labels = inputs["input_ids"].clamp(max=MASK - 1)
    model(**inputs, labels=labels).loss.backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad.any()


def test_a_plain_trainer_evaluates_once_it_is_told_which_labels_are_the_targets(tmp_path):
    """`Trainer` takes every argument with "label" in its name for a target, `class_labels` too, unless it is told."""
    model = make_model()
    examples = [{"input_ids": row, "labels": row.clone()} for row in torch.randint(MASK, (6, 8))]
    arguments = training_arguments(tmp_path, label_names=["labels"])
    metrics = Trainer(model=model, args=arguments, eval_dataset=examples).evaluate()
    assert 0 < metrics["eval_loss"] < 100


# Export ---------------------------------------------------------------------------------------------------------------


@both_classes
@pytest.mark.parametrize("overrides", [VARIANTS["class"], VARIANTS["time-agnostic"]], ids=["class", "time-agnostic"])
def test_both_classes_export_with_padding_and_classes(model_class, overrides):
    model = make_model(model_class, **overrides)
    inputs = make_inputs(model.config)
    exported = torch.export.export(model, (), inputs).module()
    assert_same_output(exported, model, make_inputs(model.config, seed=2))


DIMS = (torch.export.Dim("batch", max=64), torch.export.Dim("length", max=LENGTH - 1))
EXPORTED = {name: options for name, options in KINDS.items() if "backbone" not in options}


def export_case(name):
    """A model, its inputs of one size, those of another, and which of their axes may have any size."""
    model_class, model = new_model(EXPORTED[name])
    small, large = make_inputs(model.config, batch=2, length=6), make_inputs(model.config, batch=3, length=9, seed=2)
    if model_class is MD4ForCausalLM:
        small, large = ({k: v for k, v in x.items() if k != "timesteps"} for x in (small, large))
    axes = {k: dict(enumerate(DIMS[: v.dim()])) for k, v in small.items()}
    return model, small, large, axes


@pytest.mark.parametrize("name", EXPORTED)
def test_every_text_model_exports_with_any_batch_and_length(name):
    model, small, large, axes = export_case(name)
    exported = torch.export.export(model, (), small, dynamic_shapes=axes).module()
    for inputs in (small, large):
        assert_same_output(exported, model, inputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter's own
@pytest.mark.parametrize("name", ["class", "time-agnostic", "causal"])
def test_a_text_model_runs_in_onnx_with_any_batch_and_length(name, tmp_path):
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module)
    runtime = pytest.importorskip("onnxruntime")
    model, small, large, axes = export_case(name)
    program = torch.onnx.export(model, (), kwargs=small, dynamic_shapes=axes, dynamo=True, verbose=False)
    program.save(tmp_path / "m.onnx")
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    for inputs in (small, large):
        (logits,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        with torch.no_grad():
            expected = model(**inputs).logits
        # The runtime's kernels round otherwise than torch's: to a few units in the last place of the largest logit.
        atol = 1e-4 * expected[..., :MASK].abs().max().item()
        torch.testing.assert_close(torch.tensor(logits), expected, atol=atol, rtol=0.0)


# Pipelines of transformers --------------------------------------------------------------------------------------------

TOKENIZERS = {"text8": build_text8_tokenizer, "bytes": build_byte_tokenizer}


def filler(tokenizer, **overrides):
    tokenizer = TOKENIZERS[tokenizer]()
    model = random_model(len(tokenizer), LENGTH, std=0.2, time_conditioning=False, **overrides).eval()
    return pipeline("fill-mask", model=model, tokenizer=tokenizer)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_fill_mask_ranks_the_tokens_of_one_mask_by_the_models_probability(tokenizer):
    fill = filler(tokenizer)
    answers = fill("the c[MASK]t", top_k=3)
    ids = fill.tokenizer("the c[MASK]t", return_tensors="pt")["input_ids"]
    probability = fill.model(ids).logits[0, 5].softmax(-1)
    values, tokens = probability.topk(3)
    assert [answer["token"] for answer in answers] == tokens.tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(values.tolist(), rel=1e-4)
    for answer in answers:
        ids[0, 5] = answer["token"]
        assert answer["token_str"] == fill.tokenizer.decode([answer["token"]])
        assert answer["sequence"] == fill.tokenizer.decode(ids[0])
    everything = fill("the c[MASK]t", top_k=len(fill.tokenizer))
    assert sum(answer["score"] for answer in everything) == pytest.approx(1.0, abs=1e-5)
    assert everything[-1]["token_str"] == "[MASK]" and everything[-1]["score"] == 0.0


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_fill_mask_takes_targets_several_masks_and_several_texts(tokenizer):
    fill = filler(tokenizer)
    answers = fill("the c[MASK]t", targets=["a", "u"])
    assert {answer["sequence"] for answer in answers} == {"the cat", "the cut"}
    assert answers[0]["score"] >= answers[1]["score"]
    first, second = fill("t[MASK]e c[MASK]t", top_k=2)
    assert all(answer["sequence"].endswith("e c[MASK]t") for answer in first)
    assert all(answer["sequence"].startswith("t[MASK]e c") for answer in second)
    texts = ["the c[MASK]t", "a d[MASK]g s"]
    assert fill(texts, top_k=1) == [fill(text, top_k=1) for text in texts]
    with pytest.raises(PipelineException, match="No mask_token"):
        fill("nothing to fill")


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({}, "`timesteps` must be given: the model is time-conditioned"),
        ({"time_conditioning": False, "num_classes": 2}, "`class_labels` must be given: the model is class-cond"),
    ],
    ids=["time", "class"],
)
def test_fill_mask_says_what_a_conditional_model_needs(overrides, message):
    fill = pipeline("fill-mask", model=make_model(**overrides), tokenizer=build_text8_tokenizer())
    with pytest.raises(ValueError, match=message):
        fill("the c[MASK]t")


def test_feature_extraction_gives_the_hidden_states_of_the_bare_model():
    model = make_model(MD4Model, time_conditioning=False)
    tokenizer = build_text8_tokenizer()
    features = torch.tensor(pipeline("feature-extraction", model=model, tokenizer=tokenizer)("a cat"))
    expected = model(tokenizer("a cat", return_tensors="pt")["input_ids"]).last_hidden_state
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0.0)
