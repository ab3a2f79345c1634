# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Files that a path names as data, by one rule: the suffix is the format, and a folder has one format.

Hidden files and folders, and what tools leave beside data, are none. docs/pretrain.md has the rule for users.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.data_files import _get_data_files_patterns, sanitize_patterns
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.utils.metadata import MetadataConfigs
from fsspec.utils import glob_translate
from huggingface_hub import DatasetCard

from .arguments import BUILT_IN_TEXTS


logger = logging.getLogger(__name__)

TEXT, IMAGE = "text", "image"
JSON_LINES, JSON, CSV, TSV, PARQUET, ARROW = "JSON lines", "JSON", "CSV", "TSV", "Parquet", "Arrow"
FORMATS = {
    ".txt": TEXT,
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".json": JSON,
    ".csv": CSV,
    ".tsv": TSV,
    ".parquet": PARQUET,
    ".arrow": ARROW,
    **dict.fromkeys(ImageFolder.EXTENSIONS, IMAGE),
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
NOT_COMPRESSED = (PARQUET, ARROW, IMAGE)  # which are compressed within, and read from the middle
ARCHIVES = {"zip", "tar", "tgz", "bz2", "xz", "7z", "rar"}
# Descriptions that the Hub, `datasets` and `Dataset.save_to_disk` write beside the data.
LEFTOVERS = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
IMAGE_TABLES = set(ImageFolder.METADATA_FILENAMES)  # captions and classes beside images
MAX_NAMES_IN_ERROR = 3


@dataclass(frozen=True)
class DataFiles:
    """Files of one format.

    Attributes:
        format: a value of `FORMATS`.
        splits: absolute paths by the name of their split.
    """

    format: str
    splits: Mapping[str, tuple[str, ...]]


def compression_of(name: str) -> str | None:
    """Compression of a file by its suffix, as pyarrow names it; None if it is not compressed."""
    return COMPRESSIONS.get(os.path.splitext(name.lower())[1])


def format_of(name: str) -> str | None:
    """Format of a file by its suffix in any letter case, before that of a compression; None if the suffix has none."""
    stem, suffix = os.path.splitext(os.path.basename(name).lower())
    return FORMATS.get(os.path.splitext(stem)[1] if suffix in COMPRESSIONS else suffix)


def is_text(data: str) -> bool:
    """Whether `data` is a built-in corpus, or a local file or folder of text, which have no columns."""
    if data in BUILT_IN_TEXTS:
        return True
    path = Path(data).expanduser()
    if path.is_dir():
        return set(_by_format(path)) == {TEXT}
    return path.is_file() and format_of(data) in (TEXT, None)


def find_files(data: str, config: str | None, argument: str) -> DataFiles | None:
    """Finds the files of a local path, which its one split "train" or the splits of a folder have.

    A file that is named itself is text if its suffix says nothing else. The splits of a folder of tables or images are
    those of the Hub's layout (names such as `train-00000.parquet` or `test/a.jsonl`, or the `configs` of README.md).

    Args:
        data: file or folder.
        config: configuration in README.md, by default its default one.
        argument: the name of `data` in errors.

    Returns:
        the files; None for a folder without files of a known format.

    Raises:
        ValueError: a folder has files of several formats, all files are empty, a format is compressed that cannot be,
            or the configuration is not in README.md.
    """
    path = Path(os.path.abspath(Path(data).expanduser()))
    if path.is_file():
        if config is not None:
            raise ValueError(f"`{option_name(argument, 'config')}` must be left out for a file, got {config!r}.")
        if any(suffix in ARCHIVES for suffix in path.name.lower().split(".")[-2:]):
            raise ValueError(f"`{argument}` must be a file of data, got the archive {str(path)!r}: unpack it.")
        files = DataFiles(format_of(path.name) or TEXT, {"train": (str(path),)})
    elif not path.is_dir():
        raise ValueError(
            f"`{argument}` must be a file or a folder, got {data!r}, a pipe or a device: write it to a file."
        )
    else:
        by_format = _by_format(path)
        if not by_format:
            return None
        files = _files_of_folder(path, by_format, config, argument)
    for name in (name for names in files.splits.values() for name in names):
        if compression_of(name) is not None and files.format in NOT_COMPRESSED:
            raise ValueError(f"`{argument}` must not compress {files.format} files, got {name!r}: unpack it.")
    return _without_empty_files(files, argument)


def option_name(argument: str, option: str) -> str:
    """Name of an option of the argument that names data, such as `validation_config` of `validation_data`."""
    return f"{'validation' if argument == 'validation_data' else argument}_{option}"


def describe_files(paths: Iterable[Path], folder: Path) -> str:
    """Numbers and names of files by suffix, for errors."""
    by_suffix: dict[str, list[str]] = {}
    for path in paths:
        suffixes = "".join(path.suffixes[-2:] if path.suffix.lower() in COMPRESSIONS else path.suffixes[-1:])
        by_suffix.setdefault(suffixes.lower() or "other", []).append(path.relative_to(folder).as_posix())
    parts = []
    for suffix, names in by_suffix.items():
        more = ", ..." if len(names) > MAX_NAMES_IN_ERROR else ""
        parts.append(f"{len(names)} {suffix} ({', '.join(names[:MAX_NAMES_IN_ERROR])}{more})")
    return ", ".join(parts) or "no files"


def files_under(folder: Path) -> list[Path]:
    """Files at any depth, sorted by path, without hidden ones and leftovers of tools.

    Links to folders are followed, each folder once; a link that leads nowhere counts as a file, to be missed by name.
    """
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders.sort()
        found += [Path(parent, name) for name in names]
    return [
        path
        for path in sorted(found)
        if not _is_leftover(path, folder) and (path.is_file() or (path.is_symlink() and not path.exists()))
    ]


def _is_leftover(path: Path, folder: Path) -> bool:
    *folders, name = path.relative_to(folder).parts
    return any(part.startswith((".", "__")) for part in folders) or name.startswith((".", "~$")) or name in LEFTOVERS


def _by_format(folder: Path) -> dict[str, list[Path]]:
    """Data of a folder by format; tables that describe images are part of them."""
    found: dict[str, list[Path]] = {}
    for path in files_under(folder):
        if (kind := format_of(path.name)) is not None:
            found.setdefault(kind, []).append(path)
    if IMAGE in found:
        tables = [path for paths in found.values() for path in paths if path.name in IMAGE_TABLES]
        rest = {kind: [path for path in paths if path not in tables] for kind, paths in found.items()}
        found = {kind: paths for kind, paths in rest.items() if paths}
        found[IMAGE] += tables
    return found


def _files_of_folder(folder: Path, by_format: dict[str, list[Path]], config: str | None, argument: str) -> DataFiles:
    """Files of a folder, or those of a configuration in its README.md, by split."""
    options = _configuration(folder, config, argument)
    paths = [path for found in by_format.values() for path in found]
    base, patterns = folder, None
    if options.get("data_files") is not None:
        patterns = sanitize_patterns(options["data_files"])
        chosen = {Path(name) for names in _splits(patterns, folder, paths).values() for name in names}
    else:
        base = Path(os.path.abspath(folder / (options.get("data_dir") or "")))
        chosen = {path for path in paths if path.is_relative_to(base)}
    kind, paths = _one_format(by_format, chosen, folder, argument)
    if patterns is None and kind == TEXT:
        return DataFiles(kind, {"train": tuple(str(path) for path in paths)})
    return DataFiles(
        kind, _splits_of_names(base, paths, argument) if patterns is None else _splits(patterns, base, paths)
    )


def _one_format(
    by_format: dict[str, list[Path]], chosen: set[Path], folder: Path, argument: str
) -> tuple[str, list[Path]]:
    """The format of the chosen files, and these in their order; a ValueError unless it is one."""
    kept = {kind: [path for path in found if path in chosen] for kind, found in by_format.items()}
    kinds = [kind for kind, found in kept.items() if found]
    if len(kinds) != 1:
        found = describe_files((path for paths in kept.values() for path in paths), folder)
        raise ValueError(
            f"`{argument}` must be a folder with data of one format, got {str(folder)!r} with {found}: name the files "
            "themselves, or move the others out."
        )
    return kinds[0], kept[kinds[0]]


def _splits_of_names(base: Path, paths: Sequence[Path], argument: str) -> dict[str, tuple[str, ...]]:
    """Files by the split that their names suggest, by the rules of the Hub; files in none are reported."""
    names = _relative_names(base, paths)
    splits = _splits(_get_data_files_patterns(lambda pattern: _matching([pattern], names)), base, paths)
    _report_left_out("file(s) in no split, beside files named for one", map(str, paths), splits, argument)
    return splits


def _report_left_out(what: str, names: Iterable[str], splits: Mapping[str, Sequence[str]], argument: str):
    """Warn of files that are in no split."""
    left_out = sorted(set(names).difference(*splits.values()))
    if left_out:
        shown = ", ".join(left_out[:MAX_NAMES_IN_ERROR]) + (", ..." if len(left_out) > MAX_NAMES_IN_ERROR else "")
        logger.warning("`%s` has %d %s, which are skipped: %s", argument, len(left_out), what, shown)


def _splits(patterns: Mapping[str, Sequence[str]], base: Path, paths: Iterable[Path]) -> dict[str, tuple[str, ...]]:
    """Files by split, in the order in which `datasets` reads them; the patterns are relative to `base`."""
    names = _relative_names(base, paths)
    splits = {split: _matching(wanted, names) for split, wanted in patterns.items()}
    return {str(split): tuple(str(base / name) for name in found) for split, found in splits.items() if found}


def _relative_names(folder: Path, paths: Iterable[Path]) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names that match one of the patterns; those of the first pattern come first."""
    expressions = [re.compile(glob_translate(pattern.removeprefix("./"))) for pattern in patterns]
    return list(dict.fromkeys(name for expression in expressions for name in names if expression.match(name)))


def _configuration(folder: Path, config: str | None, argument: str) -> Mapping[str, Any]:
    """Configuration in README.md, such as its `data_dir` and `data_files`; empty without configurations."""
    readme = folder / "README.md"
    configs: Mapping[str, dict] = {}
    if readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith("---"):
        card = DatasetCard.load(readme, ignore_metadata_errors=True)
        configs = MetadataConfigs.from_dataset_card_data(card.data)
        config = config or MetadataConfigs(configs).get_default_config_name()
    if not configs and config is None:
        return {}
    if config not in configs:
        raise ValueError(
            f"`{option_name(argument, 'config')}` must be one of the configurations {sorted(configs)} in README.md of "
            f"{str(folder)!r}, got {config!r}."
        )
    return configs[config]


def _without_empty_files(files: DataFiles, argument: str) -> DataFiles:
    """Leaves out files without a byte, and reports them."""
    empty = [name for names in files.splits.values() for name in names if os.path.getsize(name) == 0]
    if not empty:
        return files
    splits = {split: tuple(name for name in names if name not in empty) for split, names in files.splits.items()}
    splits = {split: names for split, names in splits.items() if names}
    if not splits:
        raise ValueError(f"`{argument}` must contain text, got the empty file {empty[0]!r}.")
    _report_left_out("empty file(s)", empty, splits, argument)
    return DataFiles(files.format, splits)
