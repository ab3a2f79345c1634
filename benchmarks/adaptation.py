# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""An autoregressive Llama adapted to MD4, against the same network from nothing: held-out bits per byte over the steps.

python benchmarks/adaptation.py --data my.txt --kept runs/adaptation --output benchmarks/results/adaptation.md

The text is read as bytes. One causal model is trained first; each arm then trains on MD4's bound, at equal steps and
rates, from the same order of blocks. With `--kept` an interrupted benchmark resumes where it was.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import tempfile
import textwrap
from pathlib import Path

import torch
from kept_runs import kept, mean_and_error
from measuring import machine, publish
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import md4_hf
from md4_hf.utils.plots import figure_file


LENGTH, BATCH = 64, 32
NETWORK = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 176}
RATE_OF_BASE = 3e-3
# Each arm: whether it begins with the causal model's weights, whether it predicts the next token, share of annealing.
ARMS = {
    "from nothing": (False, False, 0.0),
    "adapted": (True, False, 0.0),
    "adapted, annealed": (True, False, 0.3),
    "adapted, next token": (True, True, 0.0),
    "adapted, next token, annealed": (True, True, 0.3),
}
NOTHING, EVAL_DRAWS, EVAL_BATCH = "from nothing", 1, 128


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="pydoc", help="Text, in any of the forms of `md4 train --data`.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--base_steps", type=int, default=1000, help="Steps of the causal model.")
    parser.add_argument("--max_steps", type=int, default=400, help="Steps of each arm.")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="Highest rate of each arm.")
    parser.add_argument("--evaluations", type=int, default=8, help="Evaluations of each arm.")
    parser.add_argument("--kept", type=Path, help="Folder that keeps what is done, to resume there.")
    parser.add_argument("--output", help="Markdown file to write, with a plot beside it; printed if left out.")
    return parser.parse_args()


def llama_config() -> LlamaConfig:
    """Configuration of the causal model, of 256 bytes and an end of text."""
    return LlamaConfig(**NETWORK, vocab_size=257, max_position_embeddings=LENGTH, bos_token_id=None, eos_token_id=256)


def train_base(blocks, heldout, steps: int, folder: Path) -> float:
    """Train a causal Llama on next bytes, and save it; its held-out bits per byte, but for the first of a block."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE_OF_BASE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ids, others = (torch.as_tensor(part.with_format("numpy")["input_ids"][:]).long() for part in (blocks, heldout))
    for _ in tqdm(range(steps), desc="causal model"):
        batch = ids[torch.randint(len(ids), (BATCH,))]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    md4_hf.build_byte_tokenizer().save_pretrained(folder)
    with torch.no_grad():
        losses = [model(part, labels=part).loss.item() * len(part) for part in others.split(EVAL_BATCH)]
    return sum(losses) / len(others) / math.log(2)


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
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=args.max_steps // 20,
            adam_beta2=0.99,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=EVAL_BATCH,
            ema_decay=0.0,
            eval_estimator="any_order",
            eval_draws=EVAL_DRAWS,
            eval_strategy="steps",
            eval_steps=args.max_steps // args.evaluations,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            max_grad_norm=1.0,
            use_cpu=not torch.cuda.is_available(),
            attention_annealing_steps=int(annealed * args.max_steps),
        )
        trainer = md4_hf.MD4Trainer(model, arguments, train_dataset=blocks, eval_dataset=heldout)
        trainer.train()
    logs = trainer.state.log_history
    return [(log["step"], log["eval_loss"] / math.log(2)) for log in logs if "eval_loss" in log]


def plot(path: Path, steps: list[int], curves: dict[str, list[tuple[float, float]]]):
    """Draw the bits of each arm over the steps."""
    with figure_file(path) as (panel,):
        for arm, points in curves.items():
            means, errors = zip(*points, strict=True)
            panel.errorbar(steps, means, yerr=errors, label=arm, capsize=2)
        panel.set_xlabel("steps")
        panel.set_ylabel("held-out bits per byte")


def first_step_below(curve: list[tuple[float, float]], steps: list[int], bits: float) -> str:
    """First step of an evaluation whose mean is at most so many bits."""
    return next((str(step) for step, (mean, _) in zip(steps, curve, strict=True) if mean <= bits), "not reached")


def measure(args: argparse.Namespace) -> tuple[float, dict[str, list[list[tuple[int, float]]]]]:
    """Held-out bits of the causal model, and for each arm and seed the held-out bits over the steps."""
    tokenizer = md4_hf.build_byte_tokenizer()
    documents = md4_hf.load_train_validation(md4_hf.DataArguments(data=args.data, validation_fraction=0.03))
    blocks, heldout = (md4_hf.pack(part, tokenizer, LENGTH)[0] for part in documents)
    of_base = {"network": [NETWORK, LENGTH, BATCH, RATE_OF_BASE], "base_steps": args.base_steps}
    of_base |= {"blocks": [len(blocks), blocks[0]["input_ids"], blocks[-1]["input_ids"]]}
    of_arms = of_base | {name: getattr(args, name) for name in ("max_steps", "learning_rate", "evaluations")}
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) if args.kept is None else args.kept / f"base-{args.base_steps}"
        base_bits = kept(args.kept, of_base, lambda: train_base(blocks, heldout, args.base_steps, base))
        runs: dict[str, list[list[tuple[int, float]]]] = {arm: [] for arm in ARMS}
        for seed, arm in tqdm([(seed, arm) for seed in args.seeds for arm in ARMS], desc="runs"):
            facts = {**of_arms, "arm": [arm, *ARMS[arm]], "seed": seed, "draws": EVAL_DRAWS}
            runs[arm].append(
                kept(args.kept, facts, lambda arm=arm, seed=seed: run(arm, seed, base, blocks, heldout, args))
            )
    return base_bits, runs


def report(args: argparse.Namespace) -> str:
    """Train base and arms, and write them up."""
    base_bits, runs = measure(args)
    steps = [step for step, _ in runs[NOTHING][0]]
    curves = {
        arm: [mean_and_error([bits for _, bits in points]) for points in zip(*of_seeds, strict=True)]
        for arm, of_seeds in runs.items()
    }
    size = sum(x.numel() for x in LlamaForCausalLM(llama_config()).parameters())
    description = (
        f"Held-out bits per byte of {Path(args.data).name}, in blocks of {LENGTH}, by the any-order bound "
        f"({EVAL_DRAWS} draw for each block, the same one for all; ± is one standard error over "
        f"{len(args.seeds)} seeds). A Llama of {size:,} parameters is trained for {args.base_steps} steps on the next "
        f"byte, once; it has {base_bits:.3f} bits. Each arm then takes {args.max_steps} steps of {BATCH} blocks on "
        f"MD4's bound, at a rate of at most {args.learning_rate:g}. Next token is the alignment of the causal model "
        "(`predicts_next`). Annealed arms open their attention over the first 30% of the steps; evaluations see all of "
        "it."
    )
    lines = [
        "# An autoregressive model adapted to MD4",
        "",
        machine(),
        "",
        *textwrap.wrap(description, 120),
        "",
        "| steps | " + " | ".join(ARMS) + " |",
        "| --- " * (1 + len(ARMS)) + "|",
    ]
    for index, step in enumerate(steps):
        cells = (f"{mean:.3f} ± {error:.3f}" for mean, error in (curves[arm][index] for arm in ARMS))
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    last = curves[NOTHING][-1][0]
    reached = (first_step_below(curves[arm], steps, last) for arm in ARMS)
    lines += [f"| first step at {last:.3f} bits or below | " + " | ".join(reached) + " |", ""]
    if args.output:
        picture = Path(args.output).with_suffix(".png")
        plot(picture, steps, curves)
        lines += [f"![held-out bits per byte over the steps]({picture.name})", ""]
    return "\n".join([*lines, "```bash", "python benchmarks/adaptation.py " + shlex.join(sys.argv[1:]), "```", ""])


if __name__ == "__main__":
    arguments = parse_arguments()
    publish(report(arguments), arguments.output)
