# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Write `model_cards/`: a table of all presets, and a card of each that was trained here.

python scripts/write_model_cards.py

The recipes come from `PRESETS`, the measured results from `model_cards/results.json`.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from md4_hf import PRESETS, MD4Config, MD4ForMaskedDiffusion


FOLDER = Path(__file__).parents[1] / "model_cards"
VOCABULARY = {"text8": 28, "gpt2": 50258}  # tokens of the presets' tokenizers, the mask included
BPE, NUM_SPECIAL = "bpe:", 2  # name of a tokenizer that is trained, and its tokens for EOS and the mask
DATA = {
    "pydoc": "the reference manual that comes with every Python",
    "docstrings": "English prose of the reference manual, the standard library and other installed libraries",
    "digits": "the handwritten digits that come with scikit-learn",
}
BEGIN, END = "<!-- written by scripts/write_model_cards.py -->", "<!-- end -->"
NETWORKS = {
    "transformer": "{config.num_hidden_layers} × {config.hidden_size}",
    "unet": "U-Net, {config.num_hidden_layers} × {config.hidden_size}",
    "uvit": "U-ViT, {config.dit_num_hidden_layers} × {config.dit_hidden_size} in its middle",
}
COLUMNS = (
    *("preset", "network", "parameters", "masking schedule", "dropout", "data", "batch", "steps", "learning rate"),
    *("warm-up", "weight decay", "result of the paper", "here"),
)


def write_pages():
    """Write the table into its page, and recipes and results into the cards."""
    for name, text in make_pages().items():
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")


def make_pages() -> dict[str, str]:
    """Texts by name: "README" with the table of all presets, and a card of each that was trained."""
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    rows = [make_row(name, preset, results.get(name)) for name, preset in PRESETS.items()]
    parts = {"README": table(rows, COLUMNS)}
    parts |= {name: make_recipe(PRESETS[name], result) for name, result in results.items()}
    return {name: write_between((FOLDER / f"{name}.md").read_text(encoding="utf-8"), parts[name]) for name in parts}


def write_between(page: str, part: str) -> str:
    """Replace the part of a page that is between the two marks."""
    head, rest = page.split(BEGIN)
    return "\n\n".join([head + BEGIN, part, END + rest.split(END)[1]])


def make_row(name, preset, result) -> list[str]:
    """Recipe and results of a preset, a cell for each of `COLUMNS`."""
    config, training = make_config(preset), preset.training
    size = math.prod(config.sample_shape) if preset.is_image else config.max_position_embeddings
    return [
        f"`{name}`" if result is None else f"[`{name}`]({name}.md)",
        NETWORKS[config.backbone].format(config=config),
        f"{count_parameters(preset):,}",
        f"{config.masking_schedule}{', learned for each token' if config.learn_masking_schedule else ''}",
        f"{config.residual_dropout:g}",
        f"`{preset.data['data']}`" + (f", {config.num_classes} classes" if config.num_classes else ""),
        f"{preset.batch_size} × {size}",
        f"{training['max_steps']:,}",
        f"{training['learning_rate']:g}",
        f"{training['warmup_steps']:,}",
        f"{training['weight_decay']:g}",
        preset.paper or "–",
        "not trained here" if result is None else describe_result(result),
    ]


def make_recipe(preset, result) -> str:
    """Recipe of a preset, with the sizes that follow from its options, and results."""
    training, data, batch_size = preset.training, preset.data, preset.batch_size
    if preset.is_image:
        config = make_config(preset)
        channels, height, width = config.sample_shape
        levels = f"{height} × {width} × {channels}, {config.vocab_size - 1} levels; a token per value, and the mask"
        kind, size, per_example, examples = ("images", levels), "images", 1, "images"
    else:
        tokens = f"`{preset.tokenizer}`, {num_tokens(preset.tokenizer):,} tokens including the mask"
        per_example = data["block_size"]
        kind, size, examples = ("tokenizer", tokens), f"sequences of {per_example} tokens", "tokens"
    sizes = [
        ("parameters", f"{count_parameters(preset):,}"),
        kind,
        ("data", f"`{data['data']}`: {DATA[data['data']]}"),
        ("batch", f"{batch_size} {size}, over all devices"),
        (f"{examples} in total", f"{training['max_steps'] * batch_size * per_example:,}"),
    ]
    options = {"model": preset.model, "training": training, "data": data}
    tables = [
        table(((f"`{k}`", f"`{v}`") for k, v in given.items()), (name, "value")) for name, given in options.items()
    ]
    arguments = "ImageDataArguments" if preset.is_image else "DataArguments"
    note = f"All other options have the defaults of `MD4Config`, `MD4TrainingArguments` and `{arguments}`."
    outcome = table([("paper", preset.paper or "no such model"), ("here", describe_result(result))])
    return "\n\n".join(["## Recipe", table(sizes), *tables, note, "## Result", outcome])


def make_config(preset) -> MD4Config:
    """Configuration of the preset's model."""
    if preset.is_image:
        return MD4Config(vocab_size=preset.data.get("num_levels", 256) + 1, **preset.model)
    sizes = {"vocab_size": num_tokens(preset.tokenizer), "max_position_embeddings": preset.data["block_size"]}
    return MD4Config(**sizes, **preset.model)


def num_tokens(tokenizer: str) -> int:
    """Tokens of a preset's tokenizer, the mask included."""
    if tokenizer.startswith(BPE):
        return int(tokenizer.removeprefix(BPE)) + NUM_SPECIAL
    return VOCABULARY[tokenizer]


def count_parameters(preset) -> int:
    """Number of parameters of the preset's model, which is made on the meta device."""
    with torch.device("meta"):
        model = MD4ForMaskedDiffusion(make_config(preset))
    return sum(parameter.numel() for parameter in model.parameters())


def describe_result(result) -> str:
    return f"{result['result']} (`{result['command']}`, {result['date']}, {result['machine']})"


def table(rows, header=("", "")) -> str:
    """Rows of cells as a Markdown table."""
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_pages()
