# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""The model card of a training run, made of what the run itself knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData


PAPER = "https://arxiv.org/abs/2406.04329"

_TEMPLATE = """---
{metadata}
---

# {title}

A masked diffusion model ([MD4]({paper})) trained with `md4_hf`.

| | |
| --- | --- |
{facts}

## Likelihood

{likelihood}

{plot}## Use

```python
from md4_hf import MaskedDiffusionPipeline

pipe = MaskedDiffusionPipeline.from_pretrained("{location}")
print(pipe(num_samples=1).texts[0])
```

{samples}## Limits

The likelihood is an upper bound on the negative log-likelihood (NELBO), estimated on the held-out part of the data
named above. The model repeats what its data holds, mistakes and prejudices included. Nothing was done to make its text
true or safe.
"""


def make_model_card(
    model,
    args,
    state,
    *,
    title: str = "MD4 masked diffusion model",
    data: str = "not recorded",
    tokens_per_step: int | None = None,
    metrics: Mapping[str, float] | None = None,
    num_draws: int | None = None,
    baselines: Mapping[str, float] | None = None,
    samples: Sequence[str] = (),
    plot: str | None = None,
    location: str = "PATH_OR_HUB_ID",
) -> ModelCard:
    """Describe a trained model.

    Args:
        model: The `MD4ForMaskedDiffusion`.
        args: Its `MD4TrainingArguments`.
        state: The `TrainerState` at the end.
        title: Heading.
        data: What it was trained on, in words.
        tokens_per_step: Tokens per optimizer step, over all devices.
        metrics: Last evaluation (`eval_loss`, ...); the last one in the log by default.
        num_draws: Draws per example of that evaluation.
        baselines: Held-out bits per character of simple models of the same data.
        samples: Samples to show.
        plot: File name of the loss plot, beside the card.
        location: What to load the model by.
    """
    if metrics is None:
        metrics = next((entry for entry in reversed(state.log_history) if "eval_loss" in entry), {})
    metadata = ModelCardData(
        library_name="md4_hf",
        tags=["masked-diffusion", "md4", "discrete-diffusion"],
        pipeline_tag="text-generation",
    )
    content = _TEMPLATE.format(
        metadata=metadata.to_yaml(),
        title=title,
        paper=PAPER,
        facts="\n".join(f"| {name} | {value} |" for name, value in _facts(model, args, state, data, tokens_per_step)),
        likelihood=_likelihood(metrics, num_draws or args.eval_draws, baselines or {}),
        plot=f"![Training and held-out loss]({plot})\n\n" if plot else "",
        samples=_samples(samples),
        location=location,
    )
    return ModelCard(content)


def _facts(model, args, state, data: str, tokens_per_step: int | None) -> list[tuple[str, Any]]:
    config = model.config
    schedule = f"{config.masking_schedule} (eps {config.schedule_eps:g})"
    time = "continuous" if config.num_train_timesteps is None else f"{config.num_train_timesteps} steps"
    facts = [
        ("Data", data),
        ("Parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
        ("Network", f"{config.num_hidden_layers} layers of width {config.hidden_size}, {config.mlp_type}"),
        ("Sees the time", "yes" if config.time_conditioning else "no"),
        ("Length", f"{config.max_position_embeddings} tokens"),
        ("Masking schedule", schedule),
        ("Training time", time),
        ("Optimizer steps", f"{state.global_step:,}"),
        ("Learning rate", f"{args.learning_rate:g}, weight decay {args.weight_decay:g}"),
        ("Weights", f"moving average, decay {args.ema_decay:g}" if args.ema_decay else "last step's"),
        ("Seed", args.seed),
    ]
    if tokens_per_step is not None:
        facts.insert(8, ("Tokens seen", f"{state.global_step * tokens_per_step:,}"))
    return facts


def _likelihood(metrics: Mapping[str, float], num_draws: int, baselines: Mapping[str, float]) -> str:
    if "eval_loss" not in metrics:
        return "Not evaluated."
    lines = [
        "| held-out data | value |",
        "| --- | --- |",
        f"| NELBO, nats per token | {metrics['eval_loss']:.4f} ± {metrics['eval_loss_stderr']:.4f} |",
        f"| perplexity | {metrics['eval_perplexity']:.3f} |",
    ]
    if "eval_bits_per_character" in metrics:
        bits, error = metrics["eval_bits_per_character"], metrics["eval_bits_per_character_stderr"]
        lines.append(f"| bits per character | {bits:.4f} ± {error:.4f} |")
    lines += [f"| bits per character of the {name} model | {bits:.4f} |" for name, bits in baselines.items()]
    lines.append(f"\n{metrics['eval_num_tokens']:,} tokens, {num_draws} draws per sequence; ± is one standard error.")
    return "\n".join(lines)


def _samples(samples: Sequence[str]) -> str:
    if not samples:
        return ""
    return "## Samples\n\n" + "\n\n".join(f"```text\n{sample}\n```" for sample in samples) + "\n\n"
