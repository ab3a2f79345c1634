# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 evaluate`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from md4_hf import (
    DataArguments,
    ImageDataArguments,
    MD4ImageProcessor,
    MD4Trainer,
    MD4TrainingArguments,
    PairArguments,
    check_tokenizer_matches,
    encode_pairs,
    load_documents,
    load_model,
    load_pairs,
    load_table,
    load_tokenizer,
    load_train_validation,
    parse_arguments,
)

from .cli_images import check_no_images, evaluation_images
from .cli_train import check_block_size, check_no_document_mask, pack_as_asked, print_metrics


@dataclass
class EvaluateArguments:
    """How to evaluate."""

    _argument_group_name = "evaluation"

    draws: int = field(default=8, metadata={"help": "Stratified draws of time and masks per sequence."})
    batch_size: int = field(default=32, metadata={"help": "Sequences per forward pass."})
    seed: int = field(default=0, metadata={"help": "Seed of the evaluation noise."})
    bf16: bool = field(default=False, metadata={"help": "Evaluate under bf16 autocast."})
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even if there is an accelerator."})
    base: str | None = field(default=None, metadata={"help": "Base model of an adapter, if not the one it names."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the figures to this JSON file."})

    def __post_init__(self):
        for name in ("draws", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)}.")


def evaluate(argv: list[str] | None = None):
    """`md4 evaluate`: the NELBO of held-out text or images, with its standard error."""
    options, pair_args, data_args, image_args, rest = parse_arguments(
        (EvaluateArguments, PairArguments, DataArguments, ImageDataArguments),
        argv,
        prog="md4 evaluate",
        description="Bound the likelihood of text: nats per token, perplexity, bits per character, each with its "
        "error; or that of images, in bits per dimension. With --validation_data that is scored, else the held-out "
        "part of --data. Blocks of text are as long as the model's length unless --block_size is given.",
        positional={"model": "Folder or Hub id of a model or adapter."},
        defaults={"block_size": None},
    )
    hub = {"revision": options.revision}
    model = load_model(rest.model, base=options.base, **hub)
    config = model.config
    if config.is_image:
        processor = MD4ImageProcessor.for_config(config)
    else:
        processor = load_tokenizer(rest.model, **hub)
        check_tokenizer_matches(processor, config.vocab_size, config.mask_token_id)
        check_no_images(image_args)
        data_args.block_size = data_args.block_size or config.max_position_embeddings
        check_block_size(data_args.block_size, config)
    with tempfile.TemporaryDirectory() as folder:
        args = MD4TrainingArguments(
            output_dir=folder,
            per_device_eval_batch_size=options.batch_size,
            eval_draws=options.draws,
            eval_seed=options.seed,
            bf16=options.bf16,
            use_cpu=options.use_cpu,
            ema_decay=0.0,
            report_to="none",
        )
        with args.main_process_first(desc="preparing the data"):
            if config.is_image:
                examples = evaluation_images(data_args, image_args, config)
            else:
                examples = evaluation_examples(data_args, pair_args, processor)
        trainer = MD4Trainer(model=model, args=args, eval_dataset=examples, processing_class=processor)
        metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        print_metrics(metrics, data_args)
        if options.output_file is not None:
            recipe = {"model": rest.model}
            for arguments in (options, pair_args, data_args, image_args):
                recipe |= dataclasses.asdict(arguments)
            metrics = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            write_whole(Path(options.output_file), json.dumps({"metrics": metrics, "recipe": recipe}, indent=2) + "\n")


def write_whole(path: Path, text: str):
    """Write a file that is never seen half-written."""
    temporary = path.with_name(f".{path.name}.in-progress")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def evaluation_examples(data_args: DataArguments, pair_args: PairArguments, tokenizer):
    """The data named for validation, or the held-out part of the data, as pairs or as blocks of text."""
    options = {
        "config": data_args.validation_config,
        "split": data_args.validation_split or data_args.data_split,
        "streaming": data_args.streaming,
    }
    named = data_args.validation_data
    if pair_args.given:
        check_no_document_mask(data_args)
        pairs = load_pairs(data_args)[1] if named is None else load_table(named, **options)
        return encode_pairs(pairs, tokenizer, data_args.block_size, pair_args, data_args.num_proc)[0]
    if named is None:
        documents = load_train_validation(data_args)[1]
    else:
        documents = load_documents(named, text_column=data_args.text_column, **options)
    return pack_as_asked(documents, tokenizer, data_args)[0]
