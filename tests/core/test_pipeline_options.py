# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Options of a call: samplers, new tokens, texts that end early, processors of transformers with masks in the ids."""

import pytest
import torch
from test_planned_sampling import CallRecorder
from test_sampling_runs import MASK, any_sampler, draw
from tiny import quiet, random_image_model, random_model, seeded, with_normal_weights
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from md4_hf import (
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4Config,
    MD4ForCausalLM,
    build_byte_tokenizer,
    make_pipeline,
)


PROMPTS = [[1, 2, 3, *[MASK] * 13], [1, 2, 3, 4, 5, 6, *[MASK] * 6]]
EOS = 5
BLOCKS = [{}, {"block_length": 4, "use_cache": False}, {"block_length": 4}]


@pytest.fixture(scope="module")
def model():
    model = random_model(MASK + 1, 16, std=0.2, time_conditioning=False, eos_token_id=EOS)
    return model.eval().double()


def pipeline(model, **options):
    return quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(**{"num_inference_steps": 20, **options})))


def sequences(pipe, rows=PROMPTS, **arguments):
    given = {"generator": [seeded(len(row)) for row in rows], "output_type": "ids", **arguments}
    return pipe(input_ids=rows, **given).sequences


# Samplers -------------------------------------------------------------------------------------------------------------


@any_sampler
def test_options_of_a_call_are_those_of_the_scheduler_and_do_not_last(model, options):
    pipe = pipeline(model)
    before, config = sequences(pipe), dict(pipe.scheduler.config)
    for row, expected in zip(sequences(pipe, **options), draw(model, PROMPTS, options), strict=True):
        assert torch.equal(row, expected)
    assert dict(pipe.scheduler.config) == config
    assert all(torch.equal(*pair) for pair in zip(sequences(pipe), before, strict=True))


def test_options_of_a_call_come_before_those_of_the_configuration(model):
    ordered = pipeline(model, order="entropy", temperature=0.0, top_k=3, corrector_steps=1, corrector="gibbs")
    given = {"order": "random", "temperature": 1.0, "top_k": MASK, "corrector_steps": 0}
    pairs = zip(sequences(ordered, **given), sequences(pipeline(model)), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    greedy = sequences(pipeline(model), temperature=0.0)
    pairs = zip(greedy, sequences(pipeline(model, temperature=0.0)), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_callbacks_read_the_times_of_the_call(model):
    pipe, seen = pipeline(model), []

    def look(given, step, t, tensors):
        seen.append(float(t))
        assert t == given.scheduler.timesteps[step] and given.num_timesteps == 7

    sequences(pipe, order="margin", num_inference_steps=7, callback_on_step_end=look)
    assert seen == pipe.scheduler.timesteps.tolist() and len(seen) == 7


def test_genmd4_refuses_orders_and_a_model_that_takes_its_place_does_not(model):
    learned = random_model(MASK + 1, 16, std=0.2, learn_masking_schedule=True, masking_schedule="poly").eval()
    pipe = pipeline(learned)
    sequences(pipe, remasking="cap", eta=0.3)
    with pytest.raises(ValueError, match='`order` must be "random" with the schedules of GenMD4'):
        sequences(pipe, order="confidence")
    pipe.register_modules(model=model)
    assert all((row != MASK).all() for row in sequences(pipe, order="confidence"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "first"}, r"`order` must be one of \['candidate', 'confidence', 'entropy', .*\], got 'first'"),
        ({"order": "margin", "order_temperature": -1.0}, "`order_temperature` must be finite and >= 0, got -1.0"),
        ({"quota": "round"}, r"`quota` must be one of \['binomial', 'ceil', 'floor'\], got 'round'"),
        ({"order": "threshold", "threshold": 1.5}, r"`threshold` must be in \(0, 1\], got 1.5"),
        ({"order": "factor", "factor": 0}, "`factor` must be finite and > 0, got 0"),
        ({"order": "entropy_bound", "entropy_bound": -0.1}, "`entropy_bound` must be finite and >= 0, got -0.1"),
        ({"order": "klass", "kl_bound": 0.0}, "`kl_bound` must be finite and > 0, got 0.0"),
        ({"remasking": "all"}, r"`remasking` must be None or one of \['cap', .*\], got 'all'"),
        ({"remasking": "cap", "eta": 1.5}, r"`eta` must be in \[0, 1\], got 1.5"),
        ({"remasking": "cap", "order": "margin"}, '`remasking` must be None with `order="margin"`'),
        ({"corrector": "best"}, r"`corrector` must be one of \['forward_backward', 'gibbs', 'informed'\], got 'best'"),
        ({"corrector_steps": -1}, "`corrector_steps` must be an integer >= 0, got -1"),
        ({"corrector_eta": 2.0}, r"`corrector_eta` must be in \[0, 1\], got 2.0"),
        ({"corrector": "gibbs", "corrector_size": 0}, "`corrector_size` must be >= 1, got 0"),
        ({"length": 8, "gen_length": 4}, "Only one of `length` and `gen_length` may be given, got 8 and 4"),
        ({"gen_length": 0}, r"`gen_length` must be in \[1, 16\] \(the model's length\) without `block_length`, got 0"),
        (
            {"gen_length": 4},
            "`gen_length` must leave room for the prompt: at most 0 of the model's 16 tokens after 16",
        ),
        ({"gen_length": -1, "block_length": 4}, "`gen_length` must be >= 1, got -1"),
        ({"eos_early_stop": 1}, "`eos_early_stop` must be True or False, got 1"),
        ({"output_type": "sequence"}, r"`output_type` must be one of \('text', 'ids', 'seq'\), got 'sequence'"),
    ],
)
def test_bad_options_are_named_before_any_work(model, monkeypatch, arguments, message):
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(ValueError, match=message):
        sequences(pipeline(model), **arguments)


def test_what_has_no_meaning_for_images_is_refused():
    pipe = quiet(make_pipeline(random_image_model(5, 4)))
    with pytest.raises(ValueError, match="`gen_length` must be None: the model is not one of text"):
        pipe(gen_length=4, output_type="ids")
    with pytest.raises(ValueError, match="`eos_early_stop` must be False: the model is not one of text"):
        pipe(eos_early_stop=True, output_type="ids")
    ids = pipe(order="confidence", num_inference_steps=4, output_type="seq", generator=seeded()).sequences
    assert ids.shape == (1, 1, 4, 4) and (ids < 5).all()


# New tokens -----------------------------------------------------------------------------------------------------------


def test_new_tokens_follow_each_prompt(model):
    rows = [[1, 2, 3], [4], []]
    found = sequences(pipeline(model), rows, gen_length=6, output_type="seq")
    assert [len(row) for row in found] == [9, 7, 6]
    by_masks = sequences(pipeline(model), [row + [MASK] * 6 for row in rows], generator=[seeded(len(x)) for x in rows])
    assert all(torch.equal(*pair) for pair in zip(found, by_masks, strict=True))


def test_new_tokens_may_exceed_the_models_length_in_cached_blocks(model):
    (row,) = sequences(pipeline(model), [[*range(1, 13)]], gen_length=20, block_length=5)
    assert len(row) == 32 and row[:12].tolist() == [*range(1, 13)] and (row != MASK).all()
    pipe = quiet(make_pipeline(random_model(258, 16, std=0.3, time_conditioning=False), build_byte_tokenizer()))
    (text,) = pipe(prompt="a<mask:12>b", gen_length=8, block_length=4, suppress_tokens=[*range(128, 257)]).texts
    assert len(text) == 22 and text[0] == "a" and text[13] == "b"


# Texts that end early -------------------------------------------------------------------------------------------------


def ended(row, start):
    """The row with EOS tokens behind the first one from a column on."""
    places = (row[start:] == EOS).nonzero()
    end = start + int(places[0]) if len(places) else len(row)
    return torch.cat([row[:end], torch.full_like(row[end:], EOS)])


def prefer_eos(input_ids, logits):
    return logits + torch.nn.functional.one_hot(torch.tensor(EOS), MASK + 1) * 4.0


@pytest.mark.parametrize(
    ("blocks", "has_callback"), [*((blocks, False) for blocks in BLOCKS), *((blocks, True) for blocks in BLOCKS[:2])]
)
@pytest.mark.parametrize("options", [{}, {"order": "confidence"}, {"order": "threshold"}], ids=str)
def test_a_row_ends_with_the_first_eos_and_costs_nothing_more(model, blocks, options, has_callback):
    rows = [[1, EOS, 3, *[MASK] * 13], [1, EOS, 3, *[MASK] * 9], [1, *[MASK] * 8, 2]]
    arguments = {**options, **blocks, "logits_processor": prefer_eos}
    if has_callback:
        arguments["callback_on_step_end"] = lambda *given: {}
    pipe, recorder = pipeline(model), CallRecorder(model)
    full = sequences(pipe, rows, **arguments)
    num_full = sum(int(call["position_mask"].any(dim=1).sum()) for call in recorder.calls)
    recorder.calls.clear()
    early = sequences(pipe, rows, **arguments, eos_early_stop=True)
    num_early = sum(int(call["position_mask"].any(dim=1).sum()) for call in recorder.calls)
    recorder.hook.remove()
    for row, whole in zip(early[:2], full[:2], strict=True):
        assert torch.equal(row, ended(whole, 3)) and (row[3:] == EOS).any()
    assert torch.equal(early[2], full[2]) and (early[2] == EOS).any(), "the end of a gap is no end of the text"
    assert num_early < num_full


def test_a_text_is_cut_where_it_ends():
    tokenizer = build_byte_tokenizer()
    pipe = quiet(make_pipeline(random_model(258, 32, std=0.3, time_conditioning=False), tokenizer))
    eos = tokenizer.eos_token_id

    def script(input_ids, logits):
        """After three more letters the text ends; any letters follow."""
        place = input_ids.shape[1] - (input_ids == 257).sum(dim=1)
        allowed = torch.where(place == 5, eos, ord("c"))
        return torch.full_like(logits, -1e4).scatter(1, allowed[:, None], 1e4)

    arguments = {"prompt": "ab", "length": 12, "order": "sequential", "num_inference_steps": 10}
    output = pipe(**arguments, logits_processor=script, eos_early_stop=True)
    assert output.texts == ["abccc"] and output.sequences[0].tolist() == [*b"abccc", *[eos] * 7]
    assert pipe(**arguments, logits_processor=script).texts == ["abccccccccc"]
    with_end = pipe(**arguments, logits_processor=script, eos_early_stop=True, skip_special_tokens=False)
    assert with_end.texts == ["abccc<|endoftext|>"]


def test_a_call_ends_with_its_last_row(model):
    recorder = CallRecorder(model)
    arguments = {"order": "sequential", "logits_processor": lambda ids, logits: prefer_eos(ids, logits) * 100}
    (row,) = sequences(pipeline(model), [[1]], length=40, block_length=4, eos_early_stop=True, **arguments)
    recorder.hook.remove()
    assert row.tolist() == [1] + [EOS] * 39 and len(recorder.calls) == 2, "the prompt, and the first token"


def test_remasking_and_correctors_end_texts_too(model):
    for options in ({"remasking": "cap", "eta": 0.4}, {"corrector": "gibbs", "corrector_steps": 2}):
        arguments = {**options, "logits_processor": prefer_eos, "eos_early_stop": True}
        plain = sequences(pipeline(model), **arguments)
        watched = sequences(pipeline(model), **arguments, callback_on_step_end=lambda *given: {})
        for row, other, prompt in zip(plain, watched, PROMPTS, strict=True):
            start = len(prompt) - prompt.count(MASK)
            assert torch.equal(row, other) and torch.equal(row, ended(row, start)) and (row[start:] == EOS).any()


def test_positions_that_a_callback_masks_in_an_ended_row_are_filled(model):
    def mask_again(pipe, step, t, tensors):
        sample = tensors["sample"].clone()
        if step == 10:
            sample[0, 4] = MASK
        return {"sample": sample}

    for options in ({}, {"order": "sequential"}):
        arguments = {**options, "logits_processor": prefer_eos, "eos_early_stop": True}
        rows = sequences(pipeline(model), **arguments, callback_on_step_end=mask_again)
        assert all((row != MASK).all() for row in rows)


def test_a_model_without_an_end_of_text_is_refused():
    pipe = pipeline(random_model(MASK + 1, 16, std=0.2))
    with pytest.raises(ValueError, match="`eos_early_stop` needs an EOS token"):
        sequences(pipe, eos_early_stop=True)


def test_the_autoregressive_baseline_ends_texts_too():
    config = MD4Config(
        vocab_size=MASK + 1, max_position_embeddings=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        is_causal=True, eos_token_id=EOS,
    )  # fmt: skip
    pipe = quiet(make_pipeline(with_normal_weights(config, 0.3, model_class=MD4ForCausalLM).eval()))
    rows = [[1, EOS, 3, *[MASK] * 13], [1, *[MASK] * 11]]
    full = sequences(pipe, rows, logits_processor=prefer_eos)
    early = sequences(pipe, rows, logits_processor=prefer_eos, eos_early_stop=True)
    for row, whole, start in zip(early, full, (3, 1), strict=True):
        assert torch.equal(row, ended(whole, start)) and (row[start:] == EOS).any()
    (row,) = sequences(pipe, [[1, 2]], gen_length=5)
    assert len(row) == 7
    for name, value in {"order": "confidence", "corrector_steps": 1, "use_cache": False}.items():
        with pytest.raises(ValueError, match=f"`{name}` must be left out for an autoregressive model"):
            sequences(pipe, rows, **{name: value})


# Processors of transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", BLOCKS, ids=["whole", "blocks", "cached"])
@pytest.mark.parametrize("options", [{}, {"order": "confidence"}, {"remasking": "cap", "eta": 0.3}], ids=str)
def test_a_penalty_of_tokens_that_a_row_has_sees_no_padding(model, options, blocks):
    rows = [[MASK] * 16, [MASK] * 8]
    processor = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(50.0), MinPLogitsWarper(0.01)])
    arguments = {**options, **blocks, "logits_processor": processor}
    together = sequences(pipeline(model), rows, **arguments)
    assert torch.equal(sequences(pipeline(model), rows[1:], **arguments)[0], together[1])


def test_a_penalty_of_tokens_that_a_row_has_leaves_no_repetition_one_by_one(model):
    processor = LogitsProcessorList(
        [lambda ids, x: x - x.amax(-1, keepdim=True) - 1, RepetitionPenaltyLogitsProcessor(99.0)]
    )
    pipe = pipeline(model, order="confidence", timestep_grid="uniform", schedule_eps=0.0)
    arguments = {"rows": [[1, 2, *[MASK] * 14]] * 5, "generator": seeded(), "num_inference_steps": 14}
    for row in sequences(pipe, **arguments, logits_processor=processor):
        assert len(set(row.tolist())) == 16


def test_bad_words_and_biases_of_single_tokens_hold_everywhere(model):
    bad = [[token] for token in range(20) if token != EOS]
    processor = LogitsProcessorList([NoBadWordsLogitsProcessor(bad), SequenceBiasLogitsProcessor([[[22], 50.0]])])
    for blocks in BLOCKS:
        rows = sequences(pipeline(model), [[MASK] * 12] * 3, logits_processor=processor, **blocks)
        assert (rows == 22).all()
        rows = sequences(pipeline(model), [[MASK] * 12] * 3, logits_processor=processor[:1], **blocks)
        assert {*rows.flatten().tolist()} <= {EOS, *range(20, MASK)} and len(set(rows.flatten().tolist())) > 2
