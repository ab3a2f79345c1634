# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers: characters of text8, raw bytes, a BPE trained on documents, or any of the Hub with a mask token added.

The built-in tokenizers are plain `tokenizers` pipelines: what `save_pretrained` writes is opened by
`AutoTokenizer.from_pretrained` without this package.
"""

import json
import os
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import CONFIG_NAME, cached_file

from ..core.modeling_md4_base import has_tokenizer
from ..utils.errors import file_errors_as_value_errors
from ..utils.files import looks_like_path
from ..utils.hub_access import from_hub
from ..utils.instances import check_instance


MASK_TOKEN = "[MASK]"
END_OF_TEXT_TOKEN = "<|endoftext|>"
NUM_BYTES = 256
MAX_TRAINING_CHARACTERS = 2**28  # of a BPE: counting their words takes a minute or two
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def build_text8_tokenizer(model_max_length: int | None = None) -> PreTrainedTokenizerFast:
    """Characters of text8: a..z are 0..25, the space is 26, `[MASK]` is 27; 28 ids and no other special token.

    The normaliser is the recipe of text8 (Mahoney, *About the Test Data*, mattmahoney.net/dc/textdata.html): lower
    case, digits spelled out, and every other run of characters becomes one space. Spaces at the ends are kept, so
    decoding the ids of normalised text gives that text back. The mask token is recognised before normalisation.
    `model_max_length`, in tokens, is recorded for the model.
    """
    tokenizer = _tokenizer_of(string.ascii_lowercase + " ")
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            *(normalizers.Replace(str(digit), f" {name} ") for digit, name in enumerate(DIGIT_NAMES)),
            normalizers.Replace(Regex("[^a-z]+"), " "),
        ]
    )
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, model_max_length)


def build_byte_tokenizer(model_max_length: int | None = None) -> PreTrainedTokenizerFast:
    """UTF-8 bytes: the id of a byte is its value, `<|endoftext|>` (eos) is 256, `[MASK]` is 257; 258 ids.

    Every Unicode string is encoded without loss. `model_max_length`, in tokens, is recorded for the model.
    """
    tokenizer = _tokenizer_of(_byte_symbols())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(tokenizer, model_max_length, eos_token=_special_token(END_OF_TEXT_TOKEN))


def bpe_size(name: str) -> int | None:
    """Number N of a tokenizer to be trained, "bpe:N"; None for other names.

    Raises:
        ValueError: N is no integer >= 256, the number of bytes.
    """
    kind, _, size = name.partition(":")
    if kind != "bpe":
        return None
    if not (size.isdecimal() and int(size) >= NUM_BYTES):
        raise ValueError(
            f"`tokenizer` must be bpe:N with N >= {NUM_BYTES}, the bytes, such as bpe:2048, got {name!r}."
        )
    return int(size)


def train_bpe_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with `<|endoftext|>` (eos) and `[MASK]` behind its tokens; a function of the texts.

    Every Unicode string is encoded without loss. Words are split as GPT-2 splits them.

    Args:
        texts: the texts, of which the first 2^28 characters are read.
        size: tokens of the BPE, at least 256; fewer if the texts have no more pairs that occur twice.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, initial_alphabet=list(_byte_symbols()), show_progress=False
    )
    tokenizer.train_from_iterator(_first_characters(texts, MAX_TRAINING_CHARACTERS), trainer)
    return _wrap(tokenizer, None, eos_token=_special_token(END_OF_TEXT_TOKEN))


def _first_characters(texts: Iterable[str], count: int) -> Iterator[str]:
    for text in texts:
        yield text[:count]
        count -= len(text)
        if count <= 0:
            return


def load_tokenizer(
    name_or_path: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
    argument: str = "name_or_path",
    adds_mask: bool = True,
    tokenizer_type: str | None = None,
) -> PreTrainedTokenizerBase:
    """Opens a tokenizer by name and makes sure that it has a mask token (see `ensure_mask_token`).

    Args:
        name_or_path: "text8", "bytes", a folder, a file of `tokenizers`, or the id of a repository on the Hub.
        revision, token, cache_dir, trust_remote_code: as in `AutoTokenizer.from_pretrained`; of Hub ids only.
        argument: the name of `name_or_path` in errors.
        adds_mask: whether a mask token is added where there is none.
        tokenizer_type: kind of the tokenizer in transformers, such as "qwen2", in place of one that the files name.

    Raises:
        ValueError: there is no tokenizer under this name, or its files are damaged.
    """
    if name_or_path == "text8":
        return build_text8_tokenizer()
    if name_or_path == "bytes":
        return build_byte_tokenizer()
    check_instance(argument, name_or_path, str, os.PathLike)
    rule = '"text8", "bytes", a folder with a tokenizer or the id of a Hub repository with one'
    if looks_like_path(name_or_path) and not Path(name_or_path).exists():
        raise ValueError(f"`{argument}` must be {rule}, got {name_or_path!r}: no such file or folder.")
    if Path(name_or_path).is_dir() and not has_tokenizer(name_or_path, {}):
        raise ValueError(f"`{argument}` must be {rule}, got {name_or_path!r}, where there are no files of one.")
    try:
        with from_hub(name_or_path), file_errors_as_value_errors(argument, name_or_path):
            hub = {"revision": revision or "main", "token": token, "cache_dir": cache_dir}
            hub["tokenizer_type"] = tokenizer_type
            tokenizer = _open_tokenizer(name_or_path, trust_remote_code=trust_remote_code, **hub)
            tokenizer.decode(tokenizer("a").input_ids)  # damage may show only in use
    except (OSError, ValueError) as error:
        raise ValueError(f"`{argument}` must be {rule}, got {name_or_path!r}: {error}") from error
    return ensure_mask_token(tokenizer) if adds_mask else tokenizer


def _open_tokenizer(name_or_path: str, **options) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, a Hub id or a file, which is opened with those beside it if it is `tokenizer.json`."""
    path = Path(name_or_path)
    if not path.is_file():
        hub = {name: options[name] for name in ("revision", "token", "cache_dir")}
        config = cached_file(name_or_path, CONFIG_NAME, **hub, _raise_exceptions_for_missing_entries=False)
        if config is None and has_tokenizer(name_or_path, hub):
            options["config"] = PreTrainedConfig()  # as transformers, but 5.17 looks for one on the Hub also offline
        return AutoTokenizer.from_pretrained(name_or_path, **options)
    if path.name == "tokenizer.json":
        return AutoTokenizer.from_pretrained(path.parent, **options)
    return PreTrainedTokenizerFast(tokenizer_file=str(path))


def check_tokenizer(tokenizer: Any):
    """Raise a ValueError for what is no tokenizer, such as the name of one."""
    check_instance("tokenizer", tokenizer, PreTrainedTokenizerBase, hint="`load_tokenizer` opens one by its name.")


def ensure_mask_token(tokenizer: PreTrainedTokenizerBase, token_id: int | None = None) -> PreTrainedTokenizerBase:
    """Adds `[MASK]` as the mask token, with a new last id, to a tokenizer that has none, in place; returns it.

    If the tokenizer has a token with the id `token_id`, that becomes the mask token.
    """
    check_tokenizer(tokenizer)
    known = None if token_id is None else {i: token for token, i in tokenizer.get_vocab().items()}.get(token_id)
    if tokenizer.mask_token is None and known is not None:
        tokenizer.add_special_tokens({"mask_token": known})
    if tokenizer.mask_token is None:
        _reserve_last_id(tokenizer, MASK_TOKEN)
        tokenizer.add_special_tokens({"mask_token": _special_token(MASK_TOKEN)})
    return tokenizer


def num_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of rows of an embedding for a tokenizer: its largest id + 1. Ids may have gaps, which `len` leaves out."""
    return max(tokenizer.get_vocab().values()) + 1


def _reserve_last_id(tokenizer: PreTrainedTokenizerBase, token: str):
    """Give a new token the id above all others where ids have gaps; `tokenizers` counts, and may take one in use."""
    last, backend = num_rows(tokenizer), getattr(tokenizer, "_tokenizer", None)
    if last == len(tokenizer) or backend is None:
        return
    parts = json.loads(backend.to_str())
    if not isinstance(parts["model"]["vocab"], dict):
        return  # a list has no gaps
    parts["model"]["vocab"][token] = last
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(parts))


def _tokenizer_of(symbols: str) -> Tokenizer:
    return Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))


def _wrap(
    tokenizer: Tokenizer, model_max_length: int | None, eos_token: AddedToken | None = None
) -> PreTrainedTokenizerFast:
    mask_token = _special_token(MASK_TOKEN)
    tokenizer.add_special_tokens([token for token in (eos_token, mask_token) if token is not None])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos_token,
        mask_token=mask_token,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _special_token(content: str) -> AddedToken:
    # Not normalised: the normaliser of text8 would turn "[MASK]" into " mask " before it could be recognised.
    return AddedToken(content, special=True, normalized=False)


def _byte_symbols() -> str:
    """The 256 printable characters by which byte-level tokenizers (GPT-2) write the bytes 0..255, in that order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    replacements = iter(range(256, 512))
    return "".join(chr(byte if byte in printable else next(replacements)) for byte in range(256))
