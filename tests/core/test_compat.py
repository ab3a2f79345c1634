# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""What depends on the version of transformers, as its newer and its older releases do it."""

import pytest
from transformers.utils import hub

from md4_hf.core.compat import commit_of


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path):
    """A cache of the Hub with one repository, and the arguments that look nowhere else."""
    repository = tmp_path / "models--user--model"
    for name, text in {"refs/main": COMMIT, f"snapshots/{COMMIT}/config.json": "{}"}.items():
        path = repository / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return {"cache_dir": str(tmp_path), "local_files_only": True}


@pytest.fixture(params=["as installed", "older"], autouse=True)
def release(request, monkeypatch):
    """Releases of transformers before 5.18 do not resolve revisions."""
    if request.param == "older":
        monkeypatch.delattr(hub, "resolve_revision", raising=False)


@pytest.mark.parametrize("revision", [None, "main"])
def test_the_commit_of_a_branch_is_that_in_the_cache(cache, revision):
    assert commit_of("user/model", revision, **cache) == COMMIT


def test_a_folder_and_an_unknown_repository_keep_the_revision(cache, tmp_path):
    assert commit_of(tmp_path, None) is None
    assert commit_of(tmp_path, "main") == commit_of(None, "main") == "main"
    assert commit_of("user/other", "main", **cache) == "main"
    assert commit_of("user/other", **cache) is None
