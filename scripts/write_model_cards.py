# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Write the model card of every preset, from `PRESETS` and the measured results in `model_cards/results.json`.

python scripts/write_model_cards.py
"""

import json
import textwrap
from pathlib import Path

import torch
from huggingface_hub import ModelCardData

from md4_hf import PRESETS, MD4Config, MD4ForMaskedDiffusion
from md4_hf.training.model_card import IMAGE_TAGS, PAPER, TAGS, pipeline_tag


FOLDER = Path(__file__).parents[1] / "model_cards"
VOCABULARY = {"text8": 28, "gpt2": 50258}  # tokens of the presets' tokenizers, the mask included
DATA = {
    "pydoc": "the reference manual that comes with every Python",
    "afmck/text8": "English Wikipedia, as a to z and the space",
    "Skylion007/openwebtext": "English web pages",
    "digits": "the handwritten digits that come with scikit-learn",
    "uoft-cs/cifar10": "50,000 photographs of ten kinds of things, 32 × 32",
    "benjamin-paine/imagenet-1k-64x64": "1.28 million photographs of a thousand kinds of things, 64 × 64",
}
LIMITS = {
    "pydoc": "The text is a single manual in lower case and without punctuation: a model of it shows that training "
    "works, and is of no other use.",
    "afmck/text8": "The alphabet is a to z and the space: no capitals, digits or punctuation. The preset evaluates on "
    "the validation split, and the paper's number is of the test split.",
    "Skylion007/openwebtext": "The preset holds out the last documents of the data set, which need not be the text "
    "that the paper's number is of. A model of web pages repeats what they hold, mistakes and prejudices included.",
    "digits": "The images are small, grey and few: a model of them shows that training works, and is of no other use.",
    "uoft-cs/cifar10": "A model of photographs from the web shows what was chosen for the data and what was left out.",
    "benjamin-paine/imagenet-1k-64x64": "A model of photographs from the web shows what was chosen for the data and "
    "what was left out. The images were scaled to 64 × 64 in another way than those that the paper's number is of.",
}
IMAGENET64 = (
    "The network, batch, learning rate, weight decay and steps are the paper's. The masking schedule is a choice; the "
    "other options of the training are those of `cifar10`, without its dropout. The drop-out of classes, for guidance, "
    "is not the paper's. Of the recipe, the code has been run, on stand-ins, and the training has not."
)
NOT_RUN = (
    "The data set could not be reached from where this was written: of the recipe, the code has been run, on "
    "stand-ins, and the training has not."
)
WEIGHT_DECAY = "`Trainer` leaves biases and norms out of the weight decay"
OFFICIAL = f"The options are the official configuration, with one difference: {WEIGHT_DECAY}. {NOT_RUN}"
CIFAR10 = (
    f"The options are the official configuration, with two differences: {WEIGHT_DECAY}, and the masking schedule is a "
    f"choice, as the official one is not known here. {NOT_RUN}"
)
BOUNDS = (
    "Likelihoods are upper bounds (NELBO), estimated by Monte Carlo. Nothing is done to make a model's text true or "
    "safe."
)
IMAGE_BOUNDS = "Likelihoods are upper bounds (NELBO), estimated by Monte Carlo."

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
    "auto_classes": "AutoImageProcessor, AutoModel",
    "auto_model": "AutoModel",
    "auto_processor": "AutoImageProcessor",
    "processor": "image_processor",
}


def write_cards():
    """Write all cards beside the results."""
    for name, text in make_cards().items():
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")


def make_cards() -> dict[str, str]:
    """The text of each card, by preset."""
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    return {name: make_card(name, preset, results.get(name)) for name, preset in PRESETS.items()}


def make_card(name, preset, result) -> str:
    return _TEMPLATE.format(
        **describe_kind(preset),
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


def describe_kind(preset) -> dict[str, str]:
    """What a card calls things, for text or for images."""
    if not preset.is_image:
        return TEXT
    label = "class_labels=0" if "num_classes" in preset.model else ""
    return {**IMAGES, "sample": f'pipe({label}).images[0].save("sample.png")'}


def make_metadata(preset) -> ModelCardData:
    """What the Hub reads; a licence is for weights, of which there are none."""
    data = preset.data["data"]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline_tag(preset.is_image, preset.model.get("time_conditioning", True)),
        language=None if preset.is_image else ["en"],
        datasets=[data] if "/" in data else None,
        tags=IMAGE_TAGS if preset.is_image else TAGS,
    )


def make_recipe(preset) -> list[tuple[str, str]]:
    """What follows from the options."""
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
    """Of the preset's model."""
    if preset.is_image:
        return MD4Config(vocab_size=preset.data.get("num_levels", 256) + 1, **preset.model)
    sizes = {"vocab_size": VOCABULARY[preset.tokenizer], "max_position_embeddings": preset.data["block_size"]}
    return MD4Config(**sizes, **preset.model)


def count_parameters(preset) -> int:
    """Of the preset's model, which is not built for that."""
    with torch.device("meta"):
        model = MD4ForMaskedDiffusion(make_config(preset))
    return sum(parameter.numel() for parameter in model.parameters())


def describe_result(result) -> str:
    if result is None:
        return "not trained here"
    return f"{result['result']} (`{result['command']}`, {result['date']}, {result['machine']})"


def make_limits(preset) -> str:
    data = preset.data["data"]
    origin = [OFFICIAL] if preset.paper is not None else []
    if "imagenet" in data:
        origin = [IMAGENET64]
    elif "cifar10" in data:
        origin = [CIFAR10]
    bounds = IMAGE_BOUNDS if preset.is_image else BOUNDS
    return "\n\n".join(textwrap.fill(text, 119) for text in (LIMITS[data], *origin, bounds))


def options_table(options) -> str:
    return table((f"`{name}`", f"`{value}`") for name, value in options.items())


def table(rows) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


if __name__ == "__main__":
    write_cards()
