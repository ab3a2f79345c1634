# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Batches: padding, and the noise for a plain `Trainer` or a loop of one's own."""

import accelerate
import pytest
import torch
from datasets import Dataset
from tiny import random_model
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from md4_hf import DataCollatorForMaskedDiffusion, MD4Config, PaddingCollator


VOCAB, MASK, LENGTH = 4, 4, 8


def config(**kwargs):
    return MD4Config(vocab_size=VOCAB + 1, **kwargs)


def features(count):
    """Sequences of one repeated token, which a model can learn."""
    return [{"input_ids": [number % VOCAB] * LENGTH} for number in range(count)]


def test_padding_touches_what_differs_in_length_only():
    rows = [{"input_ids": [1, 2, 3], "labels": [1, -100, 3]}, {"input_ids": [4], "labels": [4]}]
    batch = PaddingCollator(7)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert batch["labels"].tolist() == [[1, -100, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert set(PaddingCollator()([{"input_ids": [1], "num_characters": 2.0}])) == {"input_ids", "num_characters"}


@pytest.mark.parametrize("values", [["a", "b"], [[1, 2], [3]], [None, None]], ids=str)
def test_a_column_that_is_no_tensor_is_named(values):
    with pytest.raises(ValueError, match="Column `note` must hold numbers of one shape"):
        PaddingCollator()([{"input_ids": [1], "note": value} for value in values])


def test_times_are_stratified_and_masks_follow_them():
    collator = DataCollatorForMaskedDiffusion(config(), generator=torch.Generator().manual_seed(0))
    batch = collator(features(64))
    ordered = batch["timesteps"].sort().values
    assert (ordered.diff() - 1 / 64).abs().max() < 1e-5, "one time in each stratum"
    masked = batch["input_ids"] == MASK
    assert torch.equal(batch["labels"], torch.tensor([row["input_ids"] for row in features(64)]))
    assert torch.equal(batch["input_ids"][~masked], batch["labels"][~masked])
    # 512 tokens, each masked with probability t: the mean is 1/2 with a standard error below sqrt(1/6 / 512) = 0.018.
    assert masked.float().mean().item() == pytest.approx(0.5, abs=4 * 0.018)


def test_discrete_time_gives_times_of_its_grid():
    batch = DataCollatorForMaskedDiffusion(config(num_train_timesteps=4))(features(32))
    assert set((batch["timesteps"] * 4).tolist()) == {1.0, 2.0, 3.0, 4.0}


def test_padding_and_given_tokens_are_neither_masked_nor_scored():
    rows = [{"input_ids": [1] * 6, "labels": [-100] * 3 + [1] * 3}, {"input_ids": [2], "labels": [2]}]
    collator = DataCollatorForMaskedDiffusion(config(), pad_token_id=3)
    for _ in range(30):
        batch = collator(rows)
        given = batch["labels"] == -100
        assert (batch["input_ids"][given] != MASK).all() and given.sum() == 8


def mean_loss(model, seed=1):
    collator = DataCollatorForMaskedDiffusion(model.config, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.eval()(**collator(features(256))).loss.item()


def test_a_plain_trainer_trains_with_it(tmp_path):
    model = random_model(VOCAB + 1, LENGTH, std=0.1)
    before = mean_loss(model)
    options = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "remove_unused_columns": False}
    options |= {"max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 1e-2}
    args, rows = TrainingArguments(str(tmp_path), **options), Dataset.from_list(features(128))
    Trainer(model, args, DataCollatorForMaskedDiffusion(model.config), train_dataset=rows).train()
    assert mean_loss(model) < 0.5 * before


MODELS = {
    "md4": {},
    "discrete time": {"num_train_timesteps": 8},
    "genmd4": {"learn_masking_schedule": True, "masking_schedule": "poly"},
    "classes": {"num_classes": 3},
    "classes that may be left out": {"num_classes": 3, "class_dropout": 0.5},
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_an_evaluation_of_a_plain_trainer_reports_its_loss(tmp_path, options):
    model = random_model(VOCAB + 1, LENGTH, std=0.1, **options)
    rows = features(32)
    if options == {"num_classes": 3}:
        rows = [{**row, "class_labels": number % 3} for number, row in enumerate(rows)]
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    collator = DataCollatorForMaskedDiffusion(model.config, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(model, args, eval_dataset=Dataset.from_list(rows), data_collator=collator)
    reported = trainer.evaluate()["eval_loss"]
    collator.generator.manual_seed(0)
    with torch.no_grad():
        expected = [model.eval()(**collator(rows[n : n + 8])).loss for n in range(0, 32, 8)]
    assert reported == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_a_missing_class_stays_missing():
    batch = DataCollatorForMaskedDiffusion(config(num_classes=3))(features(2))
    assert "class_labels" not in batch


def test_a_bare_accelerate_loop_trains_with_it():
    model = random_model(VOCAB + 1, LENGTH, std=0.1)
    before = mean_loss(model)
    collator = DataCollatorForMaskedDiffusion(model.config)
    loader = DataLoader(features(128), batch_size=16, shuffle=True, collate_fn=collator)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2), loader)
    model.train()
    for _ in range(8):
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    assert mean_loss(accelerator.unwrap_model(model)) < 0.5 * before
