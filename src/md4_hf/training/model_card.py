# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The model card of a training run, made of what the run itself knows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..hub.adapters import is_adapted
from ..utils.sharding import count_parameters


PAPER = "https://arxiv.org/abs/2406.04329"
TAGS = ["md4", "md4_hf", "masked-diffusion", "discrete-diffusion", "diffusion-language-model"]
IMAGE_TAGS = [*TAGS[:-1], "image-generation"]
CAUSAL_TAGS = ["md4", "md4_hf", "autoregressive"]

_TEMPLATE = """---
{metadata}
---

# {title}

{summary}

| | |
| --- | --- |
{facts}

## Likelihood

{likelihood}

{plot}## Use

{use}

{samples}## Licence and limits

{license}

{limits} The model repeats what its data holds, mistakes and prejudices included.{safety}
"""

_USE_MODEL = """With md4_hf installed:

```python
from md4_hf import MaskedDiffusionPipeline

pipe = MaskedDiffusionPipeline.from_pretrained("{location}")
print(pipe(num_samples=1).texts[0])
```

With transformers alone, which runs the code in this repository:

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("{location}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{location}", trust_remote_code=True)
```"""

_USE_IMAGE_MODEL = """With md4_hf installed:

```python
from md4_hf import MaskedDiffusionPipeline

pipe = MaskedDiffusionPipeline.from_pretrained("{location}")
pipe({label}num_samples=1).images[0].save("sample.png")
```

With transformers alone, which runs the code in this repository:

```python
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{location}", trust_remote_code=True)
image_processor = AutoImageProcessor.from_pretrained("{location}", trust_remote_code=True)
```"""

_USE_CAUSAL_MODEL = """With md4_hf installed (the model has no code beside it, and no pipeline: it is for likelihoods):

```python
from md4_hf import load_model, load_tokenizer

model, tokenizer = load_model("{location}"), load_tokenizer("{location}")
ids = tokenizer("some text", return_tensors="pt").input_ids
print(model(ids, labels=ids).loss)  # -log p in nats per token
```"""

_BOUND = """The likelihood is an upper bound on the negative log-likelihood (NELBO), estimated on the held-out
part of the data named above."""
_EXACT = "The likelihood is exact, that of the held-out part of the data named above."

_USE_ADAPTER = """With md4_hf installed, which finds the base model by itself:

```python
from md4_hf import load_pipeline

pipe = load_pipeline("{location}")
print(pipe(num_samples=1).texts[0])
```

With transformers and peft, which run the code in the base model's repository:

```python
from peft import PeftModel
from transformers import AutoModel

base = AutoModel.from_pretrained("{base}", trust_remote_code=True)
model = PeftModel.from_pretrained(base, "{location}")
```"""


@dataclass
class CardFacts:
    """What a model card says that the model, its arguments and its log do not know.

    Args:
        title: Heading; the name of the repository or folder by default.
        data: What the model was trained on, in words.
        datasets: Ids of data sets on the Hub.
        language: Languages of the data, as two-letter codes.
        license: Identifier of the licence of the weights, such as "apache-2.0".
        tags: Tags besides those of every card.
        metrics: An evaluation (`eval_loss`, ...); the last one in the log by default.
        baselines: Held-out bits per character (of images, per dimension) of simple models of the same data, by name.
        samples: Samples to show.
        sample_grid: File name of a picture of samples, beside the card.
        sample_prompt: Text that samples drawn for the card begin with.
        plot: File name of the loss plot, beside the card.
        location: What to load the model by.
        base_model: Id or folder of the model that was fine-tuned.
        widget: Texts that the Hub's page offers to try.
    """

    title: str = "MD4 masked diffusion model"
    data: str = "not recorded"
    datasets: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=list)
    license: str | None = None
    tags: list[str] = field(default_factory=list)
    metrics: Mapping[str, float] | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[str] = ()
    sample_grid: str | None = None
    sample_prompt: str | None = None
    plot: str | None = None
    location: str = "PATH_OR_HUB_ID"
    base_model: str | None = None
    widget: list[str] = field(default_factory=list)


def make_model_card(model, args, state, facts: CardFacts | None = None) -> ModelCard:
    """Describe a trained model.

    Args:
        model: The `MD4ForMaskedDiffusion`, or the `PeftModel` of an adapter for one.
        args: Its `MD4TrainingArguments`.
        state: The `TrainerState` at the end.
        facts: What these do not know.
    """
    facts = facts or CardFacts()
    metrics = facts.metrics
    if metrics is None:
        metrics = next((entry for entry in reversed(state.log_history) if "eval_loss" in entry), {})
    adapter, is_image = is_adapted(model), model.config.is_image
    is_causal = model.config.is_causal
    whole = _USE_CAUSAL_MODEL if is_causal else _USE_IMAGE_MODEL if is_image else _USE_MODEL
    use = _USE_ADAPTER if adapter else whole
    content = _TEMPLATE.format(
        metadata=_metadata(model, facts, metrics).to_yaml(),
        title=facts.title,
        summary=_summary(adapter, is_causal, facts),
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(model, args, state, facts)),
        likelihood=_likelihood(metrics, facts.baselines, is_image, is_causal),
        limits=_EXACT if is_causal else _BOUND,
        plot=f"![Training and held-out loss]({facts.plot})\n\n" if facts.plot else "",
        use=use.format(
            location=facts.location,
            base=facts.base_model,
            label="" if model.config.num_classes is None else "class_labels=0, ",
        ),
        samples=_samples(facts.samples, facts.sample_grid),
        license=_license(facts.license),
        safety="" if is_image else " Nothing was done to make its text\ntrue or safe.",
    )
    return ModelCard(content)


def _metadata(model, facts: CardFacts, metrics: Mapping[str, float]) -> ModelCardData:
    adapter, is_image = is_adapted(model), model.config.is_image
    is_causal = model.config.is_causal
    results = _evaluation_results(facts, metrics, is_image, is_causal)
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        tags=[
            *(IMAGE_TAGS if is_image else CAUSAL_TAGS if is_causal else TAGS),
            *(["lora"] if adapter else []),
            *facts.tags,
        ],
        pipeline_tag=pipeline_tag(model.config.is_image, model.config.time_conditioning or is_causal),
        license=facts.license,
        language=facts.language or None,
        datasets=facts.datasets or None,
        # Ids of the Hub only: it refuses a card that names a folder.
        base_model=None if facts.base_model and Path(facts.base_model).exists() else facts.base_model,
        widget=[{"text": text} for text in facts.widget] or None,
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def pipeline_tag(is_image: bool, time_conditioning: bool) -> str:
    """The task that the Hub lists a model under."""
    if is_image:
        return "unconditional-image-generation"
    # A model that does not see the time is a masked language model to transformers.
    return "text-generation" if time_conditioning else "fill-mask"


def _evaluation_results(
    facts: CardFacts, metrics: Mapping[str, float], is_image: bool, is_causal: bool
) -> list[EvalResult]:
    """The rows of `model-index`, which the Hub shows beside the model."""
    bound = "" if is_causal else " (upper bound)"
    names = {
        "eval_perplexity": ("perplexity", f"Perplexity{bound}"),
        "eval_bits_per_character": ("bits_per_character", f"Bits per character{bound}"),
        "eval_bits_per_dimension": ("bits_per_dimension", f"Bits per dimension{bound}"),
        "eval_loss": ("nll" if is_causal else "nelbo", f"{_nats(is_causal)}, nats per token"),
    }
    by = "by an autoregressive model" if is_causal else "by masked diffusion"
    if is_image:
        del names["eval_perplexity"]  # per token of an image: nobody asks for that
    return [
        EvalResult(
            task_type=pipeline_tag(True, True) if is_image else "text-generation",
            task_name=f"{'Image' if is_image else 'Language'} modelling {by}",
            dataset_type=facts.datasets[0] if facts.datasets else "custom",
            dataset_name=f"{facts.data}, held-out part",
            metric_type=metric_type,
            metric_name=metric_name,
            metric_value=round(float(metrics[key]), 4),
        )
        for key, (metric_type, metric_name) in names.items()
        if math.isfinite(metrics.get(key, math.nan))
    ]


def _nats(is_causal: bool) -> str:
    """What the likelihood in nats is called."""
    return "−log p" if is_causal else "NELBO"


def _summary(adapter: bool, is_causal: bool, facts: CardFacts) -> str:
    if adapter:
        return (
            f"A LoRA adapter for the masked diffusion model ([MD4]({PAPER})) {facts.base_model}, made with `md4_hf`."
        )
    origin = f", fine-tuned from {facts.base_model}" if facts.base_model else ""
    if is_causal:
        return (
            f"An autoregressive transformer with the network of [MD4]({PAPER}), trained with `md4_hf`{origin}: what a "
            "masked diffusion model of its size is compared with."
        )
    return f"A masked diffusion model ([MD4]({PAPER})) trained with `md4_hf`{origin}."


def _facts(model, args, state, facts: CardFacts) -> list[tuple[str, Any]]:
    config = model.config
    kind = "learned for each token, GenMD4" if config.learn_masking_schedule else config.masking_schedule
    schedule = f"{kind} (eps {config.schedule_eps:g})"
    time = "continuous" if config.num_train_timesteps is None else f"{config.num_train_timesteps} steps"
    parameters, trained = count_parameters(model), count_parameters(model, trained_only=True)
    step_examples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = [
        ("Data", facts.data),
        (
            "Parameters",
            f"{parameters:,}" if trained == parameters else f"{parameters:,}, of which {trained:,} trained",
        ),
        *_network(config),
        *([] if config.is_causal else [("Masking schedule", schedule), ("Training time", time)]),
        ("Optimizer steps", f"{state.global_step:,}"),
        ("Tokens seen", f"{state.num_input_tokens_seen:,}" if state.num_input_tokens_seen else "not counted"),
        (f"{'Images' if config.is_image else 'Sequences'} per step", f"{step_examples:,}"),
        ("Optimizer", "Muon, AdamW for all but the matrices of the blocks" if args.use_muon else args.optim.value),
        ("Learning rate", f"{args.learning_rate:g}, weight decay {args.weight_decay:g}"),
        ("Weights", f"moving average, decay {args.ema_decay:g}" if args.ema_decay else "last step's"),
        ("Seed", args.seed),
    ]
    if is_adapted(model):
        lora = next(iter(model.peft_config.values()))
        kind = ("DoRA" if lora.use_dora else "LoRA") + (", scaled as rsLoRA" if lora.use_rslora else "")
        rows.insert(2, ("Adapter", f"{kind}, rank {lora.r}, alpha {lora.lora_alpha}"))
    return rows


def _network(config) -> list[tuple[str, str]]:
    sees = ("Sees the time", "yes" if config.time_conditioning else "no")
    layers = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    if not config.is_image:
        return [
            ("Network", f"{layers}, {config.mlp_type}"),
            ("Attention", "causal") if config.is_causal else sees,
            ("Length", f"{config.max_position_embeddings} tokens"),
        ]
    if len(config.channel_multipliers) > 1:
        layers += f" times {config.channel_multipliers}"
    middle = f", {config.dit_num_hidden_layers} DiT layers of width {config.dit_hidden_size} in its middle"
    network = f"U-Net, {layers}" if config.backbone == "unet" else f"U-ViT, {layers}{middle}"
    channels, height, width = config.sample_shape
    images = f"{height} × {width} × {channels}, {config.vocab_size - 1} levels"
    dropout = f", left out of {config.class_dropout:.0%} of the examples" if config.null_class is not None else ""
    classes = "none" if config.num_classes is None else f"{config.num_classes}{dropout}"
    return [("Network", network), sees, ("Images", images), ("Classes", classes)]


def _likelihood(metrics: Mapping[str, float], baselines: Mapping[str, float], is_image: bool, is_causal: bool) -> str:
    if "eval_loss" not in metrics:
        return "Not evaluated."
    error = metrics["eval_loss_stderr"]
    lines = [
        "| held-out data | value |",
        "| --- | --- |",
        f"| {_nats(is_causal)}, nats per token | {metrics['eval_loss']:.4f} ± {error:.4f} |",
    ]
    if not is_image:
        perplexity = metrics["eval_perplexity"]
        lines.append(f"| perplexity | {perplexity:.3f} ± {perplexity * error:.3f} |")
    unit, example = ("dimension", "image") if is_image else ("character", "sequence")
    if f"eval_bits_per_{unit}" in metrics:
        bits, error = metrics[f"eval_bits_per_{unit}"], metrics[f"eval_bits_per_{unit}_stderr"]
        lines.append(f"| bits per {unit} | {bits:.4f} ± {error:.4f} |")
    lines += [f"| bits per {unit} of the {name} model | {bits:.4f} |" for name, bits in baselines.items()]
    draws = "" if is_causal else f", {metrics.get('eval_num_draws', 1)} draws per {example}"
    lines.append(f"\n{metrics['eval_num_tokens']:,} tokens{draws}; ± is one standard error.")
    return "\n".join(lines)


def _license(license: str | None) -> str:
    if license is None:
        return "No licence has been chosen for these weights: ask their owner before you use them."
    return f"The weights are under the licence `{license}`."


def _samples(samples: Sequence[str], grid: str | None) -> str:
    if grid is not None:
        return f"## Samples\n\n![Samples of the model]({grid})\n\n"
    if not samples:
        return ""
    fence = "~~~~"  # a sample may hold any other
    return "## Samples\n\n" + "\n\n".join(f"{fence}text\n{sample}\n{fence}" for sample in samples) + "\n\n"
