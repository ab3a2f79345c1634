# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Samples at each evaluation of a training: of the averaged weights, without a trace in the training."""

import io
import math
import os
from pathlib import Path

import PIL.Image
import pytest
import torch
from datasets import Dataset
from tiny import quiet, random_image_model, random_model, seeded, trained, training_arguments, weights

from md4_hf import MD4ImageProcessor, MD4Trainer, build_byte_tokenizer, load_model, make_pipeline
from md4_hf.training.samples import add_section, markdown_of


LENGTH = 12
TOKENIZER = build_byte_tokenizer()
BITS = {"eval_loss_stderr": 0.1 * math.log(2), "eval_bits_per_token": 2.5, "eval_bits_per_token_stderr": 0.1}
EVALUATIONS = {"eval_strategy": "steps", "eval_steps": 2, "text_sample_steps": 4}


def texts(count, seed=0):
    ids = torch.randint(97, 123, (count, LENGTH), generator=seeded(seed))
    return Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")


def make_trainer(folder, **options):
    """A trainer of a model with dropout, whose masks come from the global generator."""
    model = random_model(len(TOKENIZER), LENGTH, std=0.2, residual_dropout=0.2)
    args = training_arguments(folder, **{**EVALUATIONS, "ema_decay": 0.5, **options})
    return MD4Trainer(model, args, train_dataset=texts(32), eval_dataset=texts(4, 1), processing_class=TOKENIZER)


def headings(folder):
    lines = (folder / "samples.md").read_text(encoding="utf-8").splitlines()
    return [line.partition(":")[0] for line in lines if line.startswith("## ")]


def test_samples_leave_no_trace_in_a_training(tmp_path):
    ends = []
    for count in (0, 3):
        torch.manual_seed(5)
        trainer = trained(make_trainer(tmp_path / str(count), text_samples=count))
        ends.append(
            (weights(trainer.model), torch.get_rng_state(), [x.get("eval_loss") for x in trainer.state.log_history])
        )
    for plain, drawn in zip(*ends, strict=True):
        assert torch.equal(plain, drawn) if isinstance(plain, torch.Tensor) else plain == drawn
    assert not (tmp_path / "0" / "samples.md").exists()
    assert headings(tmp_path / "3") == ["## Step 2", "## Step 4"]
    assert [path.name for path in (tmp_path / "3").iterdir()] == ["samples.md"]


def test_the_page_has_samples_of_the_averaged_weights_below_the_loss(tmp_path):
    trainer = trained(make_trainer(tmp_path / "run", text_samples=2))
    trainer.save_model(str(tmp_path / "averaged"))
    pipe = quiet(make_pipeline(load_model(str(tmp_path / "averaged")), tokenizer=TOKENIZER))
    expected = pipe(num_samples=2, num_inference_steps=4, generator=seeded(trainer.args.seed)).texts
    page = (tmp_path / "run" / "samples.md").read_text(encoding="utf-8")
    assert page.split("## Step 4")[1].endswith(f"\n\n{markdown_of(expected)}\n")
    bits = trainer.state.log_history[-2]["eval_bits_per_token"]
    assert f"## Step 4: {bits:.3f}" in page
    trainer.evaluate()
    assert (tmp_path / "run" / "samples.md").read_text(encoding="utf-8") == page, "only while training"


def test_samples_begin_with_the_prompt_of_the_card(tmp_path):
    trainer = make_trainer(tmp_path / "run", text_samples=2)
    trainer.card_facts.sample_prompt = "abc"
    trainer.train()
    page = (tmp_path / "run" / "samples.md").read_text(encoding="utf-8")
    assert page.count("    abc") == 4


def test_a_resumed_training_has_each_section_once_and_a_new_one_its_own(tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    trained(make_trainer(tmp_path, **options))
    page = (tmp_path / "samples.md").read_text(encoding="utf-8")
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert (tmp_path / "samples.md").read_text(encoding="utf-8") == page
    assert headings(tmp_path) == ["## Step 2", "## Step 4", "## Step 6"]
    trained(make_trainer(tmp_path, max_steps=6, eval_steps=6))
    assert headings(tmp_path) == ["## Step 6"]


def test_no_text_is_taken_for_a_section(tmp_path):
    page = tmp_path / "samples.md"
    add_section(page, 1000, BITS, markdown_of(["a\n## Step 9\n```\n# b\r## Step 1", ""]))
    add_section(page, 2000, None, markdown_of(["c"]))
    assert page.read_text(encoding="utf-8").split("## Step 1,000")[1] == (
        ": 2.500 ± 0.100 bits/token\n\n1.\n\n    a\n    ## Step 9\n    ```\n    # b\n    ## Step 1\n\n2.\n\n    \n\n"
        "## Step 2,000\n\n    c\n\n"
    )
    add_section(page, 1500, None, markdown_of(["d"]))
    assert headings(tmp_path) == ["## Step 1,000", "## Step 1,500"]


def make_image_trainer(folder, **options):
    """A trainer of a model of small images."""
    model = random_image_model(4, 4)
    examples = [{"input_ids": torch.randint(4, (1, 4, 4), generator=seeded(n))} for n in range(8)]
    args = training_arguments(folder, **EVALUATIONS, image_samples=3, image_sample_steps=2, **options)
    processor = MD4ImageProcessor.for_config(model.config)
    return MD4Trainer(model, args, train_dataset=examples, eval_dataset=examples[:2], processing_class=processor)


def pixels(path):
    with PIL.Image.open(path) as picture:
        return picture.convert("RGB").tobytes()


def kept_pictures(folder):
    """Pixels of the pictures of both evaluations."""
    return [pixels(folder / "samples" / f"step-{step}.png") for step in (2, 4)]


def test_pictures_are_kept_by_step(tmp_path):
    trained(make_image_trainer(tmp_path))
    page = (tmp_path / "samples.md").read_text(encoding="utf-8")
    assert headings(tmp_path) == ["## Step 2", "## Step 4"]
    for step in (2, 4):
        assert f"![Samples](samples/step-{step}.png)" in page
        with PIL.Image.open(tmp_path / "samples" / f"step-{step}.png") as picture:
            assert picture.size[0] > 400
    assert (tmp_path / "samples.png").read_bytes() == (tmp_path / "samples" / "step-4.png").read_bytes()


def test_other_processes_and_models_in_shards_draw_nothing(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, text_samples=2)
    for name in ("is_fsdp_enabled", "is_deepspeed_enabled"):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, name, True)
            trainer.samples.at_evaluation({})
    with monkeypatch.context() as patch:
        patch.setattr(type(trainer.args), "should_save", False)
        trainer.samples.at_evaluation({})
    assert list(tmp_path.iterdir()) == []


# Services: those of the extra `tracking` ------------------------------------------------------------------------------


@pytest.fixture
def tensorboard(tmp_path, monkeypatch):
    """A function that reads what was sent to TensorBoard."""
    pytest.importorskip("tensorboard", reason="needs the extra `tracking`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    return lambda: EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0, "images": 0}).Reload()


def test_tensorboard_has_the_texts_of_each_evaluation(tensorboard, tmp_path):
    trained(make_trainer(tmp_path / "run", report_to="tensorboard"))
    events = tensorboard()
    found = events.Tensors("samples/text_summary")
    page = (tmp_path / "run" / "samples.md").read_text(encoding="utf-8")
    assert [event.step for event in found] == [2, 4]
    (text,) = found[-1].tensor_proto.string_val
    assert text.decode().splitlines()[0] in page.split("## Step 4")[1]


def test_tensorboard_has_the_pictures_of_each_evaluation(tensorboard, tmp_path):
    trained(make_image_trainer(tmp_path / "run", report_to="tensorboard"))
    found = tensorboard().Images("samples")
    assert [event.step for event in found] == [2, 4]
    assert [pixels(io.BytesIO(event.encoded_image_string)) for event in found] == kept_pictures(tmp_path / "run")


@pytest.fixture
def wandb_logs(tmp_path, monkeypatch):
    """All that is sent to Weights & Biases, which keeps it in a folder `wandb` here."""
    wandb = pytest.importorskip("wandb", reason="needs the extra `tracking`")
    logged = []
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    run = wandb.sdk.wandb_run.Run
    log = run.log

    def note(own, data, *args, **kwargs):
        logged.append(data)
        return log(own, data, *args, **kwargs)

    monkeypatch.setattr(run, "log", note)
    yield logged
    wandb.finish()


def test_wandb_has_a_table_of_texts(wandb_logs, tmp_path):
    trained(make_trainer(tmp_path / "run", report_to="wandb"))
    tables = [data["samples"] for data in wandb_logs if "samples" in data]
    assert [table.data[0][0] for table in tables] == [2, 4] and all(len(table.data) == 2 for table in tables)


def test_wandb_has_the_pictures(wandb_logs, tmp_path):
    trained(make_image_trainer(tmp_path / "run", report_to="wandb"))
    sent = [data for data in wandb_logs if "samples" in data]
    assert [data["train/global_step"] for data in sent] == [2, 4]
    assert [data["samples"].image.convert("RGB").tobytes() for data in sent] == kept_pictures(tmp_path / "run")


@pytest.fixture
def trackio_logs(monkeypatch):
    """All that is sent to Trackio, which keeps it in the tests' own cache."""
    trackio = pytest.importorskip("trackio", reason="needs the extra `tracking`")
    logged = []
    log = trackio.log
    monkeypatch.setattr(
        trackio, "log", lambda data, *args, **kwargs: logged.append(data) or log(data, *args, **kwargs)
    )
    return logged


def test_trackio_has_a_table_of_texts(trackio_logs, tmp_path):
    trained(make_trainer(tmp_path / "run", report_to="trackio"))
    sent = [data for data in trackio_logs if "samples" in data]
    assert [data["train/global_step"] for data in sent] == [2, 4]
    page = (tmp_path / "run" / "samples.md").read_text(encoding="utf-8")
    for row in sent[-1]["samples"].data:
        assert row["step"] == 4 and row["text"].splitlines()[0] in page.split("## Step 4")[1]


def test_trackio_has_the_pictures(trackio_logs, tmp_path):
    trained(make_image_trainer(tmp_path / "run", report_to="trackio"))
    sent = [data for data in trackio_logs if "samples" in data]
    assert [data["train/global_step"] for data in sent] == [2, 4]
    kept = [*Path(os.environ["HF_HOME"]).glob("trackio/media/**/*.png")]
    assert sorted(map(pixels, kept)) == sorted(kept_pictures(tmp_path / "run"))
