# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The model card of a training run, made from the run itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..core.modeling_md4_auto import keeps_causal
from ..hub.adapters import is_adapted
from ..objective.figures import Figure, figures_of
from ..objective.modality import IMAGES, TEXT, Modality, modality_of
from ..utils.sharding import count_parameters


BASELINE_TITLES = {
    "ardm": "ARDM (order-agnostic autoregression, arXiv:2110.02037)",
    "d3pm-absorb": "D3PM with the absorbing kernel (arXiv:2107.03006)",
    "d3pm-uniform": "D3PM with the uniform kernel (arXiv:2107.03006)",
    "multinomial": "multinomial diffusion (arXiv:2102.05379)",
    "sedd-absorb": "SEDD with the absorbing kernel (arXiv:2310.16834)",
    "uniform": "the uniform kernel in continuous time (arXiv:2412.10193)",
}
PAPER = "https://arxiv.org/abs/2406.04329"
CAUSAL_TAGS = ("md4", "md4_hf", "autoregressive")

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


def _use_pipeline(sample: str, load: str) -> str:
    return f"""With md4_hf installed:

```python
from md4_hf import MaskedDiffusionPipeline

pipe = MaskedDiffusionPipeline.from_pretrained("{{location}}")
{sample}
```

With transformers alone, which runs the code in this repository:

```python
{load}
```"""


_LOAD_TEXT_MODEL = """from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("{location}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{location}", trust_remote_code=True)"""

# Not `from transformers import AutoImageProcessor`: 5.17 has it there with torchvision only.
_LOAD_IMAGE_MODEL = """from transformers import AutoModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

model = AutoModel.from_pretrained("{location}", trust_remote_code=True)
image_processor = AutoImageProcessor.from_pretrained("{location}", trust_remote_code=True)"""

_USE_CAUSAL_MODEL = """With md4_hf installed (the model has no code beside it, and no pipeline: it is for likelihoods):

```python
from md4_hf import load_model, load_tokenizer

model, tokenizer = load_model("{location}"), load_tokenizer("{location}")
ids = tokenizer("some text", return_tensors="pt").input_ids
print(model(ids, labels=ids).loss)  # -log p in nats per token
```"""

_USE_DISCRETE_MODEL = """With md4_hf installed (the model has no code beside it):

```python
from md4_hf import load_pipeline

pipe = load_pipeline("{location}")
print(pipe({label}num_samples=1).texts[0])
```"""

_BOUND = """The likelihood is an upper bound on the negative log-likelihood (NELBO), estimated on
{heldout}."""
_NO_LICENSE = "No licence has been chosen for these weights: ask their owner before you use them."
_EXACT = "The likelihood is exact, that of {heldout}."
_SUMMARY_MASKED = "A masked diffusion model ([MD4]({paper})) trained with `md4_hf`{origin}."
_SUMMARY_CAUSAL = (
    "An autoregressive transformer with the network of [MD4]({paper}), trained with `md4_hf`{origin}: the baseline for "
    "masked diffusion models of its size."
)
_SUMMARY_DISCRETE = (
    "A discrete diffusion model with the network of [MD4]({paper}) and another noise, trained with `md4_hf`{origin}: a "
    "baseline for masked diffusion models of its size."
)
_SUMMARY_ADAPTER = "A LoRA adapter for the masked diffusion model ([MD4]({paper})) {base}, made with `md4_hf`."

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
    """Facts for a model card that the model, its arguments and its log do not hold."""

    title: str = "MD4 masked diffusion model"  # replaced by the name of the repository or folder
    data: str = "not recorded"  # the training data, in words
    validation_data: str | None = None  # data of their own that are evaluated, in words; else a part of `data`
    datasets: list[str] = field(default_factory=list)  # ids of data sets on the Hub
    language: list[str] = field(default_factory=list)  # of the data, as two-letter codes
    license: str | None = None  # identifier of the licence of the weights, such as "apache-2.0"
    tags: list[str] = field(default_factory=list)  # besides those of every card
    metrics: Mapping[str, float] | None = None  # an evaluation (`eval_loss`, ...); the last one in the log by default
    baselines: Mapping[str, float] = field(default_factory=dict)  # held-out bits per unit of simple models, by name
    samples: Sequence[str] = ()
    sample_grid: str | None = None  # file name of a picture of samples, beside the card
    sample_prompt: str | None = None  # text that samples drawn for the card begin with
    plot: str | None = None  # file name of the loss plot, beside the card
    location: str = "PATH_OR_HUB_ID"  # folder or Hub id to load the model by
    base_model: str | None = None  # id or folder of the model that was fine-tuned
    widget: list[str] = field(default_factory=list)  # texts that the Hub's page offers to try


Rows = list[tuple[str, str]]


def _masked_text_rows(config) -> Rows:
    return [*_text_rows(config, _sees_time(config)), *_diffusion_rows(config)]


def _discrete_text_rows(config) -> Rows:
    weight = [("Weight of the cross entropy", f"{config.hybrid_weight:g}")] if config.hybrid_weight else []
    return [*_method(config), *_text_rows(config, _sees_time(config)), _training_time(config), *weight]


def _causal_text_rows(config) -> Rows:
    return _text_rows(config, ("Attention", "causal"))


def _text_rows(config, second: tuple[str, str]) -> Rows:
    kind = "DDiT" if config.backbone == "ddit" else config.mlp_type
    if config.backbone_config is not None:
        attention = "causal" if keeps_causal(config.backbone_config) else "bidirectional"
        kind = f"{config.backbone_config.model_type} of transformers, {attention}"
        kind += ", each predicting the next token" if config.predicts_next else ""
    network = f"{config.num_hidden_layers} layers of width {config.hidden_size}, {kind}"
    return [("Network", network), second, ("Length", f"{config.max_position_embeddings} tokens")]


def _image_rows(config) -> Rows:
    layers = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    if len(config.channel_multipliers) > 1:
        layers += f" times {config.channel_multipliers}"
    middle = f", {config.dit_num_hidden_layers} DiT layers of width {config.dit_hidden_size} in its middle"
    network = f"U-Net, {layers}" if config.backbone == "unet" else f"U-ViT, {layers}{middle}"
    channels, height, width = config.sample_shape
    images = f"{height} × {width} × {channels}, {config.vocab_size - 1} levels"
    dropout = f", left out of {config.class_dropout:.0%} of the examples" if config.null_class is not None else ""
    classes = "none" if config.num_classes is None else f"{config.num_classes}{dropout}"
    rows = [("Network", network), _sees_time(config), ("Images", images), ("Classes", classes)]
    return [*rows, *_diffusion_rows(config)]


def _sees_time(config) -> tuple[str, str]:
    return "Sees the time", "yes" if config.time_conditioning else "no"


def _method(config) -> Rows:
    return [] if config.baseline is None else [("Method", BASELINE_TITLES[config.baseline])]


def _training_time(config) -> tuple[str, str]:
    steps = config.num_train_timesteps
    return "Training time", "continuous" if steps is None else f"{steps} steps"


def _diffusion_rows(config) -> Rows:
    kind = "learned for each token, GenMD4" if config.learn_masking_schedule else config.masking_schedule
    blocks = [] if config.block_size is None else [("Blocks", f"{config.block_size} tokens, denoised from the left")]
    schedule = ("Masking schedule", f"{kind} (eps {config.schedule_eps:g})")
    return [*_method(config), *blocks, schedule, _training_time(config)]


def _clip_rows(schedule_clip: Sequence[float] | None) -> Rows:
    if schedule_clip is None:
        return []
    low, high = schedule_clip
    return [
        ("Mask rates", f"uniform in [{low:g}, {high:g}] in training, whose losses are no bounds; evaluated at all")
    ]


@dataclass(frozen=True)
class _Kind:
    """The texts of a card that differ between masked diffusion of text, that of images, and the causal baseline."""

    modality: Modality
    tags: tuple[str, ...]
    use: str
    network_rows: Callable[[Any], Rows]
    safety: str = " Nothing was done to make its text\ntrue or safe."
    summary: str = _SUMMARY_MASKED
    limits: str = _BOUND
    is_bound: bool = True
    method: str = "masked diffusion"
    nats_type: str = "nelbo"  # the Hub's type of the metric in nats


_USE_MODEL = _use_pipeline("print(pipe(num_samples=1).texts[0])", _LOAD_TEXT_MODEL)
_USE_IMAGE_MODEL = _use_pipeline('pipe({label}num_samples=1).images[0].save("sample.png")', _LOAD_IMAGE_MODEL)
_MASKED = {
    TEXT: _Kind(TEXT, TEXT.tags, _USE_MODEL, _masked_text_rows),
    IMAGES: _Kind(IMAGES, IMAGES.tags, _USE_IMAGE_MODEL, _image_rows, safety=""),
}
_CAUSAL_TEXT = _Kind(
    TEXT,
    CAUSAL_TAGS,
    _USE_CAUSAL_MODEL,
    _causal_text_rows,
    summary=_SUMMARY_CAUSAL,
    limits=_EXACT,
    is_bound=False,
    method="an autoregressive model",
    nats_type="nll",
)


_DISCRETE_TEXT = _Kind(
    TEXT,
    ("md4", "md4_hf", "discrete-diffusion"),
    _USE_DISCRETE_MODEL,
    _discrete_text_rows,
    summary=_SUMMARY_DISCRETE,
    method="discrete diffusion",
)
_BASELINES = {"MD4ForCausalLM": _CAUSAL_TEXT, "MD4ForDiscreteDiffusion": _DISCRETE_TEXT}


def _kind_of(model) -> _Kind:
    kind = _BASELINES.get(model.config.model_class) or _MASKED[modality_of(model.config)]
    if not is_adapted(model):
        return kind
    return replace(kind, tags=(*kind.tags, "lora"), use=_USE_ADAPTER, summary=_SUMMARY_ADAPTER)


def make_model_card(model, args, state, facts: CardFacts | None = None) -> ModelCard:
    """Describe a trained model or adapter, from its `MD4TrainingArguments` and the `TrainerState` at the end."""
    facts, kind = facts or CardFacts(), _kind_of(model)
    evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
    metrics = facts.metrics if facts.metrics is not None else [{}, *evaluations][-1]
    figures = figures_of(metrics, "eval_", kind.is_bound) if "eval_loss" in metrics else {}
    label = "" if model.config.num_classes is None else "class_labels=0, "
    origin = f", fine-tuned from {facts.base_model}" if facts.base_model else ""
    content = _TEMPLATE.format(
        metadata=_metadata(model, kind, facts, figures).to_yaml(),
        title=facts.title,
        summary=kind.summary.format(paper=PAPER, base=facts.base_model, origin=origin),
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(kind, model, args, state, facts)),
        likelihood=_likelihood(kind, figures, metrics, facts.baselines),
        limits=kind.limits.format(heldout=facts.validation_data or "the held-out part of the data named above"),
        plot=f"![Training and held-out loss]({facts.plot})\n\n" if facts.plot else "",
        use=kind.use.format(location=facts.location, base=facts.base_model, label=label),
        samples=_samples(facts.samples, facts.sample_grid),
        license=f"The weights are under the licence `{facts.license}`." if facts.license else _NO_LICENSE,
        safety=kind.safety,
    )
    return ModelCard(content)


def _metadata(model, kind: _Kind, facts: CardFacts, figures: Mapping[str, Figure]) -> ModelCardData:
    results = _evaluation_results(kind, facts, figures)
    return ModelCardData(
        library_name="peft" if is_adapted(model) else "transformers",
        tags=[*kind.tags, *facts.tags],
        pipeline_tag=kind.modality.pipeline_tag(model.config.time_conditioning or not kind.is_bound),
        license=facts.license,
        language=facts.language or None,
        datasets=facts.datasets or None,
        # Ids of the Hub only: it refuses a card that names a folder.
        base_model=None if facts.base_model and Path(facts.base_model).exists() else facts.base_model,
        widget=[{"text": text} for text in facts.widget] or None,
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def _evaluation_results(kind: _Kind, facts: CardFacts, figures: Mapping[str, Figure]) -> list[EvalResult]:
    """The rows of `model-index`, which the Hub shows beside the model."""
    bound = " (upper bound)" if kind.is_bound else ""
    return [
        EvalResult(
            task_type=kind.modality.task,
            task_name=f"{kind.modality.field} modelling by {kind.method}",
            dataset_type=facts.datasets[0] if facts.datasets and not facts.validation_data else "custom",
            dataset_name=facts.validation_data or f"{facts.data}, held-out part",
            metric_type=kind.nats_type if key == "loss" else key,
            metric_name=figure.name if key == "loss" else f"{figure.name.capitalize()}{bound}",
            metric_value=figure.rounded,
        )
        for key, figure in figures.items()
        if math.isfinite(figure.value)
    ]


def _facts(kind: _Kind, model, args, state, facts: CardFacts) -> Rows:
    parameters, trained = count_parameters(model), count_parameters(model, trained_only=True)
    of_which = "" if trained == parameters else f", of which {trained:,} trained"
    step_examples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = [
        ("Data", facts.data),
        ("Parameters", f"{parameters:,}{of_which}"),
        *kind.network_rows(model.config),
        *_clip_rows(args.schedule_clip),
        ("Optimizer steps", f"{state.global_step:,}"),
        ("Tokens seen", f"{state.num_input_tokens_seen:,}" if state.num_input_tokens_seen else "not counted"),
        (f"{kind.modality.example.capitalize()}s per step", f"{step_examples:,}"),
        ("Optimizer", "Muon, AdamW for all but the matrices of the blocks" if args.use_muon else args.optim.value),
        ("Learning rate", f"{args.learning_rate:g}, weight decay {args.weight_decay:g}"),
        ("Weights", f"moving average, decay {args.ema_decay:g}" if args.ema_decay else "last step's"),
        ("Seed", f"{args.seed}"),
    ]
    if is_adapted(model):
        lora = next(iter(model.peft_config.values()))
        name = ("DoRA" if lora.use_dora else "LoRA") + (", scaled as rsLoRA" if lora.use_rslora else "")
        rows.insert(2, ("Adapter", f"{name}, rank {lora.r}, alpha {lora.lora_alpha}"))
    return rows


def _likelihood(
    kind: _Kind, figures: Mapping[str, Figure], metrics: Mapping[str, float], baselines: Mapping[str, float]
) -> str:
    if not figures:
        return "Not evaluated."
    of_baselines = [Figure(f"{kind.modality.bits} of the {name} model", bits) for name, bits in baselines.items()]
    rows = [f"| {figure.name} | {figure} |" for figure in (*figures.values(), *of_baselines)]
    draws = f", {metrics.get('eval_num_draws', 1)} draws per {kind.modality.example}" if kind.is_bound else ""
    note = f"{metrics['eval_num_tokens']:,} tokens{draws}; ± is one standard error."
    return "\n".join(["| held-out data | value |", "| --- | --- |", *rows, "", note])


def _samples(samples: Sequence[str], grid: str | None) -> str:
    if grid is not None:
        return f"## Samples\n\n![Samples of the model]({grid})\n\n"
    if not samples:
        return ""
    fence = "~~~~"  # a sample may hold any other
    return "## Samples\n\n" + "\n\n".join(f"{fence}text\n{sample}\n{fence}" for sample in samples) + "\n\n"
