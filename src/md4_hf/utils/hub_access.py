# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Access to the Hub: paths first, one attempt at a connection, and errors of one line that say what is left."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, get_session, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

from .files import looks_like_path
from .options import changed


MODEL_FILES = ("config.json", "adapter_config.json")  # one of them is in the folder of a model or adapter
TIMEOUT = 10.0  # seconds
_reasons: list[str] = []  # of the contexts of `from_hub` that are open and found no connection


def check_model_name(name: str, argument: str = "model"):
    """Raise a FileNotFoundError for a name that can only mean a folder and has no model in it; Hub ids pass.

    The id of a model on the Hub names a user or an organisation too: a name without a slash is a folder.
    """
    folder = Path(name)
    may_be_id = not folder.exists() and "/" in name and not looks_like_path(name)
    if may_be_id or _has_model(folder):
        return
    found = "no config.json or adapter_config.json" if folder.exists() else "no such folder"
    if (checkpoint := _model_of_newest_checkpoint(folder)) is not None:
        found = f"a run that has not ended; take {checkpoint}"
    raise FileNotFoundError(f"`{argument}` must be a model's or adapter's folder or a Hub id, got {name}: {found}.")


def _has_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in MODEL_FILES)


def _model_of_newest_checkpoint(run: Path) -> Path | None:
    """Folder of the averaged weights in the newest checkpoint of a run, or of that itself if it has none."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in run.glob("checkpoint-*")}
    newest_first = sorted((path for path, step in steps.items() if step.isdigit()), key=lambda path: -int(steps[path]))
    places = [path / part for path in newest_first for part in ("ema/adapter", "ema", "")]
    return next(filter(_has_model, places), None)


@contextlib.contextmanager
def from_hub(name: str) -> Iterator[None]:
    """Open a path, or files of a Hub id, within the context: without a connection, those in the cache, at once.

    The Hub's own client tries again for half a minute, for each file.

    Raises:
        ConnectionError: If the Hub cannot be reached and a file is not in the cache.
    """
    if looks_like_path(name) or Path(name).exists():
        yield
        return
    reason = _why_unreachable()
    try:
        with contextlib.nullcontext() if reason is None else _offline(reason):
            yield
    except Exception as error:
        cause = _lost_connection(error)
        if cause is None:
            raise
        what = f"could not reach the Hub for {name}"
        if isinstance(error, ConnectionError) and str(error).startswith(what):
            raise  # of a context within this one
        where = "it is neither a path here nor all in the cache"
        raise ConnectionError(f"{what}; {where} ({reason or one_line(cause)})") from None


@contextlib.contextmanager
def to_hub(repository: str, folder: str | Path, again: str) -> Iterator[None]:
    """Upload a folder within the context; an error says that it is complete here, and how to try `again`.

    Raises:
        OSError: For whatever went wrong on the way.
    """
    try:
        yield
    except (OSError, RuntimeError, HTTPError) as error:
        lost = _lost_connection(error)
        what = f"could not upload to {repository}"
        if lost is not None:
            what = f"could not reach the Hub for {repository} ({one_line(lost)})"
        message = f"{what}; the folder is complete: {folder}. To try again: {again}"
        raise OSError(message) from (error if lost is None else None)


def one_line(error: BaseException) -> str:
    """The first line of an error's message, its type if that is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _why_unreachable() -> str | None:
    """Reason why the Hub cannot be asked, None if it answers."""
    if _reasons:
        return _reasons[-1]
    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        _reach(constants.ENDPOINT)
    except (HTTPError, OSError) as error:
        return one_line(error)
    return None


@functools.cache
def _reach(endpoint: str):
    """Ask for any answer; an answer is remembered, an error is not."""
    get_session().head(endpoint, timeout=TIMEOUT)


@contextlib.contextmanager
def _offline(reason: str) -> Iterator[None]:
    """Let the libraries of the Hub ask their caches alone within the context."""
    switches = [sys.modules[name] for name in ("huggingface_hub.constants", "datasets.config") if name in sys.modules]
    _reasons.append(reason)
    try:
        with contextlib.ExitStack() as stack:
            for module in switches:
                stack.enter_context(changed(module, HF_HUB_OFFLINE=True))
            yield
    finally:
        _reasons.pop()


def _lost_connection(error: BaseException | None) -> BaseException | None:
    """The error among an error and its causes that tells of a missing connection, None without one."""
    while error is not None:
        if isinstance(error, (ConnectionError, LocalEntryNotFoundError)):
            return error
        if isinstance(error, HTTPError):  # the Hub's own errors are of an answer
            return None if isinstance(error, HfHubHTTPError) or hasattr(error, "response") else error
        error = error.__cause__
    return None
