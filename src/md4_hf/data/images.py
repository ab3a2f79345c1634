# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Images for training and evaluation: load them, hold some out, read them as ids.

train, held_out = load_images(DataArguments(data="digits"))
examples = encode_images(train, MD4ImageProcessor.for_config(model.config))
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, IterableDataset

from ..core.image_processing_md4 import MD4ImageProcessor
from .arguments import BUILT_IN_TEXTS, DIGITS, DataArguments, ImageDataArguments
from .documents import load_table, load_train_validation, num_heldout
from .files import option_name
from .tables import check_table


DIGITS_LEVELS = 17
LABEL_COLUMNS = ("label", "labels", "fine_label")
SPLIT_SEED = 0
MAX_BYTES_IN_MEMORY = 2**28  # of ids: CIFAR-10 fits
IMAGES_PER_BATCH = 256


class ImageDataset(torch.utils.data.Dataset):
    """A map-style data set of images as ids, made by `encode_images` of `images`.

    An example has `input_ids` `(channels, height, width)` in [0, num_levels) and, of a class-conditional model,
    `class_labels`. A data set that fits into 256 MB is read once and kept; otherwise images are read on demand.
    """

    def __init__(self, images: Dataset, encode, bytes_per_image: int):
        self.images, self._encode = images, encode
        self._kept: dict[str, torch.Tensor] | None = None
        if len(images) * bytes_per_image <= MAX_BYTES_IN_MEMORY:
            batches = [encode(batch) for batch in images.iter(IMAGES_PER_BATCH)]
            self._kept = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        kept = self._kept
        columns = (
            self._encode(self.images[indices]) if kept is None else {name: x[indices] for name, x in kept.items()}
        )
        return [{name: values[i] for name, values in columns.items()} for i in range(len(indices))]


def check_image_processor_matches(processor: MD4ImageProcessor, config):
    """Raise a ValueError unless the processor makes the ids of a model with this `MD4Config`."""
    if not config.is_image:
        raise ValueError(f"`processing_class` must be a tokenizer for text, got {type(processor).__name__}.")
    size = processor.num_channels, processor.size["height"], processor.size["width"]
    if size != config.sample_shape:
        rule = f"make the model's {config.sample_shape} (channels, height, width)"
        raise ValueError(f"The image processor must {rule}, got {size}.")
    if not processor.num_levels == config.mask_token_id == config.vocab_size - 1:
        rule = f"have a level for each id below the mask, the last of {config.vocab_size}"
        found = f"{processor.num_levels} levels and the mask {config.mask_token_id}"
        raise ValueError(f"The image processor must {rule}, got {found}.")


@functools.cache
def digits() -> Dataset:
    """The handwritten digits that come with scikit-learn: 1,797 grey images of 8 × 8 pixels, 17 levels, 10 classes.

    They are the test part of Alpaydin and Kaynak's *Optical Recognition of Handwritten Digits* (UCI, 1998). An
    ImportError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn: pip install 'md4_hf[image]'.") from error
    data = load_digits()
    ids = torch.from_numpy(data.images).long()[:, None]
    pictures = MD4ImageProcessor(8, 1, DIGITS_LEVELS).postprocess(ids)
    columns = {"image": pictures, "label": data.target}
    return Dataset.from_dict(columns, features=Features(image=datasets.Image(), label=ClassLabel(num_classes=10)))


def load_images(args: DataArguments) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """Loads training and validation images with all their columns.

    `args.data` is "digits", a folder of images (a folder for each class, if they have classes), a data set in a folder,
    or the id of one on the Hub. Validation images come from `validation_data` or `validation_split`; without them
    `validation_fraction` of the images, drawn once and for all, are held out: folders are sorted by class. Raises as
    `load_train_validation`.
    """
    return load_train_validation(args, load=load_image_table, divide=_hold_out_images)


def load_image_table(
    data: str, *, split: str = "train", streaming: bool = False, argument: str = "data", **options
) -> Dataset | IterableDataset:
    """Loads images with all their columns: "digits", or as `load_table`; also a ValueError for what is text."""
    if data in BUILT_IN_TEXTS:
        rule = f'"{DIGITS}", a folder of images or a data set on the Hub'
        raise ValueError(f"`{argument}` must be {rule}, got {data!r}.")
    if data != DIGITS:
        return load_table(data, split=split, streaming=streaming, argument=argument, **options)
    for name, value in options.items():
        if value is not None:
            raise ValueError(f'`{option_name(argument, name)}` must be left out for "{DIGITS}", got {value!r}.')
    if split != "train":
        raise ValueError(f'`data_split` and `validation_split` must be "train" for "{DIGITS}", got {split!r}.')
    images = digits()
    return images.to_iterable_dataset() if streaming else images


def _hold_out_images(images: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    count = num_heldout(len(images), fraction, "images")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    return images.select(np.sort(order[count:])), images.select(np.sort(order[:count]))


def encode_images(
    images: Dataset | IterableDataset,
    processor: MD4ImageProcessor,
    args: ImageDataArguments | None = None,
    num_classes: int | None = None,
) -> ImageDataset | IterableDataset:
    """Turn images into ids, for `MD4Trainer`.

    Args:
        images: Data set with a column of images, see `load_images`.
        processor: Makes the ids; `args.resize` and `args.convert` are asked of a copy of it.
        args: Names of the columns, and what to do with images of another kind.
        num_classes: Classes of a class-conditional model; None leaves classes out.

    Returns:
        Examples with `input_ids` `(channels, height, width)` and, with `num_classes`, `class_labels`; of a stream a
        stream of them.

    Raises:
        ValueError: If a column is missing or holds something else, for classes that the model does not have, and for
            images that the processor does not take; in a stream when it comes to them.
    """
    check_table("images", images)
    if not hasattr(processor, "num_levels"):  # a repository's own code has another class of this name
        raise ValueError(f"`processor` must be an `MD4ImageProcessor`, got {type(processor).__name__}.")
    args = args or ImageDataArguments()
    features = images.features or next(iter(images.take(1)), {})
    columns = [_image_column(features, args.image_column)]
    if num_classes is not None:
        columns.append(_label_column(features, args.label_column, num_classes))
    options = {**processor.to_dict(), "do_resize": args.resize, "do_convert": args.convert}
    processor = MD4ImageProcessor.from_dict(options)
    kind = features[columns[0]]
    if isinstance(kind, datasets.Image):  # which are opened here, where an error can name the file
        images = images.cast_column(columns[0], dataclasses.replace(kind, decode=False))
    encode = functools.partial(_encode, processor=processor, columns=columns, num_classes=num_classes)
    if isinstance(images, IterableDataset):
        return images.map(encode, batched=True, batch_size=IMAGES_PER_BATCH, remove_columns=list(features))
    if not len(images):
        raise ValueError("`images` must hold at least one image, got none.")
    bytes_per_image = processor.num_channels * math.prod(processor.size.values())
    return ImageDataset(images.select_columns(columns), encode, bytes_per_image)


def _encode(
    rows: dict[str, list], processor: MD4ImageProcessor, columns: list[str], num_classes: int | None
) -> dict[str, np.ndarray]:
    image_column, *label_columns = columns
    ids = processor([*map(_open, rows[image_column])], return_tensors="np")["input_ids"].astype(np.uint8)
    if num_classes is None:
        return {"input_ids": ids}
    (label_column,) = label_columns
    labels = np.asarray(rows[label_column])
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= num_classes:
        rule, found = f"hold the model's classes, 0 to {num_classes - 1}", sorted(set(labels.tolist()))
        raise ValueError(f"`label_column` must {rule}, got {label_column!r} with {found}.")
    return {"input_ids": ids, "class_labels": labels.astype(np.int64)}


def _open(image: Any) -> Any:
    """A picture of a stored image; a ValueError that names one that is damaged, or too large to be meant."""
    if not (isinstance(image, dict) and {"bytes", "path"} <= image.keys()):
        return image
    try:
        return datasets.Image().decode_example(image)
    except Exception as error:  # Pillow has its own for each format
        name = "one without a name" if image["path"] is None else repr(image["path"])
        raise ValueError(
            f"`images` must be well-formed pictures, got {name}, which cannot be read: {error}"
        ) from error


def _image_column(features, name: str | None) -> str:
    found = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if not isinstance(features, Features):  # a stream that knows its columns only when it is read
        found = [column for column in ("image", "img") if column in features]
    return _choose("image_column", name, found, features)


def _label_column(features, name: str | None, num_classes: int) -> str:
    found = [column for column, kind in features.items() if isinstance(kind, ClassLabel)]
    found = found or [column for column in LABEL_COLUMNS if column in features]
    column = _choose("label_column", name, found, features)
    known = getattr(features[column], "num_classes", num_classes)
    if known > num_classes:
        raise ValueError(f"`num_classes` must be at least the {known} of {column!r}, got {num_classes}.")
    return column


def _choose(argument: str, name: str | None, found: list[str], features) -> str:
    if name is None and len(found) == 1:
        return found[0]
    if name is None or name not in features:
        raise ValueError(f"`{argument}` must be one of the columns {sorted(features)}, got {name!r}.")
    return name
