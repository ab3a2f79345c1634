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
from md4_hf.model_card import PAPER, TAGS


FOLDER = Path(__file__).parents[1] / "model_cards"
VOCABULARY = {"text8": 28, "gpt2": 50258}  # tokens of the presets' tokenizers, the mask included
DATA = {
    "pydoc": "the reference manual that comes with every Python",
    "afmck/text8": "English Wikipedia, as a to z and the space",
    "Skylion007/openwebtext": "English web pages",
}
LIMITS = {
    "pydoc": "The text is a single manual in lower case and without punctuation: a model of it shows that training "
    "works, and is of no other use.",
    "afmck/text8": "The alphabet is a to z and the space: no capitals, digits or punctuation. The preset evaluates on "
    "the validation split, and the paper's number is of the test split.",
    "Skylion007/openwebtext": "The preset holds out the last documents of the data set, which need not be the text "
    "that the paper's number is of. A model of web pages repeats what they hold, mistakes and prejudices included.",
}
OFFICIAL = (
    "The options are the official configuration, with one difference: `Trainer` leaves biases and norms out of the "
    "weight decay. The data set could not be reached from where this was written: of the recipe, the code has been "
    "run, on stand-ins, and the training has not."
)
BOUNDS = (
    "Likelihoods are upper bounds (NELBO), estimated by Monte Carlo. Nothing is done to make a model's text true or "
    "safe."
)

_TEMPLATE = """---
{metadata}
---

# MD4 preset `{name}`

A recipe for a masked diffusion language model ([MD4]({paper})): the preset `{name}` of
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

What is not named has the default of `MD4Config`, `MD4TrainingArguments` or `DataArguments`.

## Result

| | |
| --- | --- |
| paper | {paper_result} |
| here | {our_result} |

## Train

```bash
md4 train --preset {name} --output_dir runs/my-{name}
```

On several GPUs, with the accumulation steps that make {batch_size} sequences a step:

```bash
accelerate launch scripts/train.py --preset {name} --output_dir runs/my-{name}
```

## Load

With md4_hf:

```python
from md4_hf import MaskedDiffusionPipeline

pipe = MaskedDiffusionPipeline.from_pretrained("runs/my-{name}")
print(pipe(num_samples=1).texts[0])
```

With transformers alone, which runs the code that lies in the folder:

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("runs/my-{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("runs/my-{name}", trust_remote_code=True)
```

## Limits

{limits}
"""


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
    """What the Hub reads; a licence is for weights, of which there are none."""
    data = preset.data["data"]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation" if preset.model.get("time_conditioning", True) else "fill-mask",
        language=["en"],
        datasets=[data] if "/" in data else None,
        tags=TAGS,
    )


def make_recipe(preset) -> list[tuple[str, str]]:
    """What follows from the options."""
    steps, length = preset.training["max_steps"], preset.data["block_size"]
    return [
        ("parameters", f"{count_parameters(preset):,}"),
        ("tokenizer", f"`{preset.tokenizer}`, {VOCABULARY[preset.tokenizer]:,} tokens with the mask"),
        ("data", f"`{preset.data['data']}`: {DATA[preset.data['data']]}"),
        ("batch", f"{preset.batch_size} sequences of {length} tokens, over all devices"),
        ("tokens in all", f"{steps * preset.batch_size * length:,}"),
    ]


def count_parameters(preset) -> int:
    """Of the preset's model, which is not built for that."""
    sizes = {"vocab_size": VOCABULARY[preset.tokenizer], "max_position_embeddings": preset.data["block_size"]}
    with torch.device("meta"):
        model = MD4ForMaskedDiffusion(MD4Config(**sizes, **preset.model))
    return sum(parameter.numel() for parameter in model.parameters())


def describe_result(result) -> str:
    if result is None:
        return "not trained here"
    return f"{result['result']} (`{result['command']}`, {result['date']}, {result['machine']})"


def make_limits(preset) -> str:
    official = [] if preset.paper is None else [OFFICIAL]
    return "\n\n".join(textwrap.fill(text, 119) for text in (LIMITS[preset.data["data"]], *official, BOUNDS))


def options_table(options) -> str:
    return table((f"`{name}`", f"`{value}`") for name, value in options.items())


def table(rows) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


if __name__ == "__main__":
    write_cards()
