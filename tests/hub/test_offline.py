# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""What was opened once from the Hub opens without it too: models, adapters with their base, and tokenizers."""

import textwrap
import time
from functools import partial

import pytest
import torch
from hub_server import WRITER_TOKEN
from huggingface_hub import constants
from launching import run_python
from tiny import random_model
from transformers.utils import logging

from md4_hf import (
    LoraArguments,
    add_adapter,
    build_byte_tokenizer,
    load_documents,
    load_model,
    load_pipeline,
    load_tokenizer,
)
from md4_hf.hub.adapters import fingerprint, save_base_record


NOWHERE = "http://127.0.0.1:1"  # a port on which nothing listens
NAMES = ("user/base", "user/adapter", "user/plain-adapter")


def push():
    """Push a base and adapters for it, with and without a record of the base."""
    from huggingface_hub import HfApi

    random_model(258, 8, std=0.1, time_conditioning=False).push_to_hub("user/base")
    build_byte_tokenizer().push_to_hub("user/base")
    model = add_adapter(load_model("user/base"), LoraArguments(lora_r=2))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained("adapter")
    build_byte_tokenizer().save_pretrained("adapter")
    for name in ("user/plain-adapter", "user/adapter"):
        HfApi().create_repo(name)
        HfApi().upload_folder(repo_id=name, folder_path="adapter")
        save_base_record(fingerprint(model.get_base_model()), "adapter")


def no_waiting(seconds):
    raise AssertionError(f"{seconds} s would be waited")


def open_without_waiting():
    """As `open_all`; a client that waits to ask again fails."""
    time.sleep = no_waiting
    return open_all()


def open_all():
    """Weights of each model that is opened by its name, and ids of its tokenizer."""
    opened = {}
    for name in NAMES:
        load_pipeline(name, device="cpu")
        parameters = dict(load_model(name).named_parameters())
        weights = next(value.detach() for key, value in parameters.items() if "o_proj" in key)
        opened[name] = (weights, load_tokenizer(name)("text").input_ids)
    return opened


@pytest.mark.slow
def test_models_adapters_and_tokenizers_open_from_the_cache_without_waiting_for_a_connection(hub, tmp_path):
    hub.run_function(push, home=tmp_path / "pushing", token=WRITER_TOKEN, HF_HUB_DISABLE_XET="1")
    online = hub.run_function(open_all, home=tmp_path / "home")
    for variables in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}):
        cached = hub.run_function(open_without_waiting, home=tmp_path / "home", **variables)
        for name in NAMES:
            assert not torch.equal(online["user/base"][0], online[name][0]) or name == "user/base"
            torch.testing.assert_close(cached[name][0], online[name][0], rtol=0, atol=0)
            assert cached[name][1] == online[name][1]


@pytest.fixture
def no_connection(monkeypatch):
    """A Hub that does not answer, and clients that must not wait to ask again."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    monkeypatch.setattr("time.sleep", no_waiting)


OPEN = {
    "model": load_model,
    "pipeline": partial(load_pipeline, device="cpu"),
    "tokenizer": load_tokenizer,
    "documents": load_documents,
    "stream": partial(load_documents, streaming=True),
}


@pytest.mark.parametrize("open_name", OPEN.values(), ids=OPEN)
def test_without_a_connection_the_error_is_one_line_at_once(no_connection, open_name):
    with pytest.raises((OSError, ValueError)) as error:
        open_name("user/x")
    message = str(error.value)
    assert "could not reach the Hub for user/x; it is neither a path here nor all in the cache (" in message
    assert "\n" not in message and "Connection refused" in message
    assert not constants.HF_HUB_OFFLINE, "another name is tried anew"


def test_offline_the_error_names_the_switch():
    with pytest.raises(ConnectionError, match=r"Hub for user/x; .* \(HF_HUB_OFFLINE is set\)"):
        load_model("user/x")


def test_an_adapter_whose_base_cannot_be_reached_names_the_option(no_connection, tmp_path):
    adapter = add_adapter(random_model(258, 8, std=0.1, time_conditioning=False), LoraArguments(lora_r=2))
    adapter.peft_config["default"].base_model_name_or_path = "user/base"
    adapter.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"(?s)`base` must be given.*user/base.*not reach the Hub for user/base"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["nofolder", "./nofolder", "~/nofolder", "/no/folder", "a/b/c"])
def test_a_name_that_can_only_be_a_folder_is_not_looked_for_on_the_hub(no_connection, name):
    with pytest.raises(FileNotFoundError, match="`model` must be a .* folder or a Hub id, got .*: no such folder"):
        load_model(name)


def test_a_command_looks_for_the_folder_before_it_imports_torch():
    code = """
    import sys
    from md4_hf.cli import main
    try:
        main(["sample", "nofolder"])
    except SystemExit as stop:
        print(stop.code, "torch" in sys.modules)
    """
    assert run_python("-c", textwrap.dedent(code)).split() == ["1", "False"]


@pytest.mark.parametrize("name", ["tokenizer.json", "bytes.json"])
def test_a_file_of_a_tokenizer_opens_without_the_hub(no_connection, tmp_path, name):
    tokenizer = build_byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / name)
    opened = load_tokenizer(str(tmp_path / name))
    assert opened("text").input_ids == tokenizer("text").input_ids
    assert opened.mask_token_id == tokenizer.mask_token_id and len(opened) == len(tokenizer)


# Bars -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small_bytes, has_bar", [(2**30, False), (1, True)])
def test_only_large_weights_are_loaded_with_a_bar(tmp_path, monkeypatch, capsys, small_bytes, has_bar):
    random_model(258, 8, std=0.1).save_pretrained(tmp_path)
    monkeypatch.setattr("md4_hf.hub.loading.BYTES_WITHOUT_BAR", small_bytes)
    monkeypatch.setattr(logging, "_tqdm_active", True)
    capsys.readouterr()
    load_model(str(tmp_path))
    assert ("Loading weights" in capsys.readouterr().err) == has_bar
    assert logging.is_progress_bar_enabled()
