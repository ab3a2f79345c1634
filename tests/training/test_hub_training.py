# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Training that shares its model: the repositories that `MD4Trainer` and `md4` leave on a Hub, over real HTTP."""

from pathlib import Path

import pytest
import torch
import yaml
from clean_environment import MODEL_CODE
from commands import error_of, outcome
from datasets import Dataset
from hub_server import WRITER_TOKEN, WRONG_TOKEN
from tiny import ADAPTER_FILES, logits_of, random_model, training_arguments

from md4_hf import (
    LoraArguments,
    MaskedDiffusionPipeline,
    MD4Trainer,
    add_adapter,
    build_text8_tokenizer,
    load_model,
    load_pipeline,
)


LENGTH = 16
MODEL_FILES = {*MODEL_CODE, *"README.md config.json loss.png model.safetensors model_index.json".split()}
MODEL_FILES |= {"scheduler_config.json", "tokenizer.json", "tokenizer_config.json"}
TRAIN = ["train", "--preset", "tiny", "--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2"]
TRAIN += ["--block_size", "16", "--max_steps", "2", "--total_batch_size", "4", "--final_eval_draws", "1"]
TRAIN += ["--data", "text.txt", "--card_samples", "0", "--push_to_hub"]


def make_trainer(folder, model, **kwargs):
    ids = torch.arange(LENGTH).repeat(16, 1) % 27
    defaults = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "steps", "ema_decay": 0.5}
    defaults |= {"push_to_hub": True, "license": "cc0-1.0"}
    return MD4Trainer(
        model=model,
        args=training_arguments(folder, **{**defaults, **kwargs}),
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
        eval_dataset=Dataset.from_dict({"input_ids": ids[:4].tolist()}),
        processing_class=build_text8_tokenizer(),
    )


def logits(model):
    return logits_of(model, LENGTH)


# In a process of its own ----------------------------------------------------------------------------------------------


def share():
    """Train and share a model and an adapter for it, with the trainer and with the command; and fail to."""
    result = {}
    trainer = make_trainer("run", random_model(28, LENGTH, std=0.3), hub_model_id="user/run", save_steps=2)
    trainer.train()
    trainer.evaluate()
    trainer._finish_current_push()
    trainer.push_to_hub(data="the alphabet", language=["en"])
    with trainer.ema_weights():
        result["averaged"] = logits(trainer.model)
    result["raw"] = logits(trainer.model)
    result["left behind"] = [path.name for path in Path("run").iterdir()]

    adapted = add_adapter(load_model("user/run"), LoraArguments(lora_r=2))
    trainer = make_trainer("adapter", adapted, hub_model_id="user/adapter", save_strategy="no", ema_decay=0.0)
    trainer.train()
    trainer.push_to_hub()
    result["adapted"] = logits(trainer.model)

    options = {"hub_model_id": "user/wrong", "hub_token": WRONG_TOKEN}
    result["wrong token"] = error_of(make_trainer, "w", random_model(28, LENGTH, std=0.3), **options)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog " * 60)
    result["train"] = outcome([*TRAIN, "--output_dir", "cli", "--hub_model_id", "user/cli", "--license", "mit"])
    result["cut off"] = outcome([*TRAIN, "--output_dir", "cut", "--hub_model_id", "user/cut"])
    result["cut off, here"] = logits(load_model("cut"))
    options = ["--data", "text.txt", "--max_steps", "1", "--final_eval_draws", "1", "--eval_strategy", "no"]
    options += ["--card_samples", "0", "--output_dir", "cli-adapter"]
    options += ["--push_to_hub", "--hub_model_id", "user/cli-adapter"]
    result["finetune"] = outcome(["finetune", "user/cli", *options])
    result["export"] = outcome(["export", "user/cli-adapter", "merged", "--push_to_hub", "user/merged"])
    result["merged"] = logits(load_model("merged"))
    return result


def load():
    """Load all that was shared, in a process that has shared nothing."""
    pipeline = MaskedDiffusionPipeline.from_pretrained("user/run")
    return {
        "run": logits(pipeline.model),
        "first push": logits(load_model("user/run", revision="step-2")),
        "adapter": logits(load_model("user/adapter")),
        "adapter pipeline": load_pipeline("user/adapter", device="cpu").scheduler.config.mask_token_id,
        "cli": outcome(["sample", "user/cli-adapter", "--num_inference_steps", "2"]),
        "merged": logits(load_model("user/merged")),
    }


# The tests ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(hub, tmp_path_factory):
    hub.misbehave("POST", "/user/cut/commit", after_bytes=100, times=1000)
    return hub.run_function(share, home=tmp_path_factory.mktemp("share"), token=WRITER_TOKEN, HF_HUB_DISABLE_XET="1")


@pytest.fixture(scope="module")
def loaded(hub, shared, tmp_path_factory):
    repository = hub.repository("user/run")
    commits = repository.branches["main"].history()
    repository.tags["step-2"] = next(c for c in commits if c.title == "Training in progress, step 2")
    return hub.run_function(load, home=tmp_path_factory.mktemp("load"))


def metadata(hub, name):
    return yaml.safe_load(hub.files(name)["README.md"].split(b"---")[1])


def test_a_run_shares_its_averaged_weights_as_it_goes_and_at_the_end(hub, shared, loaded):
    assert hub.titles("user/run")[0] == "End of training"
    assert "Training in progress, step 2" in hub.titles("user/run")
    assert torch.equal(loaded["run"], shared["averaged"]) and not torch.equal(loaded["run"], shared["raw"])
    assert not torch.equal(loaded["first push"], loaded["run"])


def test_what_is_shared_is_one_flat_repository_without_a_pickle(hub, shared):
    assert hub.files("user/run").keys() - {".gitattributes"} == MODEL_FILES
    assert hub.files("user/adapter").keys() - {".gitattributes"} == ADAPTER_FILES
    assert not any(name.startswith(".") for name in shared["left behind"]), "uploads leave nothing behind"


def test_the_card_has_what_the_hub_reads_and_what_a_reader_asks(hub, shared):
    card = hub.files("user/run")["README.md"].decode()
    data = metadata(hub, "user/run")
    assert data["library_name"] == "transformers" and data["license"] == "cc0-1.0" and data["language"] == ["en"]
    assert data["pipeline_tag"] == "text-generation" and {"md4", "masked-diffusion"} <= set(data["tags"])
    (entry,) = data["model-index"]
    rows = {row["type"]: row["value"] for row in entry["results"][0]["metrics"]}
    assert entry["name"] == "run" and rows["perplexity"] > 1 and f"{rows['nelbo']:.4f} ±" in card
    for text in ("the alphabet", "| Tokens seen | 256 |", "| Optimizer steps | 4 |", "(loss.png)", "## Samples"):
        assert text in card
    for text in ('MaskedDiffusionPipeline.from_pretrained("user/run")', "trust_remote_code=True", "1 draws"):
        assert text in card
    adapter = metadata(hub, "user/adapter")
    assert (adapter["library_name"], adapter["base_model"]) == ("peft", "user/run")


def test_an_adapter_on_the_hub_finds_its_base_there(shared, loaded):
    torch.testing.assert_close(loaded["adapter"], shared["adapted"], atol=1e-5, rtol=1e-5)
    assert loaded["adapter pipeline"] == 27
    assert 0 < len(loaded["cli"][1].splitlines()[-1]) <= LENGTH, "bytes, some of which are no character"


def test_a_wrong_token_is_an_error_before_the_training(hub, shared):
    assert "401" in shared["wrong token"] and "Invalid credentials" in shared["wrong token"]
    assert ("models", "user/wrong") not in hub.repositories


def test_the_command_shares_what_it_trains(hub, shared):
    assert "Uploaded to user/cli" in shared["train"][1]
    assert hub.files("user/cli").keys() - {".gitattributes"} == MODEL_FILES
    assert metadata(hub, "user/cli")["license"] == "mit" and metadata(hub, "user/cli")["pipeline_tag"] == "fill-mask"
    assert "Uploaded to user/cli-adapter" in shared["finetune"][1]
    assert hub.files("user/cli-adapter").keys() - {".gitattributes"} == ADAPTER_FILES


def test_a_model_that_cannot_be_uploaded_is_not_lost(hub, shared):
    status, printed = shared["cut off"]
    line = printed.splitlines()[-1]
    assert line.startswith("md4 train: could not reach the Hub for user/cut (")
    assert status == 1 and "); the folder is complete: cut. To try again: hf upload user/cut cut ." in line
    assert hub.titles("user/cut") == ["initial commit"] and shared["cut off, here"].isfinite().all()


def test_an_export_merges_an_adapter_and_uploads_it_with_its_code(hub, shared, loaded):
    assert torch.equal(loaded["merged"], shared["merged"])
    assert "remote_pipeline.py" in hub.files("user/merged")
