# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A data set of Arrow tables that a function yields, in the cache of `datasets` as one of `from_generator` is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import datasets
import pyarrow as pa
from datasets import ArrowBasedBuilder, Dataset, DatasetInfo, Features, Split, SplitGenerator
from datasets.packaged_modules.generator.generator import GeneratorConfig


def cached_tables(
    generate: Callable[..., Iterator[pa.Table]], features: Features, gen_kwargs: dict[str, Any]
) -> Dataset:
    """Data set of the rows of tables, on disk; read from there in place of a second call with the same arguments.

    Args:
        generate: Function of a module that yields tables of these features.
        features: Columns of the tables.
        gen_kwargs: Its arguments; with the function, what the data set is found again by.
    """
    builder = Tables(generator=generate, features=features, gen_kwargs=gen_kwargs)
    builder.download_and_prepare()
    return builder.as_dataset(split=Split.TRAIN)


class Tables(ArrowBasedBuilder):
    """Builder of `datasets` for tables: rows need not become Python objects on their way to the disk."""

    BUILDER_CONFIG_CLASS = GeneratorConfig

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=self.config.features)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[SplitGenerator]:
        return [SplitGenerator(name=self.config.split, gen_kwargs=self.config.gen_kwargs)]

    def _generate_tables(self, **gen_kwargs: Any) -> Iterator[tuple[int, pa.Table]]:
        yield from enumerate(self.config.generator(**gen_kwargs))
