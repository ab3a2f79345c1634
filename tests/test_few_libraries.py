# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The core works without diffusers, datasets, evaluate and peft, which many machines with a GPU lack."""

from pathlib import Path

import pytest
from clean_environment import link_packages, run_isolated
from tiny import quiet, random_model, seeded

import md4_hf
from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler


SOURCES = Path(md4_hf.__file__).parents[1]
ABSENT = ("datasets", "diffusers", "evaluate", "matplotlib", "peft", "pyarrow", "sklearn")
SETUP = f"""
sys.path.append({str(SOURCES)!r})
import importlib.util
assert not [name for name in {ABSENT} if importlib.util.find_spec(name)], "libraries that the test does without"
import torch
import md4_hf
"""


@pytest.fixture
def run(tmp_path):
    """Runs code where torch, transformers and accelerate, with what these require, are the only libraries."""
    packages = link_packages(tmp_path / "site", "torch", "transformers", "accelerate")
    return lambda code: run_isolated(packages, SETUP + code, tmp_path / "home")


def test_a_model_trains_in_a_loop_of_ones_own_and_is_saved_and_scored(run, tmp_path):
    code = f"""
from md4_hf import MD4Config, MD4ForMaskedDiffusion, Objective, PaddingCollator, example_nelbo
from md4_hf.objective.objectives import scored_labels
from transformers import AutoModelForMaskedLM

collate = PaddingCollator(pad_token_id=0)
batch = collate([{{"input_ids": [token] * length}} for token, length in ((1, 8), (2, 6), (3, 8), (1, 8))])
labels, index = scored_labels(batch), torch.arange(4)
for genmd4 in (False, True):
    torch.manual_seed(0)
    learned = {{"masking_schedule": "poly", "schedule_power": 1.0, "learn_masking_schedule": True}} if genmd4 else {{}}
    config = MD4Config(vocab_size=5, mask_token_id=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       max_position_embeddings=8, **learned)
    model = MD4ForMaskedDiffusion(config).train()
    score = lambda model: example_nelbo(model, Objective.of(model), batch, index, seed=0, num_draws=8)[0]
    before = score(model.eval()).sum()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for step in range(60):
        model(batch["input_ids"], labels=labels, attention_mask=batch.get("attention_mask")).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert score(model.eval()).sum() < 0.6 * before
    model.eval().save_pretrained({str(tmp_path / "model")!r})
    again = AutoModelForMaskedLM.from_pretrained({str(tmp_path / "model")!r})
    assert torch.equal(score(again), score(model))
print("done")
"""
    assert "done" in run(code)


def test_a_model_generates_and_draws_what_the_pipeline_draws(run, tmp_path):
    model = random_model(10, 12, std=0.3, time_conditioning=False, block_size=4)
    settings = {"num_inference_steps": 3, "order": "margin", "temperature": 0.5}
    pipe = quiet(MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(**settings)))
    pipe.save_pretrained(tmp_path / "model")
    samplers = [{}, {"order": "random", "remasking": "cap", "eta": 0.2}, {"corrector": "gibbs", "corrector_steps": 1}]
    expected = [
        pipe(input_ids=[[1, 2], [3]], gen_length=15, generator=seeded(5), output_type="ids", **options).sequences
        for options in samplers
    ]
    code = f"""
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path / "model")!r})
for options, expected in zip({samplers!r}, {[[row.tolist() for row in rows] for rows in expected]!r}):
    found = model.generate([[1, 2], [3]], max_new_tokens=15, seed=5, **options)
    assert [found[0].tolist(), found[1, 1:].tolist()] == expected, options
try:
    model.generate([[1]], max_new_tokens=3, order="first")
except ValueError as error:
    assert "`order` must be one of" in str(error)
print("done")
"""
    assert "done" in run(code)


def test_names_of_the_objective_the_data_and_the_converter_are_there(run):
    code = """
for name in ("nelbo_given_noise", "nelbo_metrics", "Objective", "DataCollatorForMaskedDiffusion", "PRESETS",
             "EmaCallback", "build_text8_tokenizer", "load_model", "config_from_official", "token_nelbo"):
    getattr(md4_hf, name)
from md4_hf.objective.example_order import OrderedExamples
assert len(OrderedExamples([{"input_ids": [1, 2]}, {"input_ids": [3]}])) == 2
print("done")
"""
    assert "done" in run(code)
