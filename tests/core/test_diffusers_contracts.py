# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Contracts that diffusers' own test suite checks of every scheduler and pipeline."""

import inspect
import json

import diffusers
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from tiny import quiet, random_model, seeded

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, build_text8_tokenizer


MASK = 27
LENGTH = 16
PROMPT = [3, MASK, MASK, 5, *[MASK] * (LENGTH - 4)]


# The scheduler --------------------------------------------------------------------------------------------------------

SETTINGS = {
    "defaults": {},
    "cosine": {"masking_schedule": "cosine", "timestep_grid": "uniform"},
    "poly": {"masking_schedule": "poly", "schedule_power": 2.0},
    "geometric": {"masking_schedule": "geometric", "schedule_eps": 0.0},
    "mean": {"sampler": "mean", "top_p": 0.9},
    "argmax": {"final_decode": "argmax", "num_inference_steps": 5},
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


def make_scheduler(**settings):
    return MaskedDiffusionScheduler(mask_token_id=MASK, **settings)


def make_logits(seed=0):
    return torch.randn(2, LENGTH, MASK + 1, generator=seeded(seed))


def named(config):
    """A configuration without diffusers' notes on it."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


@every_setting
def test_a_scheduler_comes_back_from_its_configuration_and_steps_alike(settings, tmp_path):
    scheduler = make_scheduler(**settings)
    scheduler.save_config(tmp_path / "config")
    scheduler.save_pretrained(tmp_path / "pretrained")
    copies = [MaskedDiffusionScheduler.from_pretrained(tmp_path / name) for name in ("config", "pretrained")]
    copies += [made.from_config(scheduler.config) for made in (MaskedDiffusionScheduler, *scheduler.compatibles)]
    assert len(copies) == 4
    sample = torch.tensor([PROMPT, PROMPT])
    for other in copies:
        assert named(other.config) == named(scheduler.config)
        assert torch.equal(other.timesteps, scheduler.timesteps)
        for t in scheduler.timesteps[::64]:
            steps = [one.step(make_logits(), t, sample, generator=seeded()) for one in (scheduler, other)]
            assert torch.equal(steps[0].prev_sample, steps[1].prev_sample)


def test_a_configuration_is_overridden_by_name_and_reports_what_it_does_not_know(tmp_path, caplog):
    scheduler = make_scheduler(sampler="mean")
    assert MaskedDiffusionScheduler.from_config(scheduler.config, sampler="ancestral").config.sampler == "ancestral"
    scheduler.save_pretrained(tmp_path)
    path = tmp_path / MaskedDiffusionScheduler.config_name
    path.write_text(json.dumps({**json.loads(path.read_text()), "unexpected": 1}))
    diffusers.utils.logging.enable_propagation()
    assert named(MaskedDiffusionScheduler.from_pretrained(tmp_path).config).items() > named(scheduler.config).items()
    assert "'unexpected': 1" in caplog.text


@every_setting
def test_a_tuple_holds_what_the_scheduler_output_holds(settings):
    scheduler = make_scheduler(**settings)
    sample = torch.tensor([PROMPT, PROMPT])
    output, as_tuple = (
        scheduler.step(make_logits(), scheduler.timesteps[-1], sample, generator=seeded(), return_dict=return_dict)
        for return_dict in (True, False)
    )
    assert isinstance(as_tuple, tuple)
    names = ["prev_sample", "sampled_tokens", "sampled_probs", "pred_logits", "committed_mask", "remasked"]
    assert list(output) == names
    for name, value in zip(output, as_tuple, strict=True):
        assert torch.equal(output[name], value)


def test_a_scheduler_has_the_attributes_that_pipelines_read():
    scheduler = make_scheduler()
    sample = torch.tensor([PROMPT])
    assert (scheduler.order, scheduler.init_noise_sigma) == (1, 1.0)
    assert torch.equal(scheduler.scale_model_input(sample * scheduler.init_noise_sigma, 0.5), sample)
    assert list(inspect.signature(scheduler.step).parameters)[:3] == ["model_output", "timestep", "sample"]
    scheduler.set_timesteps(3, device="meta")
    assert scheduler.timesteps.device.type == "meta" and scheduler.num_inference_steps == 3


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("logits_dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_step_keeps_the_samples_type_whatever_the_logits_precision(dtype, logits_dtype):
    scheduler = make_scheduler(num_inference_steps=2)
    logits = make_logits().to(logits_dtype)
    output = scheduler.step(logits, scheduler.timesteps[-1], torch.tensor([PROMPT, PROMPT], dtype=dtype))
    assert output.prev_sample.dtype == output.sampled_tokens.dtype == dtype
    assert output.pred_logits is logits
    assert (output.prev_sample != MASK).all()


# The pipeline ---------------------------------------------------------------------------------------------------------


def make_components(**overrides):
    model = random_model(MASK + 1, LENGTH, std=0.3, **overrides).eval()
    scheduler = make_scheduler(num_inference_steps=4)
    return {"model": model, "scheduler": scheduler, "tokenizer": build_text8_tokenizer()}


def make_pipe(**components):
    return quiet(MaskedDiffusionPipeline(**(components or make_components())))


def ids_of(pipe, **arguments):
    return pipe(**{"input_ids": [PROMPT], "generator": seeded(), "output_type": "ids", **arguments}).sequences


@pytest.fixture(scope="module")
def expected():
    """Ids that a fresh pipeline draws."""
    return ids_of(make_pipe())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    make_pipe().save_pretrained(folder)
    return folder


def test_sequences_are_one_tensor_unless_rows_differ_in_length():
    pipe = make_pipe()
    sequences = ids_of(pipe, num_samples=3)
    assert sequences.shape == (3, LENGTH) and sequences.dtype == torch.long
    ragged = ids_of(pipe, input_ids=[[1, MASK], [1, MASK, 2]])
    assert [tuple(row.shape) for row in ragged] == [(2,), (3,)]


def test_a_tuple_holds_what_the_pipeline_output_holds(expected):
    pipe = make_pipe()
    sequences, texts = pipe(input_ids=[PROMPT], generator=seeded(), output_type="ids", return_dict=False)
    assert torch.equal(sequences, expected) and texts is None
    sequences, texts = pipe(input_ids=[PROMPT], generator=seeded(), return_dict=False)
    assert torch.equal(sequences, expected) and texts == [pipe.tokenizer.decode(expected[0])]


def test_the_first_row_of_a_batch_is_what_its_generator_gives_alone(expected):
    """A single generator may be given outside a list too."""
    pipe = make_pipe()
    generators = [seeded(seed) for seed in range(3)]
    batch = ids_of(pipe, input_ids=[PROMPT] * 3, generator=generators)
    assert batch.shape == (3, LENGTH)
    assert torch.equal(batch[:1], expected)
    assert torch.equal(ids_of(pipe, generator=[seeded()]), expected)
    assert not torch.equal(ids_of(pipe, input_ids=[PROMPT] * 3, generator=generators), batch), "the next call is new"


@pytest.mark.parametrize("prompts, samples", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_every_prompt_gets_its_number_of_samples(prompts, samples):
    ids = ids_of(make_pipe(), input_ids=[PROMPT] * prompts, num_samples=samples)
    assert ids.shape == (prompts * samples, LENGTH)


@pytest.mark.parametrize("pipeline_class", [MaskedDiffusionPipeline, DiffusionPipeline])
@pytest.mark.parametrize("device_map", [None, "cpu", "balanced"])
def test_a_pipeline_comes_back_with_any_loader_and_device_map(pipeline_class, device_map, saved, expected):
    loaded = pipeline_class.from_pretrained(saved, device_map=device_map)
    assert set(loaded.components) == {"model", "scheduler", "tokenizer", "image_processor"}
    assert torch.equal(ids_of(quiet(loaded)), expected)


def test_components_are_replaced_on_loading_and_handed_on(saved, expected):
    pipe = make_pipe()
    loaded = MaskedDiffusionPipeline.from_pretrained(saved, model=pipe.model, tokenizer=None)
    assert loaded.model is pipe.model and loaded.tokenizer is None
    for other in (loaded, MaskedDiffusionPipeline(**pipe.components), MaskedDiffusionPipeline.from_pipe(pipe)):
        assert torch.equal(ids_of(quiet(other)), expected)
    assert named(MaskedDiffusionPipeline.from_pipe(pipe).config) == named(pipe.config)


def test_optional_components_stay_away_after_saving(tmp_path, expected):
    pipe = make_pipe()
    for name in pipe._optional_components:
        setattr(pipe, name, None)
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = quiet(MaskedDiffusionPipeline.from_pretrained(tmp_path))
    assert all(getattr(loaded, name) is None for name in pipe._optional_components)
    assert torch.equal(ids_of(loaded), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # newer diffusers prefer `dtype`
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pipeline_is_cast_and_loaded_in_half_precision(dtype, saved):
    pipe = make_pipe().to(dtype=dtype).to("cpu")
    assert pipe.dtype == pipe.model.dtype == dtype and pipe.device.type == "cpu"
    ids = ids_of(pipe)
    assert (ids != MASK).all()
    for requested in (dtype, {"model": dtype, "default": torch.float32}):
        loaded = quiet(MaskedDiffusionPipeline.from_pretrained(saved, torch_dtype=requested))
        assert loaded.model.dtype == dtype
        assert torch.equal(ids_of(loaded), ids)


@pytest.mark.parametrize("offload", ["model", "layers", "group"])
@pytest.mark.parametrize(
    "learned", [{}, {"masking_schedule": "poly", "learn_masking_schedule": True}], ids=["md4", "genmd4"]
)
def test_an_offloaded_model_gives_the_same_samples(offload, learned):
    """On an accelerator the weights then lie elsewhere than the model runs; here on the meta device for "layers"."""
    components = {**make_components(), "model": random_model(MASK + 1, LENGTH, std=0.2, **learned)}
    expected, pipe = ids_of(make_pipe(**components)), make_pipe(**components)
    if offload == "model":
        cpu_offload_with_hook(pipe.model, torch.device("cpu"))
    elif offload == "layers":
        cpu_offload(pipe.model, torch.device("cpu"), offload_buffers=True)
        assert pipe.device.type == "meta"
    else:
        pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(ids_of(pipe), expected)


def test_the_progress_bar_is_configured_by_the_pipeline(capsys):
    pipe = MaskedDiffusionPipeline(**make_components())
    pipe.set_progress_bar_config(desc="steps of a test")
    ids_of(pipe)
    assert "steps of a test: 100%" in capsys.readouterr().err
    ids_of(quiet(pipe))
    assert not capsys.readouterr().err


# Callbacks ------------------------------------------------------------------------------------------------------------


class Recorder(PipelineCallback):
    """Notes the names of the tensors that it gets, and asks for one that is not the default."""

    tensor_inputs = ["logits"]

    def __init__(self):
        super().__init__()
        self.seen = []

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        self.seen.append(sorted(callback_kwargs))
        return callback_kwargs


def test_a_callback_gets_the_tensors_it_names_and_its_sample_is_taken_over():
    pipe = make_pipe()

    def blank(pipeline, step, t, tensors):
        assert set(tensors) == set(pipeline._callback_tensor_inputs)
        if step == pipeline.num_timesteps - 1:
            tensors["sample"] = torch.zeros_like(tensors["sample"])
        return tensors

    names = pipe._callback_tensor_inputs
    assert not ids_of(pipe, callback_on_step_end=blank, callback_on_step_end_tensor_inputs=names).any()


@pytest.mark.parametrize("several", [False, True])
def test_callback_objects_of_diffusers_bring_the_names_of_their_tensors(several, expected):
    recorders = [Recorder(), Recorder()]
    callback = MultiPipelineCallbacks(recorders) if several else recorders[0]
    assert torch.equal(ids_of(make_pipe(), callback_on_step_end=callback), expected)
    for recorder in recorders[: 1 + several]:
        assert recorder.seen == [["logits"]] * 4
