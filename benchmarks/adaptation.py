# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""An autoregressive Llama adapted to MD4, against the same network from nothing: held-out bits per byte over the steps.

python benchmarks/adaptation.py --data my.txt --output benchmarks/results/adaptation.md

The text is read as bytes. One causal model is trained first; each arm then trains on MD4's bound, at equal steps.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from measuring import machine, publish
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import md4_hf
from md4_hf.utils.plots import figure_file


LENGTH, BATCH = 64, 32
NETWORK = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
RATE_OF_BASE, RATE = 3e-3, 2e-3
# Each arm: whether it begins with the causal model's weights, whether it predicts the next token, share of annealing.
ARMS = {
    "from nothing": (False, False, 0.0),
    "adapted": (True, False, 0.0),
    "adapted, next token": (True, True, 0.0),
    "adapted, next token, annealed": (True, True, 0.3),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="pydoc", help="Text, in any of the forms of `md4 train --data`.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--base_steps", type=int, default=1500, help="Steps of the causal model.")
    parser.add_argument("--max_steps", type=int, default=600, help="Steps of each arm.")
    parser.add_argument("--evaluations", type=int, default=6, help="Evaluations of each arm.")
    parser.add_argument("--output", help="Markdown file to write, with a plot beside it; printed if left out.")
    return parser.parse_args()


def train_base(blocks, steps: int) -> tuple[LlamaForCausalLM, float]:
    """A causal Llama trained on next bytes, and its mean loss over the last tenth of the steps, in bits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **NETWORK, vocab_size=257, max_position_embeddings=LENGTH, bos_token_id=None, eos_token_id=256
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE_OF_BASE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ids, losses = torch.as_tensor(blocks.with_format("numpy")["input_ids"][:]).long(), []
    for _ in tqdm(range(steps), desc="causal model"):
        batch = ids[torch.randint(len(ids), (BATCH,))]
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, statistics.mean(losses[-max(1, steps // 10) :]) / math.log(2)


def run(arm: str, seed: int, base: Path, blocks, heldout, args: argparse.Namespace) -> list[tuple[int, float]]:
    """Held-out bits per byte of one arm and seed, at steps spread over its training."""
    is_adapted, predicts_next, annealed = ARMS[arm]
    torch.manual_seed(seed)
    model = md4_hf.MD4ForMaskedDiffusion.from_backbone(str(base), predicts_next=predicts_next, dtype=torch.float32)
    if not is_adapted:
        model = md4_hf.MD4ForMaskedDiffusion(model.config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = md4_hf.MD4TrainingArguments(
            output_dir=folder,
            seed=seed,
            max_steps=args.max_steps,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=args.max_steps // 20,
            adam_beta2=0.99,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=128,
            ema_decay=0.0,
            eval_strategy="steps",
            eval_steps=args.max_steps // args.evaluations,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            attention_annealing_steps=int(annealed * args.max_steps),
        )
        trainer = md4_hf.MD4Trainer(model, arguments, train_dataset=blocks, eval_dataset=heldout)
        trainer.train()
    logs = trainer.state.log_history
    return [(log["step"], log["eval_loss"] / math.log(2)) for log in logs if "eval_loss" in log]


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean over the seeds, and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def plot(path: Path, steps: list[int], curves: dict[str, list[tuple[float, float]]]):
    """Draw the bits of each arm over the steps."""
    with figure_file(path) as (panel,):
        for arm, points in curves.items():
            means, errors = zip(*points, strict=True)
            panel.errorbar(steps, means, yerr=errors, label=arm, capsize=2)
        panel.set_xlabel("steps")
        panel.set_ylabel("held-out bits per byte")


def report(args: argparse.Namespace) -> str:
    """Train base and arms, and write them up."""
    tokenizer = md4_hf.build_byte_tokenizer()
    documents = md4_hf.load_train_validation(md4_hf.DataArguments(data=args.data, validation_fraction=0.03))
    blocks, heldout = (md4_hf.pack(part, tokenizer, LENGTH)[0] for part in documents)
    model, base_bits = train_base(blocks, args.base_steps)
    runs: dict[str, list[list[tuple[int, float]]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for arm, seed in tqdm([(arm, seed) for seed in args.seeds for arm in ARMS], desc="runs"):
            runs[arm].append(run(arm, seed, Path(folder), blocks, heldout, args))
    steps = [step for step, _ in runs["adapted"][0]]
    curves = {
        arm: [mean_and_error([bits for _, bits in points]) for points in zip(*of_seeds, strict=True)]
        for arm, of_seeds in runs.items()
    }
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        "# An autoregressive model adapted to MD4",
        "",
        machine(),
        "",
        f"Held-out bits per byte of {Path(args.data).name}, in blocks of {LENGTH}, by the bound "
        f"(one draw for each block; ± is one standard error over {len(args.seeds)} seeds).",
        f"A Llama of {num_parameters:,} parameters, trained for {args.base_steps} steps on the next byte "
        f"(training loss {base_bits:.3f} bits), then {args.max_steps} steps",
        f"of {BATCH} blocks on MD4's bound, at a rate of {RATE:g}. The last arm opens its attention over the "
        "first 30% of them.",
        "",
        "| steps | " + " | ".join(ARMS) + " |",
        "| --- " * (1 + len(ARMS)) + "|",
    ]
    for index, step in enumerate(steps):
        cells = (f"{mean:.3f} ± {error:.3f}" for mean, error in (curves[arm][index] for arm in ARMS))
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    lines.append("")
    if args.output:
        picture = Path(args.output).with_suffix(".png")
        plot(picture, steps, curves)
        lines += [f"![held-out bits per byte over the steps]({picture.name})", ""]
    return "\n".join([*lines, "```bash", "python benchmarks/adaptation.py " + shlex.join(sys.argv[1:]), "```", ""])


if __name__ == "__main__":
    arguments = parse_arguments()
    publish(report(arguments), arguments.output)
