# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""What was opened once from the Hub opens without it too: models, adapters with their base, and tokenizers."""

import torch
from hub_server import WRITER_TOKEN
from tiny import random_model

from md4_hf import (
    LoraArguments,
    add_adapter,
    build_byte_tokenizer,
    load_model,
    load_pipeline,
    load_tokenizer,
)
from md4_hf.hub.adapters import fingerprint, save_base_record


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


def open_all():
    """Weights of each model that is opened by its name, and ids of its tokenizer."""
    opened = {}
    for name in NAMES:
        load_pipeline(name, device="cpu")
        parameters = dict(load_model(name).named_parameters())
        weights = next(value.detach() for key, value in parameters.items() if "o_proj" in key)
        opened[name] = (weights, load_tokenizer(name)("text").input_ids)
    return opened


def test_models_adapters_and_tokenizers_open_from_the_cache(hub, tmp_path):
    hub.run_function(push, home=tmp_path / "pushing", token=WRITER_TOKEN, HF_HUB_DISABLE_XET="1")
    online = hub.run_function(open_all, home=tmp_path / "home")
    offline = hub.run_function(open_all, home=tmp_path / "home", HF_HUB_OFFLINE="1")
    for name in NAMES:
        assert not torch.equal(online["user/base"][0], online[name][0]) or name == "user/base"
        torch.testing.assert_close(offline[name][0], online[name][0], rtol=0, atol=0)
        assert offline[name][1] == online[name][1]
