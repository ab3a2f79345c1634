# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Pushing to a Hub and loading by id from it, over real HTTP: contents, and the state after failures.

The functions above the tests run in processes of their own, whose Hub is the server of `hub_server.py` and whose cache
is empty. Few processes serve all tests: starting one takes longer than what it does.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import error_of, outcome
from diffusers import DiffusionPipeline
from hub_server import READER_TOKEN, WRITER_TOKEN, WRONG_TOKEN
from tiny import logits_of, random_model
from transformers import AutoConfig, AutoModel, AutoTokenizer

from md4_hf import MaskedDiffusionPipeline, MaskedDiffusionScheduler, build_text8_tokenizer, load_documents
from md4_hf.cli import main


LENGTH = 24
FLAT_FILES = {"config.json", "model.safetensors", "tokenizer.json", "scheduler_config.json", "model_index.json"}


def make_pipeline(seed):
    model = random_model(28, LENGTH, std=0.3, seed=seed)
    return MaskedDiffusionPipeline(model, MaskedDiffusionScheduler(num_inference_steps=4), build_text8_tokenizer())


def logits(model):
    return logits_of(model, LENGTH)


def sample(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(num_samples=2, generator=torch.Generator().manual_seed(0)).texts


# In a process of its own: push ----------------------------------------------------------------------------------------


def push():
    """Push every kind of thing, with right and wrong tokens."""
    from huggingface_hub import HfApi
    from peft import LoraConfig, get_peft_model

    older, newer = make_pipeline(1), make_pipeline(2)
    first = older.push_to_hub("user/flat", commit_message="Older")
    HfApi().create_branch("user/flat", branch="stable/one")
    HfApi().create_tag("user/flat", tag="v1")
    newer.push_to_hub("user/flat", commit_message="Newer")
    unchanged = newer.push_to_hub("user/flat", commit_message="Again")

    Path("saved/extra").mkdir(parents=True)
    Path("saved/extra/notes.txt").write_text("notes")
    Path("saved/README.md").write_text("---\nlibrary_name: md4_hf\n---\nMine.\n")
    newer.save_pretrained("saved", push_to_hub=True, private=True, commit_message="Saved")

    newer.save_pretrained("remote", push_to_hub=True, remote_code=True)
    for part in (newer.model, newer.tokenizer, newer.scheduler):
        part.push_to_hub("user/parts")

    pushes = {
        "pipeline": older.push_to_hub,
        "model": older.model.push_to_hub,
        "tokenizer": older.tokenizer.push_to_hub,
        "scheduler": older.scheduler.push_to_hub,
        "saved pipeline": lambda name, token: older.save_pretrained(
            "out", push_to_hub=True, repo_id=name, token=token
        ),
    }
    failures = {
        (part, kind, repository): error_of(push_part, repository, token=token)
        for part, push_part in pushes.items()
        for kind, token in {"wrong": WRONG_TOKEN, "reader": READER_TOKEN, "none": False}.items()
        for repository in ("user/flat", "user/new")
    }

    torch.manual_seed(3)
    adapted = get_peft_model(newer.model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapted.push_to_hub("user/adapter")
    return {"first": first.oid, "unchanged": unchanged.oid, "adapted": logits(adapted), "failures": failures}


# In a process of its own: load ----------------------------------------------------------------------------------------


def load(first):
    """Load by id what `push` has pushed, whose first commit is `first`, and what cannot be loaded."""
    from peft import PeftModel

    revisions = (first, "stable/one", "v1", "main")
    model = AutoModel.from_pretrained("user/flat")
    return {
        "failures": load_failures(),
        "config": AutoConfig.from_pretrained("user/flat").to_dict(),
        "tokenizer": AutoTokenizer.from_pretrained("user/flat").get_vocab(),
        "scheduler": MaskedDiffusionScheduler.from_pretrained("user/flat").config.num_inference_steps,
        "model": logits(model),
        "MaskedDiffusionPipeline": sample(MaskedDiffusionPipeline.from_pretrained("user/flat")),
        "DiffusionPipeline": sample(DiffusionPipeline.from_pretrained("user/flat")),
        "model at": {name: logits(AutoModel.from_pretrained("user/flat", revision=name)) for name in revisions},
        "pipeline at": {
            name: sample(MaskedDiffusionPipeline.from_pretrained("user/flat", revision=name)) for name in revisions
        },
        "parts": logits(AutoModel.from_pretrained("user/parts")),
        "private": sample(MaskedDiffusionPipeline.from_pretrained("user/saved", token=WRITER_TOKEN)),
        "adapted": logits(PeftModel.from_pretrained(model, "user/adapter")),
        "texts": load_documents("user/texts")["text"][:],
        "older texts": load_documents("user/texts", revision="v1")["text"][:],
        "changing": {
            f"{name}, {'stream' if streaming else 'on disk'}": tell(load_documents, name, streaming=streaming)
            for name in ("user/texts", "user/late-json", "user/map-parquet")
            for streaming in (False, True)
        },
        "no such column": [
            tell(load_documents, "user/late-json", text_column="body", streaming=streaming)
            for streaming in (False, True)
        ],
        "md4 sample": outcome(["sample", "user/flat", "--seed", "0", "--num_samples", "2"]),
        "md4 evaluate": evaluate("user/flat"),
        "md4 failure": outcome(["sample", "user/missing"]),
    }


def tell(load, *args, **kwargs):
    """The texts that a function loads, or its error."""
    try:
        return [row["text"] for row in load(*args, **kwargs)]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def evaluate(name):
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog " * 20)
    options = ["--validation_data", "text.txt", "--draws", "1", "--use_cpu", "--output_file", "out.json"]
    main(["evaluate", name, *options])
    return json.loads(Path("out.json").read_text())["metrics"]


# What is asked for, and what the error has to say.
LOAD_FAILURES = {
    "model that does not exist": (AutoModel, "user/missing", {}, "user/missing is not a local folder"),
    "pipeline that does not exist": (MaskedDiffusionPipeline, "user/missing", {}, "Repository Not Found"),
    "tokenizer that does not exist": (AutoTokenizer, "user/missing", {}, "user/missing is not a local folder"),
    "revision that does not exist": (AutoModel, "user/flat", {"revision": "v9"}, "v9 is not a valid git identifier"),
    "pipeline revision": (MaskedDiffusionPipeline, "user/flat", {"revision": "v9"}, "Revision Not Found"),
    "no weights": (AutoModel, "user/weightless", {}, "user/weightless does not appear to have a file named"),
    "pipeline without weights": (MaskedDiffusionPipeline, "user/weightless", {}, "no file named model.safetensors"),
    "pipeline without index": (MaskedDiffusionPipeline, "user/parts", {}, "model_index.json"),
    "wrong token": (AutoModel, "user/saved", {"token": WRONG_TOKEN}, "Invalid credentials in Authorization header"),
    "pipeline, wrong token": (MaskedDiffusionPipeline, "user/saved", {"token": WRONG_TOKEN}, "Invalid credentials"),
    "somebody else's token": (AutoModel, "user/saved", {"token": READER_TOKEN}, "If this is a private repository"),
    "no token": (AutoModel, "user/saved", {}, "If this is a private repository"),
    "pipeline, no token": (MaskedDiffusionPipeline, "user/saved", {}, "trying to access a private or gated repo"),
    "gated": (AutoModel, "user/gated", {}, "You are trying to access a gated repo"),
}


def load_failures():
    cases = LOAD_FAILURES.items()
    return {case: error_of(loader.from_pretrained, name, **options) for case, (loader, name, options, _) in cases}


# Loading without this package, by the code that was pushed.
LOAD_REMOTE_CODE = """
import sys

sys.modules["md4_hf"] = None  # as if it were not installed

import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel

model = AutoModel.from_pretrained("user/remote", trust_remote_code=True).eval()
ids = torch.arange(2 * 24).reshape(2, 24) % 28
with torch.no_grad():
    logits = model(ids, timesteps=torch.tensor([0.3, 0.8])).logits
pipeline = DiffusionPipeline.from_pretrained("user/remote", trust_remote_code=True)
texts = pipeline(num_samples=2, generator=torch.Generator().manual_seed(0)).texts
torch.save({"logits": logits, "texts": texts}, "result.pt")
"""


# In a process of its own: bad connections -----------------------------------------------------------------------------

# By repository: what happens to the weights on their way down, the first time or always.
DOWNLOAD_FAULTS = {
    "once": {"after_bytes": 50_000},
    "pipeline-once": {"after_bytes": 50_000},
    "never": {"after_bytes": 1000, "times": 1000},
    "pipeline-never": {"after_bytes": 1000, "times": 1000},
    "reset": {"after_bytes": 50_000, "reset": True},
    "broken": {"status": 500},
}
FAILED_DOWNLOADS = ("never", "pipeline-never", "reset", "broken")
# By repository: what happens to which request of a push.
UPLOAD_FAULTS = {
    "put-once": ("PUT", "", {"after_bytes": 1000}),
    "put-reset": ("PUT", "", {"after_bytes": 1000, "reset": True}),
    "put-never": ("PUT", "", {"after_bytes": 1000, "times": 1000}),
    "busy": ("POST", "preupload", {"status": 503}),
    "cut-commit": ("POST", "commit", {"after_bytes": 100}),
    "busy-commit": ("POST", "commit", {"status": 503}),
    "answer": ("POST", "commit", {"after_work": True}),
    "pipelined": ("POST", "commit", {"after_bytes": 100}),
}
FAILED_UPLOADS = ("put-never", "cut-commit", "busy-commit")


def bad_connections():
    """Downloads and uploads that are cut off, and once more when all is well."""
    from huggingface_hub import get_session

    time.sleep = lambda seconds: None  # the client waits before it tries again
    result = {
        "downloads": cut_off_downloads(),
        "cached": {name: cached_files(name) for name in FAILED_DOWNLOADS},
        "uploads": cut_off_uploads(),
        "commits": {name: commit_titles(name) for name in UPLOAD_FAULTS},
    }
    get_session().delete(os.environ["HF_ENDPOINT"] + "/faults").raise_for_status()
    result["later downloads"] = {name: logits(AutoModel.from_pretrained(f"user/{name}")) for name in FAILED_DOWNLOADS}
    for name in (*FAILED_UPLOADS, "answer"):
        make_pipeline(1).model.push_to_hub(f"user/{name}")
    result["later commits"] = {name: commit_titles(name) for name in UPLOAD_FAULTS}
    return result


def cut_off_downloads():
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = 4096  # a download is taken up after the last whole chunk
    loaders = {name: MaskedDiffusionPipeline if name.startswith("pipeline") else AutoModel for name in DOWNLOAD_FAULTS}
    return {name: error_of(loader.from_pretrained, f"user/{name}") for name, loader in loaders.items()}


def cut_off_uploads():
    from huggingface_hub import constants

    names = UPLOAD_FAULTS.keys() - {"pipelined"}
    failures = {name: error_of(make_pipeline(1).model.push_to_hub, f"user/{name}") for name in names}
    # What most users have: with Xet, a folder goes another way. The server takes these files without it.
    constants.HF_HUB_DISABLE_XET = False
    failures["pipelined"] = error_of(make_pipeline(1).push_to_hub, "user/pipelined")
    constants.HF_HUB_DISABLE_XET = True
    return failures


def cached_files(name):
    """The files that the cache holds of a repository, as the names by which a loader would take them for whole."""
    folder = Path(os.environ["HF_HOME"]) / "hub" / f"models--user--{name}"
    snapshots = {path.name: path.read_bytes() for path in folder.glob("snapshots/*/*")}
    return {**snapshots, **{path.name: path.read_bytes() for path in folder.glob("blobs/*")}}


def commit_titles(name):
    from huggingface_hub import HfApi

    return [commit.title for commit in HfApi().list_repo_commits(f"user/{name}")]


# The tests ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    return hub.run_function(push, home=tmp_path_factory.mktemp("push"), token=WRITER_TOKEN, HF_HUB_DISABLE_XET="1")


@pytest.fixture(scope="module")
def loaded(hub, pushed, tmp_path_factory):
    """Results of `load` on the pushed repositories; its process has no token."""
    files = hub.files("user/flat")
    hub.add_files("user/gated", files)
    hub.add_files("user/weightless", {path: data for path, data in files.items() if path != "model.safetensors"})
    hub.repository("user/gated").gated = True
    for texts in (["one"], ["one", "two"]):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        hub.add_files("user/texts", {"data/train.jsonl": lines.encode()}, kind="datasets")
    late = json.dumps({"text": "x" * 12_000_000, "meta": None}) + '\n{"text": "late", "meta": {"url": "x"}}\n'
    hub.add_files("user/late-json", {"train.jsonl": late.encode()}, kind="datasets")
    sink = pa.BufferOutputStream()
    tags = pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"text": pa.array(["one", "two"], pa.string_view()), "tags": tags}), sink)
    hub.add_files("user/map-parquet", {"train.parquet": sink.getvalue().to_pybytes()}, kind="datasets")
    texts = hub.repository("user/texts", kind="datasets")
    texts.tags["v1"] = texts.branches["main"].parent
    return hub.run_function(load, pushed["first"], home=tmp_path_factory.mktemp("load"))


@pytest.fixture(scope="module")
def transferred(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfers")
    make_pipeline(1).save_pretrained(folder / "model")
    files = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    for name, options in DOWNLOAD_FAULTS.items():
        hub.add_files(f"user/{name}", files)
        hub.misbehave("GET", f"/user/{name}/.*filename=model.safetensors", **options)
    for name, (method, path, options) in UPLOAD_FAULTS.items():
        hub.misbehave(method, f"/user/{name}/{path}", **options)
    hub.create_repository("user/pipelined", large_files=())
    return hub.run_function(bad_connections, home=folder / "home", token=WRITER_TOKEN, HF_HUB_DISABLE_XET="1")


def test_pushing_a_pipeline_makes_one_commit_of_a_flat_repository(hub, pushed):
    assert hub.titles("user/flat") == ["Newer", "Older", "initial commit"], "what has not changed makes no commit"
    assert pushed["unchanged"] == hub.repository("user/flat").branches["main"].sha
    assert {*FLAT_FILES, "README.md"} <= hub.files("user/flat").keys()
    assert not any("/" in path for path in hub.files("user/flat"))


def test_saving_with_push_to_hub_uploads_the_folder_as_one_commit(hub, pushed):
    assert hub.titles("user/saved") == ["Saved", "initial commit"]
    assert {*FLAT_FILES, "extra/notes.txt"} <= hub.files("user/saved").keys()
    assert hub.repository("user/saved").private
    assert hub.files("user/saved")["README.md"].endswith(b"Mine.\n"), "the user's card"


def test_parts_pushed_one_by_one_lie_side_by_side(hub, pushed):
    assert FLAT_FILES - hub.files("user/parts").keys() == {"model_index.json"}, "that one is a pipeline's"
    assert len(hub.titles("user/parts")) == 4


@pytest.mark.parametrize("part", ["pipeline", "model", "tokenizer", "scheduler", "saved pipeline"])
@pytest.mark.parametrize(
    "token, reason",
    [
        ("wrong", "Invalid credentials in Authorization header"),
        ("reader", "You don't have the rights to write in the namespace"),
        ("none", "Invalid username or password"),
    ],
)
def test_a_push_with_the_wrong_token_says_so_and_changes_nothing(hub, pushed, part, token, reason):
    for repository in ("user/flat", "user/new"):
        assert reason in pushed["failures"][part, token, repository]
    assert ("models", "user/new") not in hub.repositories
    assert hub.titles("user/flat") == ["Newer", "Older", "initial commit"]


def test_every_loader_opens_a_repository_by_its_id(loaded):
    pipeline = make_pipeline(2)
    assert loaded["config"]["hidden_size"] == 32
    assert loaded["tokenizer"] == pipeline.tokenizer.get_vocab()
    assert loaded["scheduler"] == 4
    assert torch.equal(loaded["model"], logits(pipeline.model)) and torch.equal(loaded["parts"], loaded["model"])
    texts = sample(pipeline)
    assert loaded["MaskedDiffusionPipeline"] == loaded["DiffusionPipeline"] == loaded["private"] == texts


def test_the_command_line_opens_a_repository_by_its_id(loaded):
    assert loaded["MaskedDiffusionPipeline"][0] in loaded["md4 sample"][1], "further rows have seeds of their own"
    assert loaded["md4 evaluate"]["eval_num_tokens"] == 864 and loaded["md4 evaluate"]["eval_loss"] > 0
    status, printed = loaded["md4 failure"]
    assert status == 1 and "md4 sample: user/missing is not a local folder" in printed


def test_a_commit_branch_or_tag_gives_the_weights_of_then(pushed, loaded):
    older, newer = make_pipeline(1), make_pipeline(2)
    pipelines = {pushed["first"]: older, "stable/one": older, "v1": older, "main": newer}
    assert loaded["pipeline at"] == {revision: sample(pipeline) for revision, pipeline in pipelines.items()}
    assert loaded["pipeline at"]["v1"] != loaded["pipeline at"]["main"]
    for revision, pipeline in pipelines.items():
        assert torch.equal(loaded["model at"][revision], logits(pipeline.model))


def test_a_data_set_is_opened_by_its_id(loaded):
    assert loaded["texts"] == ["one", "two"] and loaded["older texts"] == ["one"]


@pytest.mark.parametrize("how", ["on disk", "stream"])
def test_of_a_data_set_on_the_hub_only_the_column_asked_for_is_read(loaded, how):
    assert loaded["changing"][f"user/texts, {how}"] == ["one", "two"]
    assert loaded["changing"][f"user/map-parquet, {how}"] == ["one", "two"]
    assert loaded["changing"][f"user/late-json, {how}"][1:] == ["late"]
    assert all(
        "`text_column` must be one of the columns ['meta', 'text'], got 'body'" in error
        for error in loaded["no such column"]
    )


def test_pushed_code_opens_a_repository_without_the_package(hub, pushed, tmp_path):
    hub.run_python(LOAD_REMOTE_CODE, home=tmp_path, PYTHONPATH="")
    found = torch.load(tmp_path / "result.pt")
    assert torch.equal(found["logits"], logits(make_pipeline(2).model))
    assert found["texts"] == sample(make_pipeline(2))


def test_an_adapter_is_pushed_and_loaded_alone(hub, pushed, loaded):
    assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.files("user/adapter").keys()
    assert "model.safetensors" not in hub.files("user/adapter")
    assert torch.equal(loaded["adapted"], pushed["adapted"])
    assert not torch.allclose(loaded["adapted"], loaded["model"])


@pytest.mark.parametrize("case", LOAD_FAILURES)
def test_what_cannot_be_loaded_is_told(loaded, case):
    assert LOAD_FAILURES[case][-1] in loaded["failures"][case]


def test_the_token_stays_with_the_hub(hub, pushed, loaded):
    """Large files lie on another server, whose addresses are signed."""
    stored = [request for request in hub.requests if "signature" in request.query]
    assert {"GET", "PUT"} == {request.method for request in stored}
    assert all(request.token is None for request in stored)


def test_a_download_goes_on_where_it_was_cut_off(hub, transferred):
    assert transferred["downloads"]["once"] is None and transferred["downloads"]["pipeline-once"] is None
    complete, rest = hub.asked("GET", "/user/once/[0-9a-f]{64}")
    assert "range" not in complete.headers and rest.headers["range"] == f"bytes={50_000 // 4096 * 4096}-"


@pytest.mark.parametrize("name", FAILED_DOWNLOADS)
def test_a_download_that_fails_leaves_nothing_half_written(hub, transferred, name):
    causes = {"reset": "Connection reset by peer", "broken": "500 Internal Server Error"}
    assert causes.get(name, "peer closed connection") in transferred["downloads"][name]
    files = hub.repository(f"user/{name}").branches["main"].files
    by_name = {**files, **{file.etag: file for file in files.values()}}
    cached = transferred["cached"][name]
    assert "config.json" in cached and "model.safetensors" not in cached
    assert all(data == by_name[path].data for path, data in cached.items())
    assert torch.equal(transferred["later downloads"][name], logits(make_pipeline(1).model))


@pytest.mark.parametrize("name", ["put-once", "put-reset", "busy", "pipelined"])
def test_an_upload_that_fails_once_is_repeated(hub, transferred, name):
    assert transferred["uploads"][name] is None
    assert len(transferred["commits"][name]) == 2
    assert "model.safetensors" in hub.files(f"user/{name}")


@pytest.mark.parametrize("name", FAILED_UPLOADS)
def test_an_upload_that_is_cut_off_makes_no_commit(hub, transferred, name):
    causes = {
        "put-never": "Error while uploading 'model.safetensors' to the Hub",
        "cut-commit": "Server disconnected|Connection reset",
        "busy-commit": "503 Service Unavailable",
    }
    assert re.search(causes[name], transferred["uploads"][name])
    assert transferred["commits"][name] == ["initial commit"]
    assert len(transferred["later commits"][name]) == 2, "and pushing again works"
    assert {"config.json", "model.safetensors"} <= hub.files(f"user/{name}").keys()


def test_a_push_whose_answer_is_lost_can_be_repeated(transferred):
    """The client cannot know that the commit was made; pushing the same again makes no second one."""
    assert "Server disconnected" in transferred["uploads"]["answer"]
    assert len(transferred["commits"]["answer"]) == len(transferred["later commits"]["answer"]) == 2


def test_the_server_keeps_only_what_has_the_announced_sha256(hub):
    repository = hub.create_repository("user/checked")
    address = f"{hub.storage_url}/models/user/checked/{64 * '0'}?signature={hub.signature}"
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(address, data=b"half", method="PUT"))
    assert repository.objects == {}
