# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Functions of newer releases of transformers, for the older ones too: all that depends on its version."""

import os
from typing import Any

from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils import hub as transformers_hub
from transformers.utils.hub import extract_commit_hash


def commit_of(path_or_repo_id: str | os.PathLike | None, revision: str | None = None, **hub: Any) -> str | None:
    """Commit that a revision of a repository on the Hub stands for; the revision as it is where that is not known.

    `hub` are `token`, `local_files_only` and `cache_dir`.
    """
    if path_or_repo_id is None or os.path.exists(path_or_repo_id):
        return revision
    if hasattr(transformers_hub, "resolve_revision"):
        resolved = transformers_hub.resolve_revision(path_or_repo_id, revision=revision, **hub)
        return getattr(resolved, "resolved", resolved)
    # Before 5.18: the folder of the cache that the configuration is in has the commit's name.
    try:
        return (
            extract_commit_hash(cached_file(path_or_repo_id, CONFIG_NAME, revision=revision, **hub), None) or revision
        )
    except OSError:  # no such repository, or no connection: the loading itself says so
        return revision
