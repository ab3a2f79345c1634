# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Sampling from the autoregressive baseline: its own distribution, through the arguments of the pipeline."""

import pytest
import torch
from test_causal import LENGTH, SIZES, VOCAB, causal_model
from test_scheduling import LEAST_P, p_value
from tiny import quiet, seeded, with_normal_weights
from toy import ToyWorld
from transformers import DynamicCache, RepetitionPenaltyLogitsProcessor

from md4_hf import MD4Config, MD4ForCausalLM, build_byte_tokenizer, load_pipeline, make_pipeline
from md4_hf.core.pipeline_baselines import CausalPipeline


MASK = VOCAB


def make(**options):
    return quiet(make_pipeline(causal_model(**options)))


def draw(pipe, **arguments):
    return pipe(**{"generator": seeded(), "output_type": "ids", **arguments}).sequences


@pytest.mark.parametrize("time_conditioning", [True, False])
def test_samples_have_the_probabilities_of_the_model(time_conditioning):
    pipe = make(time_conditioning=time_conditioning)
    world = ToyWorld(vocab=VOCAB, length=3)
    with torch.no_grad():
        nats = pipe.model(world.sequences, labels=world.sequences, output_logits=False).token_nelbo.double().sum(dim=1)
    sample = draw(pipe, num_samples=20_000, length=3)
    assert p_value(world, sample, (-nats).exp()) > LEAST_P


@pytest.mark.parametrize("options", [{}, {"time_conditioning": False}, {"num_classes": 3, "class_dropout": 0.1}])
def test_the_cache_changes_no_logits(options):
    model = causal_model(**options)
    ids = torch.randint(VOCAB, (4, LENGTH), generator=seeded())
    labels = torch.arange(4) % 3 if "num_classes" in options else None
    for first in (0, 1, 5):
        cache, new = DynamicCache(), ids[:, :first]
        for column in range(first, LENGTH):
            at_next = torch.zeros_like(ids, dtype=torch.bool)
            at_next[:, column] = True
            with torch.no_grad():
                expected = model(ids, class_labels=labels, position_mask=at_next).logits
            found = model.next_logits(new, cache, labels)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            new = ids[:, column : column + 1]


def test_a_prompt_is_continued_and_rows_do_not_depend_on_each_other():
    pipe = make()
    prompts = [[1, 2], [], [3], [0, 1, 2, 3, 4, 0, 1, 2]]
    generators = [seeded(seed) for seed in range(4)]
    together = draw(pipe, input_ids=prompts, length=LENGTH, generator=generators)
    for seed, (prompt, row) in enumerate(zip(prompts, together, strict=True)):
        assert row[: len(prompt)].tolist() == prompt and (row != MASK).all()
        assert torch.equal(draw(pipe, input_ids=[prompt], length=LENGTH, generator=[seeded(seed)])[0], row)
    ragged = draw(pipe, input_ids=[[1, MASK], [2, MASK, MASK, MASK]], generator=generators[:2])
    assert [len(row) for row in ragged] == [2, 4] and all((row != MASK).all() for row in ragged)


def test_temperature_nucleus_and_suppression_are_those_of_the_pipeline():
    pipe = make()
    greedy = draw(pipe, num_samples=2, temperature=0.0)
    with torch.no_grad():
        logits = pipe.model(greedy).logits[:, :-1]
    assert torch.equal(logits.argmax(dim=-1), greedy[:, 1:])
    assert torch.equal(draw(pipe, num_samples=2, top_k=1), greedy)
    assert not {1, 3} & set(draw(pipe, num_samples=20, suppress_tokens=[1, 3]).flatten().tolist())
    seen = []

    def look(input_ids, logits):
        seen.append(input_ids.shape[1])
        return logits

    assert torch.equal(draw(pipe, logits_processor=look), draw(pipe)) and seen == [*range(1, LENGTH + 1)]
    draw(pipe, logits_processor=RepetitionPenaltyLogitsProcessor(1.2))


def test_guidance_joins_the_logits_with_and_without_the_class():
    pipe = make(num_classes=3, class_dropout=0.1)
    found = draw(pipe, class_labels=[2], guidance_scale=3.0, temperature=0.0)
    labels = torch.tensor([2, pipe.model.config.null_class])
    with torch.no_grad():
        given, none = pipe.model(found.repeat(2, 1), class_labels=labels).logits
    assert torch.equal((none + 3.0 * (given - none)).argmax(dim=-1)[:-1], found[0, 1:])
    assert torch.equal(
        draw(pipe, class_labels=[2], guidance_scale=0.0),
        draw(pipe),  # of no class
    )


def test_a_saved_baseline_opens_as_a_pipeline_of_text(tmp_path):
    config = MD4Config(**{**SIZES, "vocab_size": 258}, max_position_embeddings=LENGTH, is_causal=True)
    with_normal_weights(config, 0.3, model_class=MD4ForCausalLM).save_pretrained(tmp_path)
    build_byte_tokenizer().save_pretrained(tmp_path)
    pipe = quiet(load_pipeline(str(tmp_path), device="cpu"))
    assert isinstance(pipe, CausalPipeline)
    (text,) = pipe(prompt="ab<mask:3>", generator=seeded(), suppress_tokens=[*range(128, 257)]).texts
    assert text.startswith("ab") and len(text) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 4}, "`num_inference_steps` must be left out for an autoregressive model, got 4"),
        ({"block_length": 4}, "`block_length` must be left out"),
        ({"callback_on_step_end": print}, "`callback_on_step_end` must be left out"),
        ({"guidance_scale": 2.0}, "`guidance_scale` must be 1 without `class_labels` for an autoregressive model"),
        ({"classifier": print}, "`classifier` must be left out"),
        ({"input_ids": [[1, MASK, 2]]}, "`prompt` must have masks at its end only"),
        ({"length": LENGTH + 1}, r"`length` must be in \[1, 8\]"),
    ],
)
def test_what_it_cannot_do_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(make(), **arguments)
