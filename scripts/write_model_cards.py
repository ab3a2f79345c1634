# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Write `model_cards/`: a table of all presets, and a card of each that was trained here.

python scripts/write_model_cards.py

The recipes come from `PRESETS`, the measured results from `model_cards/results.json`.
"""

import json
import math
import textwrap
from pathlib import Path

import torch
from huggingface_hub import ModelCardData

from md4_hf import PRESETS, MD4Config, MD4ForMaskedDiffusion
from md4_hf.objective import modality
from md4_hf.training.model_card import IMAGE_TAGS, PAPER, TAGS


FOLDER = Path(__file__).parents[1] / "model_cards"
VOCABULARY = {"text8": 28, "gpt2": 50258}  # tokens of the presets' tokenizers, the mask included
DATA = {
    "pydoc": "the reference manual that comes with every Python",
    "digits": "the handwritten digits that come with scikit-learn",
}
LIMITS = {
    "pydoc": "The text is a single manual in lower case and without punctuation: a model of it shows that training "
    "works, and is of no other use.",
    "digits": "The images are small, grey and few: a model of them shows that training works, and is of no other use.",
}
BOUNDS = "Likelihoods are upper bounds (NELBO), estimated by Monte Carlo."
TEXT_BOUNDS = f"{BOUNDS} Nothing is done to make a model's text true or safe."
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

_TEMPLATE = """---
{metadata}
---

# MD4 preset `{name}`

A recipe for a masked diffusion {kind} model ([MD4]({paper})): the preset `{name}` of
md4_hf. No weights are published with this card.

## Recipe

| | |
| --- | --- |
{recipe}

| model | value |
| --- | --- |
{model}

| training | value |
| --- | --- |
{training}

| data | value |
| --- | --- |
{data}

What is not named has the default of `MD4Config`, `MD4TrainingArguments` or `{data_class}`.

## Result

| | |
| --- | --- |
| paper | {paper_result} |
| here | {our_result} |

## Train

```bash
md4 train --preset {name} --output_dir runs/my-{name}
```

On several GPUs, with the accumulation steps that make {batch_size} {examples} a step:

```bash
accelerate launch scripts/train.py --preset {name} --output_dir runs/my-{name}
```

## Load

With md4_hf:

```python
from md4_hf import MaskedDiffusionPipeline

pipe = MaskedDiffusionPipeline.from_pretrained("runs/my-{name}")
{sample}
```

With transformers alone, which runs the code that lies in the folder:

```python
from transformers import {auto_classes}

model = {auto_model}.from_pretrained("runs/my-{name}", trust_remote_code=True)
{processor} = {auto_processor}.from_pretrained("runs/my-{name}", trust_remote_code=True)
```

## Limits

{limits}
"""


TEXT = {
    "kind": "language",
    "examples": "sequences",
    "data_class": "DataArguments",
    "sample": "print(pipe(num_samples=1).texts[0])",
    "auto_classes": "AutoModelForMaskedLM, AutoTokenizer",
    "auto_model": "AutoModelForMaskedLM",
    "auto_processor": "AutoTokenizer",
    "processor": "tokenizer",
}
IMAGES = {
    "kind": "image",
    "examples": "images",
    "data_class": "ImageDataArguments",
    "sample": 'pipe(class_labels=0).images[0].save("sample.png")',
    "auto_classes": "AutoImageProcessor, AutoModel",
    "auto_model": "AutoModel",
    "auto_processor": "AutoImageProcessor",
    "processor": "image_processor",
}


def write_pages():
    """Write the table into its page, and the cards beside the results."""
    for name, text in make_pages().items():
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")


def make_pages() -> dict[str, str]:
    """Texts by name: "README" with the table of all presets, and a card of each that was trained."""
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    rows = [make_row(name, preset, results.get(name)) for name, preset in PRESETS.items()]
    head, rest = (FOLDER / "README.md").read_text(encoding="utf-8").split(BEGIN)
    page = "\n\n".join([head + BEGIN, table([COLUMNS, ["---"] * len(COLUMNS), *rows]), END + rest.split(END)[1]])
    return {"README": page, **{name: make_card(name, PRESETS[name], result) for name, result in results.items()}}


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


def make_card(name, preset, result) -> str:
    return _TEMPLATE.format(
        **(IMAGES if preset.is_image else TEXT),
        metadata=make_metadata(preset).to_yaml(),
        name=name,
        paper=PAPER,
        recipe=table(make_recipe(preset)),
        model=options_table(preset.model),
        training=options_table(preset.training),
        data=options_table(preset.data),
        paper_result=preset.paper or "has no such model",
        our_result=describe_result(result),
        batch_size=preset.batch_size,
        limits=make_limits(preset),
    )


def make_metadata(preset) -> ModelCardData:
    """Metadata for the Hub, without a licence, which is for weights."""
    kind = modality.IMAGES if preset.is_image else modality.TEXT
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=kind.pipeline_tag(preset.model.get("time_conditioning", True)),
        language=None if preset.is_image else ["en"],
        tags=IMAGE_TAGS if preset.is_image else TAGS,
    )


def make_recipe(preset) -> list[tuple[str, str]]:
    """Sizes that follow from the options."""
    steps = preset.training["max_steps"]
    if preset.is_image:
        config = make_config(preset)
        channels, height, width = config.sample_shape
        size = f"{height} × {width} × {channels}, {config.vocab_size - 1} levels"
        return [
            ("parameters", f"{count_parameters(preset):,}"),
            ("images", f"{size}, a token each value, and the mask"),
            ("data", f"`{preset.data['data']}`: {DATA[preset.data['data']]}"),
            ("batch", f"{preset.batch_size} images, over all devices"),
            ("images in all", f"{steps * preset.batch_size:,}"),
        ]
    length = preset.data["block_size"]
    return [
        ("parameters", f"{count_parameters(preset):,}"),
        ("tokenizer", f"`{preset.tokenizer}`, {VOCABULARY[preset.tokenizer]:,} tokens with the mask"),
        ("data", f"`{preset.data['data']}`: {DATA[preset.data['data']]}"),
        ("batch", f"{preset.batch_size} sequences of {length} tokens, over all devices"),
        ("tokens in all", f"{steps * preset.batch_size * length:,}"),
    ]


def make_config(preset) -> MD4Config:
    """Configuration of the preset's model."""
    if preset.is_image:
        return MD4Config(vocab_size=preset.data.get("num_levels", 256) + 1, **preset.model)
    sizes = {"vocab_size": VOCABULARY[preset.tokenizer], "max_position_embeddings": preset.data["block_size"]}
    return MD4Config(**sizes, **preset.model)


def count_parameters(preset) -> int:
    """Number of parameters of the preset's model, which is made on the meta device."""
    with torch.device("meta"):
        model = MD4ForMaskedDiffusion(make_config(preset))
    return sum(parameter.numel() for parameter in model.parameters())


def describe_result(result) -> str:
    return f"{result['result']} (`{result['command']}`, {result['date']}, {result['machine']})"


def make_limits(preset) -> str:
    texts = LIMITS[preset.data["data"]], BOUNDS if preset.is_image else TEXT_BOUNDS
    return "\n\n".join(textwrap.fill(text, 119) for text in texts)


def options_table(options) -> str:
    return table((f"`{name}`", f"`{value}`") for name, value in options.items())


def table(rows) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    write_pages()
