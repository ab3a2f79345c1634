# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Record of a run, `options.yaml` in its folder: its options, a file for `--config`, and facts about its data."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .. import __version__
from ..data.arguments import BUILT_IN_TEXTS, DIGITS, DataArguments
from ..data.conversations import TEMPLATES
from ..objective.example_order import can_be_ordered, sampled_sha256
from ..training.checkpoints import CHECKPOINT_NAME
from ..utils.files import write_whole
from .options_file import RECORD, read_mapping
from .wording import HUB_TOKEN


FILE_NAME = "options.yaml"
# Options of a single start of the run, those that the others stand for, and secrets.
NOT_RECORDED = ("output_dir", "resume_from_checkpoint", "prepare_only", "config", "preset", "help_all")
# Options that may be paths of this machine.
PATHS = ("data", "validation_data", "model_name_or_path", "backbone_name_or_path", "tokenizer", "chat_template")
BUILT_IN = (*BUILT_IN_TEXTS, DIGITS, "text8", "bytes", *TEMPLATES)
DATA = ("training_data", "held_out_data")


@dataclass(frozen=True)
class RunRecord:
    """Options of a run, and facts about its data.

    Attributes:
        options: The options that preset, file and command line gave, by name; local data by their absolute paths.
        facts: Command, version, examples of a step, and of `training_data` and `held_out_data` the name, number and
            digest.
        path: The file that it was read from.
    """

    options: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def of_start(cls, rest: argparse.Namespace, data_args: DataArguments, material: Any, batch_size: int) -> RunRecord:
        """Record of a run that begins, with the digests of its data."""
        kept = {name: recorded_value(name, value) for name, value in sorted(rest.given.items()) if _is_recorded(name)}
        model = {"model": rest.model} if getattr(rest, "model", None) is not None else {}
        facts = {"command": HUB_TOKEN.sub("hf_***", rest.command_line), "md4_hf": __version__, **model}
        validation = data_args.validation_data or data_args.data
        names, examples = (data_args.data, validation), (material.train_examples, material.heldout_examples)
        described = {key: _describe(*data) for key, *data in zip(DATA, names, examples, strict=True)}
        return cls(kept, {**facts, "batch_size": batch_size, **described})

    @classmethod
    def read(cls, path: Path) -> RunRecord | None:
        """Record in a file; None if there is no such file, or one of options that no run wrote."""
        if not path.is_file():
            return None
        values, _ = read_mapping(path)
        facts = values.pop(RECORD, None)
        return cls(values, facts, path) if isinstance(facts, dict) else None

    @classmethod
    def of_model(cls, name: str) -> RunRecord | None:
        """Record of the run that a folder of a model, or of a checkpoint in one, is of; None if there is none."""
        folder = Path(os.path.abspath(Path(name).expanduser()))
        checkpoints = [path for path in (folder, *folder.parents) if CHECKPOINT_NAME.fullmatch(path.name)]
        return cls.read((checkpoints[0].parent if checkpoints else folder) / FILE_NAME)

    def write(self, folder: str | os.PathLike):
        """Write `options.yaml` into the folder of the run."""
        command = self.facts["command"].split()[1]
        again = " ".join(["md4", command, *(["MODEL"] if "model" in self.facts else []), "--config", FILE_NAME])
        head = f"# Options of a run. To repeat it: {again} --output_dir FOLDER\n"
        options = yaml.safe_dump(self.options, sort_keys=False, allow_unicode=True) if self.options else ""
        facts = yaml.safe_dump({RECORD: self.facts}, sort_keys=False, allow_unicode=True, width=1000)
        write_whole(Path(folder) / FILE_NAME, f"{head}{options}\n# Facts about it, which are no options.\n{facts}")

    def differences(self, before: RunRecord, defaults: Mapping[str, Any]) -> Iterator[str]:
        """Options and data that differ from an earlier record's, one line each."""
        for name in sorted(self.options.keys() | before.options.keys()):
            now, then = (recorded_value(name, x.options.get(name, defaults.get(name))) for x in (self, before))
            if now != then and _is_recorded(name):
                yield f"`{name}` is {now!r}, was {then!r}"
        if self.facts["batch_size"] != before.facts.get("batch_size"):
            yield f"a step has {self.facts['batch_size']} examples, had {before.facts.get('batch_size')}"
        for key in DATA:
            now, then = self.facts[key], before.facts.get(key)
            if isinstance(then, dict) and now.get("sha256") != then.get("sha256"):
                yield f"the {_words(key)} are {_shown(now)}, were {_shown(then)}"

    def has_other_data(self, key: str, examples: Any) -> bool:
        """Whether examples differ from those that the record has under a key of `DATA`; False where it cannot tell."""
        recorded = self.facts.get(key)
        digest = recorded.get("sha256") if isinstance(recorded, dict) else None
        return digest is not None and _describe("", examples).get("sha256") not in (None, digest)


def data_of_run(model: str, rest: argparse.Namespace, *arguments: Any) -> tuple[RunRecord | None, Any]:
    """Options of data, those of the run that left the model where the command line names no data.

    Args:
        model: Folder or Hub id of the model.
        rest: Arguments of the command, with the options `given`.
        arguments: Instances of the dataclasses of the data's options.

    Returns:
        The record of the run if its data are taken, and the instances.

    Raises:
        ValueError: If no data are named, and there is no record.
    """
    if not rest.given.keys().isdisjoint(("data", "validation_data")):
        return None, arguments
    record = RunRecord.of_model(model)
    if record is None:
        raise ValueError(
            f"`data` or `validation_data` must be given, got neither: {model} has no {FILE_NAME} of a run, which would "
            "say what it was trained on."
        )
    changed = []
    for instance in arguments:
        names = {f.name for f in dataclasses.fields(instance)} & (record.options.keys() - rest.given.keys())
        changed.append(dataclasses.replace(instance, **{name: record.options[name] for name in names}))
    return record, tuple(changed)


class RecordCallback(TrainerCallback):
    """Writes the record of a run when its training begins; of a resumed one, says where and what differs."""

    def __init__(self, record: RunRecord, defaults: Mapping[str, Any]):
        self.record, self.defaults = record, defaults

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Compare with the earlier record, and replace it."""
        if not args.should_save:
            return
        if state.global_step > 0:
            tqdm.write(f"resuming at step {state.global_step} of {state.max_steps}")  # above the bar, which is there
            asked = args.resume_from_checkpoint
            before = RunRecord.of_model(args.output_dir if asked in ("latest", "auto") else str(asked))
            for line in self.record.differences(before, self.defaults) if before is not None else ():
                tqdm.write(f"differs from the run so far: {line}")
        self.record.write(args.output_dir)


def _is_recorded(name: str) -> bool:
    return name not in NOT_RECORDED and not name.endswith("token")


def recorded_value(name: str, value: Any) -> Any:
    """Value of an option for YAML; a local path is absolute."""
    if name in PATHS and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (list, tuple)):
        return [recorded_value(name, entry) for entry in value]
    if isinstance(value, Enum):
        return value.value
    if name in PATHS and isinstance(value, str) and value not in BUILT_IN and Path(value).expanduser().exists():
        return os.path.abspath(Path(value).expanduser())
    return value


def _describe(name: str | list[str], examples: Any) -> dict[str, Any]:
    """Name, number and digest of data; of a stream the name only."""
    if not can_be_ordered(examples):
        return {"name": name}
    return {"name": name, "examples": len(examples), "sha256": sampled_sha256(examples)}


def _words(key: str) -> str:
    return key.replace("_", " ").replace("held out", "held-out")


def _shown(data: Mapping[str, Any]) -> str:
    digest = data.get("sha256")
    return f"{data.get('name')}" + (f" ({data.get('examples')} examples, sha256 {digest[:12]})" if digest else "")
