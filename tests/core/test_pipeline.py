# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The pipeline: prompts are kept, masks are filled, and samples do not depend on the batch."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from test_planned_sampling import CallRecorder
from tiny import quiet, random_model, seeded
from transformers import AutoModel, AutoTokenizer

from md4_hf import (
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4ForMaskedDiffusion,
    build_byte_tokenizer,
    build_text8_tokenizer,
    make_pipeline,
)
from md4_hf.core.pipeline_inputs import expand_gaps


LENGTH = 24


def tiny_model(vocab_size=28, **kwargs):
    return random_model(vocab_size, LENGTH, std=0.3, **kwargs).eval()


@pytest.fixture
def pipe():
    scheduler = MaskedDiffusionScheduler(num_inference_steps=8)
    return quiet(MaskedDiffusionPipeline(tiny_model(), scheduler, build_text8_tokenizer()))


def test_unconditional_samples_fill_the_models_length(pipe):
    output = pipe(num_samples=3, generator=seeded(0))
    assert pipe.scheduler.config.mask_token_id == 27, "taken from the model"
    assert len(output.texts) == 3 and all(len(text) == LENGTH for text in output.texts)
    assert all((ids != 27).all() for ids in output.sequences)
    assert len(set(output.texts)) == 3


def test_infilling_keeps_the_given_text_to_the_letter(pipe):
    text = pipe(prompt="ab[MASK][MASK]cd [MASK]z", generator=seeded(0)).texts[0]
    assert len(text) == 9
    assert (text[:2], text[4:7], text[8]) == ("ab", "cd ", "z")


def test_gaps_may_be_written_in_either_way(pipe):
    text = pipe(prompt="ab<mask:2>cd <mask:1>[MASK]z", generator=seeded(0)).texts
    assert text == pipe(prompt="ab[MASK][MASK]cd [MASK][MASK]z", generator=seeded(0)).texts
    assert expand_gaps("a<mask:2>b<mask:01>", "<m>", 3) == "a<m><m>b<m>"


def test_bytes_of_any_script_are_kept_to_the_letter():
    tokenizer = build_byte_tokenizer()
    pipe = quiet(MaskedDiffusionPipeline(tiny_model(258), MaskedDiffusionScheduler(num_inference_steps=4), tokenizer))
    ids = pipe(prompt="Größe: [MASK][MASK] 漢字", output_type="ids").sequences[0]
    given = tokenizer.encode("Größe: [MASK][MASK] 漢字", add_special_tokens=False)
    kept = torch.tensor(given) != tokenizer.mask_token_id
    assert torch.equal(ids[kept], torch.tensor(given)[kept]) and (ids != tokenizer.mask_token_id).all()


def test_a_prompt_without_masks_is_continued(pipe):
    assert pipe(prompt="the cat ").texts[0].startswith("the cat ")
    assert len(pipe(prompt="the cat ").texts[0]) == LENGTH
    assert len(pipe(prompt="the cat ", length=10).texts[0]) == 10
    assert pipe(prompt="the cat", length=7).texts == ["the cat"], "there is nothing to do"


def test_ragged_prompts_give_each_row_what_it_gets_alone(pipe):
    prompts = ["a[MASK]", "hello [MASK][MASK][MASK] world", "[MASK]" * 5]
    together = pipe(prompt=prompts, generator=[seeded(seed) for seed in (1, 2, 3)]).texts
    alone = [pipe(prompt=prompt, generator=[seeded(seed)]).texts[0] for seed, prompt in enumerate(prompts, start=1)]
    assert together == alone
    assert [len(text) for text in together] == [2, 15, 5]


@pytest.mark.parametrize("mask_token_id", [0, 5])
def test_padding_is_never_asked_of_the_network(mask_token_id):
    model = tiny_model(vocab_size=6, mask_token_id=mask_token_id)
    pipeline = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(num_inference_steps=8)))
    recorder = CallRecorder(model, "attention_mask")
    pipeline(input_ids=[[mask_token_id, 2], [1, 2, 3, 4, 3, 2, mask_token_id]], generator=seeded(0), output_type="ids")
    asked = [call["position_mask"] & (call["attention_mask"] == 0) for call in recorder.calls]
    assert asked and not any(places.any() for places in asked)


def test_the_same_seed_gives_the_same_sample_whatever_the_batch(pipe):
    three, five = (pipe(num_samples=n, generator=seeded(4)).texts for n in (3, 5))
    assert three == five[:3]
    assert pipe(num_samples=3, generator=seeded(5)).texts != three


def test_torchs_own_seed_makes_a_call_repeatable(pipe):
    torch.manual_seed(3)
    first = pipe().texts
    torch.manual_seed(3)
    assert pipe().texts == first


def test_samples_of_a_prompt_lie_together(pipe):
    texts = pipe(prompt=["a[MASK]", "b[MASK]"], num_samples=2).texts
    assert [text[0] for text in texts] == ["a", "a", "b", "b"]


def test_a_class_conditional_model_takes_a_label_per_sample():
    pipe = quiet(MaskedDiffusionPipeline(tiny_model(num_classes=3), MaskedDiffusionScheduler(num_inference_steps=4)))
    sequences = pipe(class_labels=[0, 1, 2], num_samples=2, output_type="ids", generator=seeded(0)).sequences
    assert len(sequences) == 6
    same_label = pipe(class_labels=1, num_samples=6, output_type="ids", generator=seeded(0)).sequences
    equal = [torch.equal(a, b) for a, b in zip(sequences, same_label, strict=True)]
    assert equal[2:4] == [True, True] and not all(equal), "only the rows with this label are the same"


def test_the_callback_sees_every_step_and_may_change_the_sample(pipe):
    seen = []

    def callback(pipeline, step, t, tensors):
        seen.append((step, float(t), int((tensors["sample"] == 27).sum())))
        return {"sample": tensors["sample"].index_fill(1, torch.tensor([0]), 4)} if step == 7 else None

    text = pipe(callback_on_step_end=callback).texts[0]
    assert [step for step, _, _ in seen] == list(range(8)) and pipe.num_timesteps == 8
    masks = [count for _, _, count in seen]
    assert masks == sorted(masks, reverse=True) and masks[-1] == 0
    assert text[0] == "e"


def with_logits(change):
    """Arguments of a call whose callback gets the logits, and returns what `change` makes of the tensors."""

    def callback(pipeline, step, t, tensors):
        return change(tensors)

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["sample", "logits"]}


def only(token, logits):
    """Logits that allow one token."""
    return torch.full_like(logits, -1e9).index_fill(-1, torch.tensor([token]), 0.0)


@pytest.mark.parametrize(
    "options",
    [{}, {"learn_masking_schedule": True, "masking_schedule": "poly"}, {"num_classes": 3, "class_dropout": 0.1}],
    ids=["md4", "genmd4", "guided"],
)
def test_logits_that_a_callback_returns_are_drawn_from(options):
    pipe = quiet(MaskedDiffusionPipeline(tiny_model(**options), MaskedDiffusionScheduler(num_inference_steps=4)))
    call = {"num_samples": 2, "output_type": "ids"}
    if "num_classes" in options:
        call |= {"class_labels": 1, "guidance_scale": 2.0}

    def drawn(change):
        return pipe(**call, **with_logits(change), generator=seeded(3)).sequences

    unchanged = pipe(**call, generator=seeded(3)).sequences
    assert torch.equal(drawn(lambda tensors: None), unchanged)
    assert torch.equal(drawn(lambda tensors: tensors), unchanged)
    assert torch.equal(drawn(lambda tensors: {"logits": tensors["logits"]}), unchanged)
    assert (drawn(lambda tensors: {"logits": only(5, tensors["logits"])}) == 5).all()
    assert (drawn(lambda tensors: {**tensors, "logits": only(5, tensors["logits"])}) == 5).all()
    both = {"sample": torch.full((2, LENGTH), 7)}
    assert (drawn(lambda tensors: {**both, "logits": only(5, tensors["logits"])}) == 7).all(), "its own sample stands"

    def fill_in_place(tensors):
        tensors["sample"].fill_(7)
        return tensors

    assert (drawn(fill_in_place) == 7).all()


def test_logits_of_a_callback_without_a_step_to_draw_change_nothing(pipe):
    def returned(tensors):
        return {"logits": torch.zeros(1, 28)}

    ids = torch.arange(LENGTH)[None]  # no masks
    assert torch.equal(pipe(input_ids=ids, output_type="ids", **with_logits(returned)).sequences, ids)


class PlainDenoiser(torch.nn.Module):
    """A denoiser that is no `PreTrainedModel`: it has neither a `device` nor a `dtype`."""

    def __init__(self, **config):
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.bias = torch.nn.Parameter(torch.zeros(28))

    def forward(self, input_ids, timesteps=None, class_labels=None, attention_mask=None, position_mask=None):
        return SimpleNamespace(logits=self.bias.expand(*input_ids.shape, -1)[position_mask])


CONTRACT = {"mask_token_id": 27, "vocab_size": 28, "max_position_embeddings": LENGTH}


@pytest.mark.parametrize("callback", [None, lambda *given: {}], ids=["openings", "steps"])
def test_a_plain_module_is_a_denoiser(callback):
    scheduler = MaskedDiffusionScheduler(num_inference_steps=4)
    pipe = quiet(MaskedDiffusionPipeline(PlainDenoiser(**CONTRACT), scheduler, build_text8_tokenizer()))
    assert pipe.device == torch.device("cpu")
    (text,) = pipe(prompt="the [MASK][MASK]", callback_on_step_end=callback).texts
    assert text.startswith("the ") and len(text) == 6
    assert pipe(num_samples=3, output_type="ids", callback_on_step_end=callback).sequences.max() < 27
    assert pipe.to("meta").device == torch.device("meta")


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("change", ["missing", "none"])
def test_what_a_denoisers_configuration_lacks_is_named(name, change):
    config = {**CONTRACT, name: None}
    if change == "missing":
        del config[name]
    with pytest.raises(ValueError, match=f"`model` must have `config.{name}`, got PlainDenoiser without"):
        MaskedDiffusionPipeline(PlainDenoiser(**config), MaskedDiffusionScheduler())


@pytest.mark.parametrize("wrap", [lambda logits: logits, lambda logits: (logits,), lambda logits: {"logits": logits}])
def test_outputs_without_logits_are_named(wrap):
    denoiser = PlainDenoiser(**CONTRACT)
    forward = denoiser.forward
    denoiser.forward = lambda **inputs: wrap(forward(**inputs).logits)
    pipe = quiet(MaskedDiffusionPipeline(denoiser, MaskedDiffusionScheduler(num_inference_steps=4)))
    with pytest.raises(
        ValueError, match="`model` must return an output with a tensor `logits`, got (Tensor|tuple|dict)"
    ):
        pipe(length=4, output_type="ids")


def test_a_denoiser_without_configuration_is_refused():
    with pytest.raises(ValueError, match="`model` must be an MD4 model, got Linear: another denoiser goes into"):
        make_pipeline(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="`model` must have `config.mask_token_id`, .*got Linear without"):
        MaskedDiffusionPipeline(torch.nn.Linear(2, 2), MaskedDiffusionScheduler())


def test_a_callback_can_interrupt(pipe):
    def callback(pipeline, step, t, tensors):
        pipeline._interrupt = step == 2

    ids = pipe(callback_on_step_end=callback, output_type="ids").sequences[0]
    assert (ids == 27).any()


def test_dropout_is_off_while_sampling_and_the_mode_is_restored(pipe):
    pipe.model.train()
    assert pipe(generator=seeded(1)).texts == pipe(generator=seeded(1)).texts
    assert pipe.model.training


def test_one_flat_folder_serves_every_loader(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "scheduler_config.json", "model_index.json"} <= names
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    expected = pipe(num_samples=2, generator=seeded(0)).texts
    for loader in (MaskedDiffusionPipeline, DiffusionPipeline):
        loaded = quiet(loader.from_pretrained(tmp_path))
        assert isinstance(loaded, MaskedDiffusionPipeline)
        assert loaded(num_samples=2, generator=seeded(0)).texts == expected
    assert isinstance(AutoModel.from_pretrained(tmp_path), MD4ForMaskedDiffusion)
    assert AutoTokenizer.from_pretrained(tmp_path).mask_token_id == 27
    assert json.loads((tmp_path / "model_index.json").read_text())["model"] == ["md4_hf", "MD4ForMaskedDiffusion"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a", "input_ids": [[1]]}, "Only one of `prompt` and `input_ids`"),
        ({"prompt": "a" * 25}, "must not be longer than the model's 24 tokens, got 25"),
        ({"prompt": "abc", "length": 2}, "`length` must be at least the prompt's 3 tokens, got 2"),
        ({"length": 25}, r"`length` must be in \[1, 24\]"),
        ({"length": 0}, r"`length` must be in \[1, 24\]"),
        ({"num_samples": 0}, "`num_samples` must be >= 1, got 0"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be >= 1, got 0"),
        ({"temperature": -0.5}, "`temperature` must be finite and >= 0, got -0.5"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\], got 0.0"),
        ({"top_k": 0}, "`top_k` must be >= 1, got 0"),
        ({"output_type": "pil"}, "`output_type` must be one of"),
        ({"input_ids": [[28]]}, r"`input_ids` must be in \[0, 28\)"),
        ({"prompt": []}, "must hold at least one row"),
        ({"prompt": 3}, "`prompt` must be a string or a list of strings, got int"),
        ({"prompt": "a<mask:0>"}, "`prompt` must have gaps <mask:n> with n >= 1, such as <mask:12>, got <mask:0>"),
        ({"prompt": ["a", "<mask:-1>"]}, "with n >= 1, such as <mask:12>, got <mask:-1>"),
        ({"prompt": "<mask:>"}, "with n >= 1"),
        ({"prompt": "<mask:20><mask:5>"}, "`prompt` must have gaps of at most 24 tokens in all, the length"),
        ({"prompt": f"<mask:{'9' * 5000}>"}, "`prompt` must have gaps of at most 24 tokens in all"),
        ({"class_labels": [0]}, "`class_labels` must be None"),
        ({"generator": [torch.Generator()] * 2}, "one generator per row, 1, got 2"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "`callback_on_step_end_tensor_inputs` must be among"),
    ],
)
def test_bad_arguments_are_named_before_any_work(pipe, monkeypatch, arguments, message):
    monkeypatch.setattr(pipe.model, "forward", None)
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_components_that_do_not_fit_are_refused():
    scheduler = MaskedDiffusionScheduler()
    with pytest.raises(ValueError, match="`tokenizer` must have ids below the model's number of rows, 28, got up to"):
        MaskedDiffusionPipeline(tiny_model(), scheduler, build_byte_tokenizer())
    with pytest.raises(ValueError, match="`tokenizer` must have the model's mask id 3, got 257"):
        MaskedDiffusionPipeline(tiny_model(258, mask_token_id=3), MaskedDiffusionScheduler(), build_byte_tokenizer())
    with pytest.raises(ValueError, match="`scheduler` must have the model's mask id 27, got 5"):
        MaskedDiffusionPipeline(tiny_model(), MaskedDiffusionScheduler(5))
    with pytest.raises(ValueError, match="needs a pipeline with a tokenizer"):
        MaskedDiffusionPipeline(tiny_model(), MaskedDiffusionScheduler())()


def test_a_prompt_that_the_tokenizer_rewrites_is_reported(pipe, caplog):
    import diffusers

    diffusers.utils.logging.enable_propagation()
    pipe(prompt="Hello, World![MASK]")
    assert "The pipeline uses 'hello world [MASK]' instead" in caplog.text


def test_a_variant_that_no_loader_would_find_is_refused(tmp_path):
    pipe = make_pipeline(random_model(258, 8, std=0.1), build_byte_tokenizer())
    with pytest.raises(ValueError, match="`variant` must be left out: .*, got 'fp16'"):
        pipe.save_pretrained(tmp_path / "model", variant="fp16")
    assert not (tmp_path / "model").exists()
    pipe.to(torch.float16).save_pretrained(tmp_path / "model", variant=None)
    assert DiffusionPipeline.from_pretrained(tmp_path / "model").model.dtype == torch.float16


def test_a_model_that_gives_tuples_is_refused():
    model = random_model(258, 8, std=0.1)
    model.config.return_dict = False
    with pytest.raises(ValueError, match="`model.config.return_dict` must be True"):
        make_pipeline(model, build_byte_tokenizer())
