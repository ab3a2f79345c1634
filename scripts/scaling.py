# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Memory and communication per GPU of a training, by arithmetic from the model's configuration.

python scripts/scaling.py --gpus 8 16 --memory_gb 80

Sizes are in bytes; a GB is 1e9. `benchmarks/scaling.py` compares the arithmetic with what processes hold and send.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from md4_hf import PRESETS, MD4Config, MD4ForMaskedDiffusion
from md4_hf.core.linear_nelbo import LOGITS_AT_A_TIME_ELSEWHERE


PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- written by scripts/scaling.py -->\n", "<!-- end -->\n"
GB = 1e9
TOTAL_BATCH = 512  # sequences per optimizer step, as in the paper
MASKED_SHARE = 0.5  # of the tokens, on average under the linear schedule
GPUS_PER_NODE = 8
FIT = 0.9  # of a GPU's memory: the rest is for the allocator, the libraries and what is not counted here
LOGIT_BYTES = 10  # of the head's pieces, for each logit: float32 logits and their gradient, and that in 16 bits
ZERO1_CONFIG = json.loads(Path(__file__).with_name("configs").joinpath("zero1.json").read_text(encoding="utf-8"))
REDUCE_BUCKET = ZERO1_CONFIG["zero_optimization"]["reduce_bucket_size"]  # elements; `overlap_comm` makes two buckets
ZERO3_KEPT = 500_000_000  # half of DeepSpeed's default `stage3_max_reuse_distance`: forward and backward count

ONE_GPU, DDP, FSDP2, ZERO1, ZERO2, ZERO3 = STRATEGIES = ("1 GPU", "DDP", "FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3")


# The model ------------------------------------------------------------------------------------------------------------


def make_config(preset: str, **sizes: int) -> MD4Config:
    """The configuration of a preset with GPT-2's tokens, in other sizes if these are given."""
    return MD4Config(**{**PRESETS[preset].model, **sizes}, vocab_size=50258, max_position_embeddings=1024)


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters: in all, in one layer, in the conditioning, and those that FSDP2 gathers twice.

    These are the layers' and the embedding's; head and conditioning stay whole from forward to backward.
    """

    all: int
    layer: int
    conditioning: int
    gathered_twice: int


def count_weights(config: MD4Config) -> Weights:
    """Counted in the real model, on the meta device.

    Raises:
        ValueError: For a model without conditioning, whose layers save other things.
    """
    if not config.is_conditional:
        raise ValueError(f"`time_conditioning` must be True, got {config.time_conditioning}.")
    with torch.device("meta"):
        model = MD4ForMaskedDiffusion(config)

    def size(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    layers, embedding = size(model.model.layers), size(model.model.embed_tokens)
    return Weights(
        all=size(model),
        layer=layers // config.num_hidden_layers,
        conditioning=size(model.model.conditioning) + size(model.model.modulation),
        gathered_twice=layers + embedding,
    )


@dataclass(frozen=True)
class Model:
    """A model, and the most sequences per GPU and micro-batch in the tables of all strategies."""

    config: MD4Config
    sequences: int

    @functools.cached_property
    def weights(self) -> Weights:
        """Counted once."""
        return count_weights(self.config)

    def sequences_on(self, gpus: int) -> int:
        """Sequences per GPU and micro-batch, where there are enough."""
        return min(self.sequences, max(TOTAL_BATCH // gpus, 1))


MODELS = {
    "S": Model(make_config("openwebtext-small"), 32),
    "M": Model(make_config("openwebtext-medium"), 16),
    "1B": Model(
        make_config(
            "openwebtext-medium", hidden_size=2048, num_hidden_layers=16, num_attention_heads=16, conditioning_size=128
        ),
        8,
    ),
}


# Memory ---------------------------------------------------------------------------------------------------------------


def layer_bytes(config: MD4Config, stream: int, products: int) -> int:
    """What a layer saves of each token for its backward, dropout left out.

    Args:
        config: Of the model.
        stream: Bytes of an element of the residual stream and the norms.
        products: Bytes of an element that products work on.
    """
    norms = 4 * config.hidden_size  # input and output of both
    attention = (
        8 * config.hidden_size
    )  # input; queries, keys, values; rotated queries and keys; output; its projection
    feed_forward = 2 * config.hidden_size + 4 * config.intermediate_size  # in, out; gate and up, activation, product
    return stream * norms + products * (attention + feed_forward)


def saved_bytes(
    config: MD4Config, tokens: int, masked: float, stream: int, products: int, checkpointing: bool = False
) -> float:
    """What a forward saves for the backward, weights and their copies left out.

    The last feed-forward and the head run on `masked` of the `tokens`, where each has modulations of its own. The
    gradient of the head's weight is made in the forward.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    head_gradient = 4 * config.vocab_size * width
    head = (stream * 3 + products + 4) * width * masked  # norm, hidden states; modulation; their gradient
    if checkpointing:
        return stream * width * layers * tokens + head + head_gradient
    until_rows = (stream * 2 + products * 7) * width * tokens
    at_rows = (stream * 2 * width + products * (9 * width + 4 * config.intermediate_size)) * masked
    return (layers - 1) * layer_bytes(config, stream, products) * tokens + until_rows + at_rows + head + head_gradient


def peak_activation_bytes(config: MD4Config, sequences: int, strategy: str, checkpointing: bool) -> float:
    """The most that activations in 16 bits take: what is saved, and with checkpointing also one layer's anew."""
    stream = 2 if strategy.startswith("ZeRO") else 4  # autocast makes norms in float32
    tokens = sequences * config.max_position_embeddings
    saved = saved_bytes(config, tokens, MASKED_SHARE * tokens, stream, 2, checkpointing)
    return saved + (layer_bytes(config, stream, 2) * tokens if checkpointing else 0)


def autocast_copies(weights: Weights, config: MD4Config, products: int, checkpointing: bool = False) -> int:
    """Copies of the weights of linear layers in the precision of products, which autocast's backward needs.

    With checkpointing, those in layers are made anew; the forward alone has all of them.
    """
    layers = 0 if checkpointing else config.num_hidden_layers * weights.layer
    return products * (layers + weights.conditioning)


def state_bytes(weights: Weights, strategy: str, gpus: int, accumulation: int, low: int = 2) -> dict[str, float]:
    """What each GPU holds between micro-batches.

    Args:
        weights: Of the model.
        strategy: One of `STRATEGIES`.
        gpus: N, over which parts are dealt.
        accumulation: Micro-batches per step.
        low: Bytes of a weight in the precision of products: 2 for bf16, 4 for float32.

    Returns:
        Bytes of weights, gradients, optimizer (AdamW's moments, and DeepSpeed's float32 weights) and moving average.
    """
    whole, part = weights.all, weights.all / gpus
    if strategy in (ONE_GPU, DDP):
        held = (4 * whole, 4 * whole, 8 * whole, 4 * whole)
    elif strategy == FSDP2:  # accelerate leaves gradients whole until the step's last micro-batch
        held = (4 * part, 4 * (whole if accumulation > 1 else part), 8 * part, 4 * part)
    elif strategy == ZERO3:
        held = (low * part, low * part, 12 * part, 4 * part)
    else:
        held = (low * whole, low * (part if strategy == ZERO2 else whole), 12 * part, 4 * whole)
    return dict(zip(("weights", "gradients", "optimizer", "average"), held, strict=True))


def work_bytes(weights: Weights, config: MD4Config, strategy: str) -> float:
    """What else lives during a step in 16 bits: copies or gathered weights, buckets of gradients, pieces of logits."""
    logits = LOGIT_BYTES * LOGITS_AT_A_TIME_ELSEWHERE
    return (
        logits
        + {
            ONE_GPU: autocast_copies(weights, config, 2),
            DDP: autocast_copies(weights, config, 2) + 4 * weights.all,  # DDP's buckets are a copy of the gradients
            FSDP2: 2 * (weights.all - weights.gathered_twice + 2 * weights.layer),
            ZERO1: 4 * REDUCE_BUCKET,
            ZERO2: 4 * REDUCE_BUCKET,
            ZERO3: 2 * min(weights.all, ZERO3_KEPT),
        }[strategy]
    )


def memory_bytes(model: Model, strategy: str, gpus: int, sequences: int, checkpointing: bool) -> float:
    """All of it, at `sequences` per GPU and micro-batch of the paper's batch."""
    state = sum(state_bytes(model.weights, strategy, gpus, accumulation_steps(gpus, sequences)).values())
    activations = peak_activation_bytes(model.config, sequences, strategy, checkpointing)
    return state + work_bytes(model.weights, model.config, strategy) + activations


# Communication and time -----------------------------------------------------------------------------------------------


def accumulation_steps(gpus: int, sequences: int) -> int:
    """Micro-batches per optimizer step of the paper's batch.

    Raises:
        ValueError: If they do not come out even.
    """
    steps, rest = divmod(TOTAL_BATCH, gpus * sequences)
    if rest or steps == 0:
        raise ValueError(
            f"`gpus` times the sequences of a micro-batch must divide {TOTAL_BATCH}, got {gpus} x {sequences}."
        )
    return steps


def sent_bytes(weights: Weights, strategy: str, gpus: int, accumulation: int, low: int = 2) -> float:
    """Bytes that each GPU sends in an optimizer step, by rings.

    An all-gather or a reduce-scatter of x bytes sends x (N-1)/N, an all-reduce twice that. The arguments are those of
    `state_bytes`.
    """
    gathered_by_zero3 = weights.all + max(weights.all - ZERO3_KEPT, 0)  # what was let go is gathered twice
    volume = {
        ONE_GPU: 0,
        DDP: 2 * 4 * weights.all,  # once a step: not between micro-batches
        FSDP2: accumulation * low * (weights.all + weights.gathered_twice) + 4 * weights.all,
        ZERO1: 2 * low * weights.all + low * weights.all,
        ZERO2: accumulation * 2 * low * weights.all + low * weights.all,
        ZERO3: accumulation * low * (gathered_by_zero3 + weights.all),
    }[strategy]
    return volume * (gpus - 1) / gpus


def step_flops(config: MD4Config, checkpointing: bool) -> float:
    """Operations of a step, over all GPUs: a backward is two forwards, and checkpointing one more of the layers."""
    width, length = config.hidden_size, config.max_position_embeddings
    layer = 2 * (4 * width**2 + 3 * width * config.intermediate_size) + 4 * length * width
    layers, head = config.num_hidden_layers * layer, 2 * MASKED_SHARE * width * config.vocab_size
    return TOTAL_BATCH * length * ((4 if checkpointing else 3) * layers + 3 * head)


def compute_seconds(config: MD4Config, gpus: int, checkpointing: bool, args: argparse.Namespace) -> float:
    """Of an optimizer step, at a share of the GPU's peak."""
    return step_flops(config, checkpointing) / (gpus * args.utilisation * args.peak_tflops * 1e12)


def link_gb_per_s(gpus: int, args: argparse.Namespace) -> float:
    """What a GPU can send: the slowest link of the ring."""
    return args.node_gb_per_s if gpus <= GPUS_PER_NODE else args.network_gb_per_s


def communication_seconds(model: Model, strategy: str, gpus: int, sequences: int, args: argparse.Namespace) -> float:
    """Of an optimizer step, if nothing else went on."""
    sent = sent_bytes(model.weights, strategy, gpus, accumulation_steps(gpus, sequences))
    return sent / GB / link_gb_per_s(gpus, args)


@dataclass(frozen=True)
class Choice:
    """A way to train, and the seconds of a step with communication beside compute left unhidden."""

    strategy: str
    sequences: int
    checkpointing: bool
    seconds: float


def choose(model: Model, gpus: int, memory_gb: float, args: argparse.Namespace) -> Choice | None:
    """DDP with all activations if that fits, else the fastest of DDP and FSDP2 that does; None if nothing fits.

    Of these, the one with the fewest micro-batches. Both have float32 weights and add gradients up in float32;
    DeepSpeed's strategies have 16 bits for it.
    """
    choices = []
    for strategy, sequences, checkpointing in itertools.product((DDP, FSDP2), (1, 2, 4, 8, 16, 32, 64), (False, True)):
        if TOTAL_BATCH % (gpus * sequences):
            continue
        if memory_bytes(model, strategy, gpus, sequences, checkpointing) <= FIT * memory_gb * GB:
            seconds = compute_seconds(model.config, gpus, checkpointing, args)
            seconds += communication_seconds(model, strategy, gpus, sequences, args)
            choices.append(Choice(strategy, sequences, checkpointing, seconds))

    def rank(choice: Choice) -> tuple:
        is_simplest = choice.strategy == DDP and not choice.checkpointing
        return not is_simplest, choice.seconds, -choice.sequences

    return min(choices, key=rank, default=None)


# Tables ---------------------------------------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)) + "\n"


def model_table() -> str:
    """What the models are."""
    rows = []
    for name, model in MODELS.items():
        config = model.config
        tokens = config.num_hidden_layers * config.max_position_embeddings
        size = f"{config.num_hidden_layers} × {config.hidden_size}, {config.num_attention_heads} heads"
        saved, kept = layer_bytes(config, 4, 2) * tokens, 4 * config.hidden_size * tokens
        rows.append([name, size, f"{model.weights.all / 1e6:,.0f}M", f"{saved / GB:.2f}", f"{kept / GB:.2f}"])
    return table(["model", "network", "parameters", "a sequence saves, GB", "with checkpointing, GB"], rows)


def choice_table(args: argparse.Namespace) -> str:
    """What to choose."""
    rows = []
    for (name, model), gpus, memory in itertools.product(MODELS.items(), args.gpus, args.memory_gb):
        choice, cells = choose(model, gpus, memory, args), ["nothing fits"] + ["–"] * 5
        if choice is not None:
            used = memory_bytes(model, choice.strategy, gpus, choice.sequences, choice.checkpointing)
            cells = [choice.strategy, str(choice.sequences), str(accumulation_steps(gpus, choice.sequences))]
            cells += ["yes" if choice.checkpointing else "no", f"{used / GB:.0f}", f"{choice.seconds:.2f}"]
        rows.append([name, f"{gpus} × {memory:g} GB", *cells])
    header = ["model", "GPUs", "strategy", "sequences per GPU", "accumulation", "checkpointing"]
    return table([*header, "memory, GB", "a step, s"], rows)


def memory_table(all_gpus: list[int]) -> str:
    """What each GPU holds under each strategy, in parts for the first number of GPUs."""
    rows = []
    for (name, model), strategy in itertools.product(MODELS.items(), STRATEGIES):
        counts = [1 if strategy == ONE_GPU else gpus for gpus in all_gpus]
        sequences = model.sequences_on(all_gpus[0])
        accumulation = accumulation_steps(counts[0], sequences)
        sizes = list(state_bytes(model.weights, strategy, counts[0], accumulation).values())
        sizes.append(work_bytes(model.weights, model.config, strategy))
        for is_on in (False, True):
            sizes.append(peak_activation_bytes(model.config, sequences, strategy, is_on))
        totals = [
            [memory_bytes(model, strategy, count, model.sequences_on(gpus), is_on) / GB for is_on in (False, True)]
            for gpus, count in zip(all_gpus, counts, strict=True)
        ]
        rows.append([f"{name}, {sequences}", strategy, *(f"{size / GB:.1f}" for size in sizes)])
        rows[-1] += [f"{plain:.1f} / {checkpointed:.1f}" for plain, checkpointed in totals]
    header = ["model, sequences", "strategy", "weights", "gradients", "optimizer", "average", "work", "activations"]
    return table([*header, "checkpointed", *(f"in all on {gpus}" for gpus in all_gpus)], rows)


def communication_table(args: argparse.Namespace) -> str:
    """What each GPU sends in a step, and the time of that beside the time of computing."""
    rows = []
    for (name, model), gpus in itertools.product(MODELS.items(), args.gpus):
        sequences = model.sequences_on(gpus)
        accumulation, cells = accumulation_steps(gpus, sequences), []
        for strategy in STRATEGIES[1:]:
            sent = sent_bytes(model.weights, strategy, gpus, accumulation)
            seconds = communication_seconds(model, strategy, gpus, sequences, args)
            cells.append(f"{sent / GB:.1f} ({seconds:.2f})")
        compute = compute_seconds(model.config, gpus, False, args)
        rows.append([name, f"{gpus} × {sequences} × {accumulation}", *cells, f"{compute:.2f}"])
    return table(["model", "GPUs × sequences × accumulation", *STRATEGIES[1:], "compute, s"], rows)


def report(args: argparse.Namespace) -> str:
    """All tables, in Markdown."""
    links = f"{args.node_gb_per_s:g} GB/s within a node of {GPUS_PER_NODE}, {args.network_gb_per_s:g} between nodes"
    rate = f"{args.utilisation:.0%} of {args.peak_tflops:g} TFLOP/s"
    return "\n".join(
        [
            f"DDP where it fits into {FIT:.0%} of the memory, else what is fastest and fits; {TOTAL_BATCH} sequences a "
            "step:\n",
            choice_table(args),
            "The models:\n",
            model_table(),
            f"GB per GPU on {args.gpus[0]} GPUs, and in all without / with checkpointing:\n",
            memory_table(args.gpus),
            f"GB that each GPU sends in a step (the seconds of that alone: {links}), and its compute at {rate}:\n",
            communication_table(args),
        ]
    )


def page_with(text: str, page: str) -> str:
    """The page with the text between its marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1]


def make_parser() -> argparse.ArgumentParser:
    """The options; their defaults make the tables of docs/scaling.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16], help="Numbers of GPUs.")
    parser.add_argument("--memory_gb", type=float, nargs="+", default=[80, 24], help="Memory of a GPU.")
    parser.add_argument("--node_gb_per_s", type=float, default=200, help="What a GPU sends to another in its node.")
    parser.add_argument("--network_gb_per_s", type=float, default=25, help="What a GPU sends to another node.")
    parser.add_argument("--peak_tflops", type=float, default=989, help="bf16 peak of a GPU; an H100's by default.")
    parser.add_argument("--utilisation", type=float, default=0.4, help="Share of the peak that a step reaches.")
    parser.add_argument("--write", action="store_true", help="Put the tables into docs/scaling.md.")
    return parser


def main():
    """Print the tables, or write them into the page."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        text = report(args)
    except ValueError as error:
        parser.error(str(error))
    if args.write:
        PAGE.write_text(page_with(text, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
