# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Every objective with the same network, data and steps: held-out bits per character, and over the steps.

python benchmarks/baselines.py --data pydoc my.txt --output benchmarks/results/baselines.md

Every training is kept in the work folder under the hash of its settings: an interrupted benchmark resumes there.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from kept_runs import kept, mean_and_error, trained, with_error
from measuring import machine, publish
from tqdm import tqdm

import md4_hf
from md4_hf.objective.noise import evaluation_mask_noise, evaluation_times
from md4_hf.utils.plots import figure_file


LENGTH = 64
NETWORK = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "block_size": LENGTH}
CHAIN = {"num_train_timesteps": 1000}
# Each method: its name in the slides of the paper, their bits per character on text8, and the options of its training.
METHODS: dict[str, tuple[str, float | None, dict[str, Any]]] = {
    "ar": ("autoregressive", 1.23, {}),
    "genmd4": ("GenMD4", 1.34, {}),
    "md4": ("MD4", 1.37, {}),
    "sedd-absorb": ("SEDD, absorbing", 1.39, {"schedule_eps": 1e-3}),
    "ardm": ("ARDM", 1.43, {}),
    "d3pm-absorb": ("D3PM, absorbing", 1.45, {**CHAIN, "hybrid_weight": 0.01}),
    "uniform": ("uniform, continuous time", None, {"schedule_eps": 1e-3}),
    "d3pm-uniform": ("D3PM, uniform", 1.61, {**CHAIN, "hybrid_weight": 0.01}),
    "multinomial": ("multinomial diffusion", 1.72, CHAIN),
}
SCORES = "sedd-absorb"
# Chains with the uniform kernel, which share all but their first step and the cross entropy.
UNIFORM_CHAINS: dict[str, tuple[str, dict[str, Any]]] = {
    "multinomial diffusion": ("multinomial", {}),
    "D3PM, uniform": ("d3pm-uniform", {}),
    "D3PM, uniform, without the cross entropy": ("d3pm-uniform", {"hybrid_weight": 0.0}),
}
MIDDLE = 0.4  # time of the cross entropy shown


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", nargs="+", default=["pydoc"], help="Texts, in any of the forms of `md4 train --data`."
    )
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=1000, help="Steps of each model.")
    parser.add_argument("--evaluations", type=int, default=5, help="Evaluations of each training.")
    parser.add_argument("--draws", type=int, default=16, help="Draws of the bound at the end.")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/baselines"))
    parser.add_argument("--output", help="Markdown file to write, with plots beside it; printed if left out.")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, data: str, method: str, seed: int, **others: Any) -> dict[str, Any]:
    """Held-out bits per letter of a training at its end with their error, and at steps on the way.

    `others` are options of the training in place of those of the method.
    """
    every = args.max_steps // args.evaluations
    options = {"preset": "tiny", "tokenizer": "text8", "data": data, "objective": method, "seed": seed, **NETWORK}
    options |= {"max_steps": args.max_steps, "warmup_steps": args.max_steps // 10, "final_eval_draws": args.draws}
    options |= {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps", "save_steps": every}
    folder, figures = trained(
        args.work_dir, {**options, "save_total_limit": args.evaluations, **METHODS[method][2], **others}
    )
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    log = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return {
        "folder": str(folder),
        "bits": figures["eval_bits_per_token"],
        "error": figures["eval_loss_stderr"] / math.log(2),
        "seconds": figures["seconds"],
        "curve": [[entry["step"], entry["eval_bits_per_token"]] for entry in log if "eval_bits_per_token" in entry],
    }


def heldout_ids(folder: Path, data: str, count: int) -> torch.Tensor:
    """Ids `(count, LENGTH)` of held-out text in the tokens of a model."""
    documents = md4_hf.load_train_validation(md4_hf.DataArguments(data=data))[1]
    blocks = md4_hf.pack(documents, md4_hf.load_tokenizer(str(folder)), LENGTH)[0]
    return torch.as_tensor(blocks.with_format("numpy")["input_ids"][:count]).long()


@torch.no_grad()
def noised_states(model: Any, ids: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States x_0 and x_t of ids at times `(batch,)`, and the model's logits of the states."""
    objective, index = md4_hf.Objective.of(model), torch.arange(len(ids))
    noise = evaluation_mask_noise(0, index, 0, objective.noise_shape(ids.shape))
    inputs = objective.noised({"input_ids": ids}, t, noise)
    logits = model(inputs["input_ids"], inputs["timesteps"]).logits
    return model.states.states(ids), model.states.states(inputs["input_ids"]), model.states.columns(logits)


def inconsistency(folder: Path, data: str) -> list[list[float]]:
    """Mean distance from 1 of the summed score, in units of alpha / (1 - alpha), at masks of held-out text, by step."""
    ids, found = heldout_ids(folder, data, 256), []
    for place in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2])):
        model = md4_hf.load_model(str(place / "ema" if (place / "ema").is_dir() else place))
        _, xt, logits = noised_states(model, ids, evaluation_times(0, torch.arange(len(ids)), 0, 1))
        total = model.process.total_score(logits)[xt == model.process.kernel.mask_state]
        distance = (total - 1.0).abs().mean()
        found.append([int(place.name.partition("-")[2]), distance.item(), total.std().item()])
    return found


def first_step_and_middle(folder: Path, data: str) -> list[float]:
    """Bits that the first step of a chain adds to the bound, and those of the cross entropy in the middle."""
    model, ids = md4_hf.load_model(str(folder)), heldout_ids(folder, data, 256)
    steps = model.process.num_timesteps
    first, middle = (torch.full((len(ids),), t) for t in (0.5 / steps, MIDDLE))
    x0, xt, logits = noised_states(model, ids, first)
    added = model.process.token_nelbo(logits, x0, xt, model.process.times(first)).mean() / steps
    x0, _, logits = noised_states(model, ids, middle)
    entropy = F.cross_entropy(logits.flatten(0, 1).double(), x0.flatten())
    return [added.item() / math.log(2), entropy.item() / math.log(2)]


def measure(args: argparse.Namespace) -> tuple[dict[str, dict[str, list[dict[str, Any]]]], dict[str, list]]:
    """Runs of each data set and method, and the inconsistency of the scores over the steps of each data set."""
    jobs = [(seed, data, method) for seed in args.seeds for data in args.data for method in args.methods]
    runs: dict[str, dict[str, list]] = {data: {method: [] for method in args.methods} for data in args.data}
    for seed, data, method in tqdm(jobs, desc="runs"):
        runs[data][method].append(run(args, data, method, seed))
    scores = {}
    if SCORES in args.methods:
        for data, of_data in runs.items():
            folder = Path(of_data[SCORES][0]["folder"])
            facts = {"what": "inconsistency", "folder": folder.name}
            scores[data] = kept(args.work_dir, facts, lambda f=folder, d=data: inconsistency(f, d))
    return runs, scores


def uniform_chains(args: argparse.Namespace) -> list[str]:
    """Lines that show where the bounds of the chains with the uniform kernel differ, on the first text and seed."""
    data = args.data[0]
    lines = ["| method | bound | first step | other steps | cross entropy |", "| --- | --- | --- | --- | --- |"]
    for name, (method, others) in UNIFORM_CHAINS.items():
        found = run(args, data, method, args.seeds[0], **others)
        folder = Path(found["folder"])
        facts = {"what": "first step and middle", "folder": folder.name}
        first, entropy = kept(args.work_dir, facts, lambda f=folder: first_step_and_middle(f, data))
        lines.append(f"| {name} | {found['bits']:.3f} | {first:.3f} | {found['bits'] - first:.3f} | {entropy:.3f} |")
    words = (
        f"The bound of the chains with the uniform kernel on {Path(data).stem}, first seed, in bits per letter: what "
        "the first step adds to it, and the other 999 steps, which are the same in all of them; and the cross entropy "
        f"-log p(x_0 | x_t) at t = {MIDDLE}."
    )
    return ["## The first step of uniform chains", "", *textwrap.wrap(words, 120), "", *lines, ""]


def plot(path: Path, runs: dict[str, dict[str, list[dict[str, Any]]]]):
    """Draw the held-out bits over the steps, a panel for each data set."""
    with figure_file(path, panels=len(runs)) as panels:
        for panel, (data, of_data) in zip(panels, runs.items(), strict=True):
            for method, found in of_data.items():
                steps = [step for step, _ in found[0]["curve"]]
                values = zip(*([bits for _, bits in each["curve"]] for each in found), strict=True)
                means, errors = zip(*map(mean_and_error, values), strict=True)
                panel.errorbar(steps, means, yerr=errors, capsize=2, label=METHODS[method][0])
            panel.set(title=Path(data).stem, xlabel="steps", ylabel="held-out bits per letter")


def order_of(means: dict[str, float]) -> str:
    """Names by their bits, fewest first."""
    return " < ".join(METHODS[method][0] for method in sorted(means, key=means.__getitem__))


def table(runs: dict[str, dict[str, list[dict[str, Any]]]], methods: list[str]) -> list[str]:
    """Rows of the methods with the bits of each data set, and the published ones."""
    lines = ["| method | " + " | ".join(Path(data).stem for data in runs) + " | text8, published |"]
    lines.append("| --- " * (2 + len(runs)) + "|")
    for method in methods:
        cells = []
        for of_data in runs.values():
            found = of_data[method]
            cells.append(f"{with_error([f['bits'] for f in found])} ({max(f['error'] for f in found):.3f})")
        published = METHODS[method][1]
        cells.append("–" if published is None else f"{published:.2f}")
        lines.append(f"| {METHODS[method][0]} | " + " | ".join(cells) + " |")
    return lines


def report(args: argparse.Namespace, argv: list[str]) -> str:
    """Train all that is not trained, and write it up."""
    runs, scores = measure(args)
    network = ", ".join(f"{name} {value}" for name, value in NETWORK.items())
    description = (
        f"Held-out bits per letter, a token of text8, of one network ({network}; with the time where the method needs "
        f"it) after {args.max_steps} steps of the preset `tiny`; ± is one standard error over {len(args.seeds)} seeds. "
        f"Bounds, but for autoregression, are estimated with {args.draws} draws for each sequence; in brackets the "
        "largest standard error of an estimate over sequences, most of which is the spread between texts, alike for "
        "all methods. D3PM has T = 1000 and adds 0.01 times the cross entropy in training. The last column is what the "
        "papers report for large models of text8, from the tables of MD4's paper."
    )
    lines = ["# Baselines", "", machine(), "", *textwrap.wrap(description, 120), "", *table(runs, args.methods), ""]
    for data, of_data in runs.items():
        means = {method: mean_and_error([f["bits"] for f in found])[0] for method, found in of_data.items()}
        lines += [*textwrap.wrap(f"Order on {Path(data).stem}: {order_of(means)}.", 120), ""]
    published = {method: bits for method, (_, bits, _) in METHODS.items() if bits is not None}
    lines += [*textwrap.wrap(f"Order published: {order_of(published)}.", 120), ""]
    if scores:
        words = (
            "How far SEDD's score is from one of a distribution: mean distance from 1 of its sum over all tokens, in "
            "units of alpha / (1 - alpha), at masks of 256 held-out sequences, and the sum's standard deviation; first "
            "seed, averaged weights."
        )
        lines += ["## The sum of the score", "", *textwrap.wrap(words, 120), ""]
        steps = [step for step, _, _ in next(iter(scores.values()))]
        lines += ["| steps | " + " | ".join(map(str, steps)) + " |", "| --- " * (1 + len(steps)) + "|"]
        for data, found in scores.items():
            cells = (f"{distance:.3f} (sd {deviation:.3f})" for _, distance, deviation in found)
            lines.append(f"| {Path(data).stem} | " + " | ".join(cells) + " |")
        lines.append("")
    if {method for method, _ in UNIFORM_CHAINS.values()} <= {*args.methods}:
        lines += uniform_chains(args)
    if args.output:
        picture = Path(args.output).with_suffix(".png")
        plot(picture, runs)
        lines += [f"![held-out bits per letter over the steps]({picture.name})", ""]
    return "\n".join([*lines, "```bash", f"python benchmarks/baselines.py {shlex.join(argv)}", "```", ""])


if __name__ == "__main__":
    arguments = parse_arguments(sys.argv[1:])
    publish(report(arguments, sys.argv[1:]), arguments.output)
