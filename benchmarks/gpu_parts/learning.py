# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Does it learn? The text8 preset on a corpus of English for the minutes that are left, with its bound on the way."""

from __future__ import annotations

import contextlib
import lzma
import math
import string
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from md4_hf import (
    MaskedDiffusionPipeline,
    MaskedDiffusionScheduler,
    MD4ForMaskedDiffusion,
    Objective,
    build_text8_tokenizer,
    example_nelbo,
    nelbo_metrics,
)
from md4_hf.data.python_texts import pydoc_documents

from .part import Context, Row
from .pictures import plot_lines
from .steps import LAYERS, TrainingStep, preset_config


CHUNK, HELD_OUT_EVERY = 2**14, 40  # characters of a chunk, and the share of chunks that are held out
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.03  # for a run of minutes; the preset's rate is for a million steps
WARM_UP_STEPS = 100
EVALUATE_EVERY_S = 30.0
SECONDS_AFTER = 12.0  # for the last evaluation and the samples
REQUIRED_GAIN_BITS = 1.0  # below the entropy of single characters, in a whole run


def run(context: Context) -> Iterator[Row]:
    """Train, and yield the bound on held-out text now and then."""
    learner = Learner(context, Corpus.load(context))
    yield Row("corpus", {"train_characters": len(learner.corpus.train), "unigram_bits": learner.corpus.unigram_bits})
    learner.start()
    next_evaluation = time.time() + EVALUATE_EVERY_S
    while learner.share_done() < 1.0:
        learner.step()
        if time.time() >= next_evaluation:
            yield learner.evaluate()
            next_evaluation = time.time() + EVALUATE_EVERY_S
    yield learner.evaluate(is_last=True)
    yield learner.samples()


@dataclass
class Corpus:
    """Ids of the 27 characters of text8, to train on and held out, as bytes."""

    train: np.ndarray
    held_out: np.ndarray

    @classmethod
    def load(cls, context: Context) -> Corpus:
        """The corpus of the run's options, or the reference manual of Python."""
        path = context.options.corpus
        text = read_text(path) if path is not None else manual()
        letters = np.zeros(256, dtype=np.uint8)
        letters[list((string.ascii_lowercase + " ").encode())] = np.arange(27)
        ids = letters[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
        chunk = CHUNK // 16 if len(ids) < 40 * CHUNK else CHUNK
        chunks = ids[: len(ids) // chunk * chunk].reshape(-1, chunk)
        is_held_out = np.arange(len(chunks)) % HELD_OUT_EVERY == 0
        return cls(chunks[~is_held_out].reshape(-1), chunks[is_held_out].reshape(-1))

    @property
    def unigram_bits(self) -> float:
        """Entropy of single characters of the held-out text, in bits."""
        share = np.bincount(self.held_out, minlength=27) / len(self.held_out)
        return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def read_text(path: Path) -> str:
    """Text of a file that `gpu_corpus.py` has written."""
    data = path.read_bytes()
    return (lzma.decompress(data) if path.suffix == ".xz" else data).decode("ascii")


def manual() -> str:
    """The reference manual of Python in the characters of text8."""
    normalizer = build_text8_tokenizer().backend_tokenizer.normalizer
    return normalizer.normalize_str("\n".join(pydoc_documents()))


@dataclass
class Learner:
    """A training in a bare loop, whose rate follows the time."""

    context: Context
    corpus: Corpus
    curve: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self):
        context, tiny = self.context, self.context.tiny
        torch.manual_seed(context.options.seed)
        torch.backends.cuda.matmul.allow_tf32 = True
        self.config = preset_config("text8", tiny, attn_implementation="sdpa", vocab_size=28)
        self.length, self.batch = self.config.max_position_embeddings, 16 if tiny else 256
        model = MD4ForMaskedDiffusion(self.config).to(context.device)
        self.training_step = TrainingStep(
            *(self.config, self.batch, context.device, None if tiny else LAYERS),
            output_dir=str(context.output),
            model=model,
        )
        self.model, self.objective = model, Objective.of(model)
        self.train = torch.from_numpy(self.corpus.train).to(context.device)
        self.optimizer = self.training_step.optimizer
        for group in self.optimizer.param_groups:
            group["weight_decay"] = WEIGHT_DECAY
        self.steps = 0

    def start(self):
        """Compile in steps without a rate, and start the clock."""
        for _ in range(1 if self.context.tiny else 3):
            self.step(rate=0.0)
        self.steps, self.begin = 0, time.time()
        seconds = self.context.seconds_left - (0.0 if self.context.tiny else SECONDS_AFTER)
        self.duration = min(seconds, 6.0) if self.context.tiny else max(seconds, 1.0)

    def share_done(self) -> float:
        """Share of the training's time that is over."""
        return (time.time() - self.begin) / self.duration

    def step(self, rate: float | None = None):
        """Take a step; the rate rises in some steps, and falls to 0 as a cosine of the time."""
        if rate is None:
            rate = LEARNING_RATE * min(1.0, (self.steps + 1) / WARM_UP_STEPS)
            rate *= 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.share_done())))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.training_step.x0 = self.rows()
        self.training_step()
        self.steps += 1
        if self.steps % 10 == 0 and self.context.device.type == "cuda":
            torch.cuda.synchronize()  # the clock must not run ahead of the device

    def rows(self) -> Tensor:
        """Rows of the corpus from anywhere, `(batch, length)`, drawn on the device."""
        device = self.train.device
        begin = torch.randint(len(self.train) - self.length, (self.batch, 1), device=device)
        return self.train[begin + torch.arange(self.length, device=device)].long()

    @torch.no_grad()
    def evaluate(self, is_last: bool = False) -> Row:
        """Bound on held-out text in bits per character; the last time on more of it."""
        num_rows = len(self.corpus.held_out) // self.length
        num_rows = min(num_rows, 32 if self.context.tiny else 2048 if is_last else 512)
        ids = torch.from_numpy(self.corpus.held_out[: num_rows * self.length].astype(np.int64)).view(num_rows, -1)
        parts = []
        with self.evaluating():
            for start in range(0, num_rows, 128):
                index = torch.arange(start, min(start + 128, num_rows))
                inputs = {"input_ids": ids[index].to(self.context.device)}
                with torch.autocast(self.context.device.type, torch.bfloat16):
                    draws = {"seed": 0, "num_draws": 4 if is_last else 1}
                    parts.append(example_nelbo(self.model, self.objective, inputs, index, **draws))
        nelbo, num_tokens = (torch.cat(x).cpu() for x in zip(*parts, strict=True))
        figures = nelbo_metrics(nelbo, num_tokens, num_tokens)
        bits, error = figures["bits_per_character"], figures["bits_per_character_stderr"]
        seconds = time.time() - self.begin
        self.curve.append((seconds, bits))
        self.plot()
        characters = self.steps * self.batch * self.length
        found = {"seconds": seconds, "steps": self.steps, "characters": characters}
        found |= {"bits_per_character": bits, "stderr": error, "show": True}
        is_checked = is_last and not self.context.tiny
        ok = bits < self.corpus.unigram_bits - REQUIRED_GAIN_BITS if is_checked else None
        return Row("held-out bound, at the end" if is_last else "held-out bound", found, ok)

    def plot(self):
        """Draw the bound over the time."""
        labels = {"x": "seconds", "y": "bits per character", "log": False}
        plot_lines({"held out": self.curve}, self.context.output / "learning.png", **labels)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run the model as it is, for evaluation: other graphs would have to be compiled for it."""
        self.model.eval()
        with torch.compiler.set_stance("force_eager"):
            try:
                yield
            finally:
                self.model.train()

    def samples(self) -> Row:
        """Two samples, which go to a file too."""
        tokenizer = build_text8_tokenizer()
        pipeline = MaskedDiffusionPipeline(self.model, MaskedDiffusionScheduler(), tokenizer)
        pipeline.set_progress_bar_config(disable=True)
        with self.evaluating(), torch.autocast(self.context.device.type, torch.bfloat16):
            steps = 8 if self.context.tiny else 256
            generator = torch.Generator().manual_seed(self.context.options.seed)
            texts = pipeline(num_samples=2, num_inference_steps=steps, generator=generator).texts
        (self.context.output / "samples.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        return Row("samples", {"texts": texts}, None, f"two of {self.length} characters, in {steps} steps")
