# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Limits on a folder or repository of somebody else: it cannot run code, lead out of its folder, or learn a token."""

import ast
import io
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import outcome
from datasets import Dataset
from hub_server import WRITER_TOKEN
from safetensors.torch import load_file
from tiny import random_model, training_arguments
from transformers import AutoModel

from md4_hf import (
    LoraArguments,
    MaskedDiffusionPipeline,
    MD4ForMaskedDiffusion,
    MD4Trainer,
    MD4TrainingArguments,
    add_adapter,
    build_byte_tokenizer,
    load_adapter,
    load_model,
    load_pipeline,
    load_tokenizer,
    make_pipeline,
)
from md4_hf.cli.arguments import parse_arguments
from md4_hf.hub.adapters import fingerprint, save_base_record
from md4_hf.hub.convert_md4 import load_official_params
from md4_hf.training.checkpoints import commit


PACKAGE = Path(__file__).parents[1] / "src" / "md4_hf"
LENGTH = 16
PICKLES = ["pytorch_model.bin", "adapter_model.bin", "diffusion_pytorch_model.bin", "training_args.bin"]
PICKLES += ["optimizer.pt"]
CODE = ["modeling_md4.py", "configuration_md4.py", "tokenization.py", "remote_pipeline.py", "evil.py", "data.py"]


class Creates:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


@pytest.fixture
def mark(tmp_path):
    """A folder that foreign code makes when it runs; the test fails if it is there at the end."""
    folder = tmp_path / "code-has-run"
    yield folder
    assert not folder.exists()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("security") / "model"
    model = random_model(258, LENGTH, std=0.1, time_conditioning=False)
    make_pipeline(model, build_byte_tokenizer()).save_pretrained(folder, remote_code=True)
    return folder


@pytest.fixture(scope="module")
def adapter_folder(model_folder):
    folder = model_folder.with_name("adapter")
    model = add_adapter(load_model(str(model_folder)), LoraArguments(lora_r=1))
    model.save_pretrained(folder)
    save_base_record(fingerprint(model.get_base_model()), folder)
    build_byte_tokenizer().save_pretrained(folder)
    return folder


def copied(folder, to, *without):
    return shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*without))


def pickled(mark) -> bytes:
    stream = io.BytesIO()
    torch.save({"lm_head.weight": Creates(mark)}, stream)
    return stream.getvalue()


def poison(folder, mark):
    """Put pickles and code that leave the mark into a folder, in all places where a loader may look."""
    for name in PICKLES:
        (folder / name).write_bytes(pickled(mark))
    for name in CODE:
        (folder / name).write_text(f"from pathlib import Path\nPath({str(mark)!r}).mkdir(exist_ok=True)\n")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def edit(file, **changes):
    """Change fields of a json file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


SHORT = "--max_steps 1 --per_device_train_batch_size 2 --card_samples 0 --eval_strategy no --final_eval_draws 1"
SHORT += f" --report_to none --save_strategy no --data text.txt --block_size {LENGTH} --output_dir out"
# Every command that opens a model, with options that make it short.
COMMANDS = {
    "sample": "MODEL --num_inference_steps 1",
    "infill": "MODEL a<mask:2> --num_inference_steps 1",
    "evaluate": f"MODEL --data text.txt --block_size {LENGTH} --draws 1",
    "export": "MODEL out",
    "finetune": f"MODEL {SHORT}",
    "train": f"--model_name_or_path MODEL {SHORT}",
}
every_command = pytest.mark.parametrize("command", COMMANDS)


def run_command(command, folder, tmp_path, monkeypatch):
    """Exit status of a command that opens the model of a folder, and all that it prints."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog " * 30)
    return outcome([command, *COMMANDS[command].replace("MODEL", str(folder)).split()])


LOADERS = {
    "load_model": load_model,
    "load_pipeline": lambda folder: load_pipeline(folder, device="cpu"),
    "load_tokenizer": load_tokenizer,
    "AutoModel": AutoModel.from_pretrained,
    "MD4ForMaskedDiffusion": MD4ForMaskedDiffusion.from_pretrained,
    "MaskedDiffusionPipeline": MaskedDiffusionPipeline.from_pretrained,
}


# Pickles --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
def test_pickles_and_code_beside_a_model_are_not_opened(model_folder, tmp_path, mark, loader):
    folder = copied(model_folder, tmp_path / "model")
    poison(folder, mark)
    assert LOADERS[loader](str(folder)) is not None


@every_command
def test_no_command_opens_pickles_beside_a_model(model_folder, tmp_path, mark, monkeypatch, command):
    folder = copied(model_folder, tmp_path / "model")
    poison(folder, mark)
    status, printed = run_command(command, folder, tmp_path, monkeypatch)
    assert status == 0, printed


@pytest.mark.parametrize("loader", sorted(LOADERS.keys() - {"load_tokenizer"}))
def test_a_model_without_safetensors_is_refused(model_folder, tmp_path, mark, loader):
    folder = copied(model_folder, tmp_path / "model", "*.safetensors")
    poison(folder, mark)
    with pytest.raises(OSError, match="safetensors"):
        LOADERS[loader](str(folder))


@every_command
def test_every_command_refuses_a_model_without_safetensors(model_folder, tmp_path, mark, monkeypatch, command):
    folder = copied(model_folder, tmp_path / "model", "*.safetensors")
    poison(folder, mark)
    status, printed = run_command(command, folder, tmp_path, monkeypatch)
    assert status == 1 and "safetensors" in printed and not (tmp_path / "out").exists()


def test_a_configuration_cannot_name_a_pickle_as_the_weights(model_folder, tmp_path, mark):
    folder = copied(model_folder, tmp_path / "model")
    poison(folder, mark)
    edit(folder / "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(ValueError, match="`transformers_weights` must be left out"):
        load_model(str(folder))


def test_a_pickled_adapter_is_refused(model_folder, adapter_folder, tmp_path, mark):
    folder = copied(adapter_folder, tmp_path / "adapter", "*.safetensors")
    (folder / "adapter_model.bin").write_bytes(pickled(mark))
    for load in (load_model, partial(load_adapter, load_model(str(model_folder)))):
        with pytest.raises(OSError, match="`adapter` must have weights in adapter_model.safetensors"):
            load(str(folder))


def test_a_pickle_in_place_of_an_official_checkpoint_is_an_error(tmp_path, mark):
    (tmp_path / "weights").write_bytes(pickled(mark))
    with pytest.raises(ValueError, match="`checkpoint` must have well-formed files"):
        load_official_params(tmp_path / "weights")


def make_trainer(folder, **kwargs):
    ids = torch.arange(LENGTH).repeat(8, 1)
    options = {"per_device_train_batch_size": 2, "max_steps": 2, "save_strategy": "steps", "save_steps": 1, **kwargs}
    return MD4Trainer(
        model=random_model(258, LENGTH, std=0.1, time_conditioning=False),
        args=training_arguments(folder, **options),
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
        processing_class=build_byte_tokenizer(),
    )


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_runs_no_code(tmp_path, mark, name):
    make_trainer(tmp_path / "run").train()
    staged = copied(tmp_path / "run" / "checkpoint-1", tmp_path / "staged", "manifest.json")
    (staged / name).write_bytes(pickled(mark))
    commit(staged, tmp_path / "checkpoint-1")
    trainer = make_trainer(tmp_path / "run")
    if name == "training_args.bin":  # which nothing opens
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    else:
        with pytest.raises(ValueError, match=f"{name}.*UnpicklingError: Weights only load failed"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# Code -----------------------------------------------------------------------------------------------------------------


def calls():
    """The functions that the package calls, as `module.py: a.b.c`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.name, ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_nothing_in_the_package_can_open_a_pickle_or_run_a_file():
    forbidden = "pickle.load pickle.loads torch.load np.load joblib.load yaml.load yaml.unsafe_load".split()
    forbidden += ["eval", "exec", "compile", "os.system", "subprocess.run"]
    found = [(name, call, words) for name, call, words in calls() if call in forbidden]
    assert not [call for call in found if call[-1].get("weights_only") != "True"]


def test_no_call_of_the_package_trusts_remote_code():
    trusted = [(name, words["trust_remote_code"]) for name, _, words in calls() if "trust_remote_code" in words]
    assert {value for _, value in trusted} <= {"False", "trust_remote_code"}
    assert {name for name, value in trusted if value != "False"} == {"tokenizers.py"}, "as the user says"


@every_command
def test_code_of_an_unknown_model_is_not_run_even_if_the_user_says_yes(
    model_folder, tmp_path, mark, monkeypatch, command
):
    folder = copied(model_folder, tmp_path / "model")
    poison(folder, mark)
    names = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", "evil.T"]}
    edit(folder / "config.json", model_type="evil", auto_map=names)
    edit(folder / "tokenizer_config.json", auto_map=names, tokenizer_class="Evil")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert run_command(command, folder, tmp_path, monkeypatch)[0] == 1 and not (tmp_path / "out").exists()


def test_an_adapter_cannot_name_a_module_to_import(adapter_folder, tmp_path, mark, monkeypatch):
    folder = copied(adapter_folder, tmp_path / "adapter")
    poison(folder, mark)
    monkeypatch.syspath_prepend(folder)
    edit(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil")
    with pytest.raises(ValueError, match="`megatron_config` must be null"):
        load_model(str(folder))


def test_options_cannot_make_objects(tmp_path, mark):
    (tmp_path / "options.yaml").write_text(f"data: !!python/object/apply:os.mkdir [{mark}]\n")
    argv = ["--config", str(tmp_path / "options.yaml")]
    with pytest.raises(ValueError, match="`config` must be a YAML file"):
        parse_arguments((MD4TrainingArguments,), argv, prog="x", description="x")


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../weights.safetensors", "/weights.safetensors", "a/../../weights.safetensors", 5])
def test_an_index_of_weights_cannot_lead_out_of_its_folder(model_folder, tmp_path, name):
    folder = copied(model_folder, tmp_path / "model", "*.safetensors")
    shutil.copy(model_folder / "model.safetensors", tmp_path / "weights.safetensors")
    if name == "/weights.safetensors":
        name = str(tmp_path / "weights.safetensors")
    weights = dict.fromkeys(load_file(model_folder / "model.safetensors"), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    for loader in (load_model, MD4ForMaskedDiffusion.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match="`weight_map` in model.safetensors.index.json must name files beside it"):
            loader(str(folder))


def test_weights_in_several_files_are_opened(model_folder, tmp_path):
    model = load_model(str(model_folder))
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    again = load_model(str(tmp_path / "model"))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_what_is_saved_stays_in_its_folder(model_folder, tmp_path):
    folder = copied(model_folder, tmp_path / "model")
    templates = [{"name": "default", "template": "x"}, {"name": "../../../escaped", "template": "x"}]
    edit(folder / "tokenizer_config.json", chat_template=templates)
    before = set(tmp_path.rglob("*"))
    assert outcome(["export", str(folder), str(tmp_path / "a" / "b")])[0] == 1
    written = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert written <= {"a"} and not list(tmp_path.rglob("*escaped*"))


# Tokens ---------------------------------------------------------------------------------------------------------------

TRAIN_AND_SHARE = f"""
from md4_hf.cli import main

open("text.txt", "w").write("the quick brown fox jumps over the lazy dog " * 60)
main("train --preset tiny --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --block_size 16 --max_steps 2 "
     "--total_batch_size 4 --final_eval_draws 1 --data text.txt --card_samples 0 --save_steps 1 --output_dir run "
     "--push_to_hub --hub_model_id user/secret --hub_token {WRITER_TOKEN} --log_level debug".split())
"""


def test_a_token_is_in_nothing_that_is_printed_written_or_shared(hub, tmp_path):
    done = hub.run_python(TRAIN_AND_SHARE, home=tmp_path, HF_HUB_DISABLE_XET="1")
    assert WRITER_TOKEN not in done.stdout + done.stderr
    files = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*") if path.is_file()}
    shared = hub.repository("user/secret").branches["main"].files
    assert "run/model.safetensors" in files and "model.safetensors" in shared
    having = [name for name, path in files.items() if WRITER_TOKEN.encode() in path.read_bytes()]
    # transformers' own pickle, in checkpoints on this machine only.
    assert {Path(name).name for name in having} <= {"training_args.bin"}
    assert not [name for name, file in shared.items() if WRITER_TOKEN.encode() in file.data]


def test_arguments_do_not_show_their_token(tmp_path):
    args = MD4TrainingArguments(str(tmp_path), hub_token="hf_secret", report_to="none", use_cpu=True)
    assert "hf_secret" not in f"{args} {args!r} {args.to_dict()} {args.to_json_string()}"


def test_a_misspelled_option_does_not_print_its_value(model_folder):
    for words in (["--hub_tokn", "hf_secret"], ["--hub_tokn=hf_secret"]):
        status, printed = outcome(["sample", str(model_folder), *words])
        assert status == 2 and "--hub_tokn" in printed and "hf_secret" not in printed
