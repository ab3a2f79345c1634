# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Steps of the reverse process: what is drawn before the denoiser runs, and the draws from its logits.

A plan holds the positions where a step needs the denoiser. `draw` then decides them. Each kind of step is a sibling:
positions drawn beforehand, GenMD4's thinning, and an order by the denoiser's predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .masked_diffusion import denoiser_probabilities, draw_categorical, top_k_logits, top_p_logits
from .opening_orders import MIN_TEMPERATURE, OpeningOrder


# Entries of the scheduler's configuration that say which positions are decided when.
SAMPLER_OPTIONS = (
    *("order", "order_temperature", "quota", "threshold", "factor", "entropy_bound", "kl_bound"),
    *("remasking", "eta", "corrector", "corrector_steps", "corrector_eta", "corrector_size"),
)
DRAW_OPTIONS = ("temperature", "top_p", "top_k")  # and those that say how tokens are drawn
# Number of float64 probabilities that exist at a time while tokens are drawn.
PROBABILITIES_AT_A_TIME = 2**22


class Drawn(NamedTuple):
    """Tokens of n candidates (the mask where they stay masked), and the tokens' probabilities (then 0), `(n,)`."""

    tokens: Tensor
    probs: Tensor


@dataclass(frozen=True)
class TokenDraw:
    """How tokens are drawn from logits; see `MaskedDiffusionScheduler.step`.

    `forced_tokens` `(n,)`, if given, are put where tokens would be drawn.
    """

    mask_token_id: int
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    forced_tokens: Tensor | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Distribution that tokens are drawn from, `(n, vocab)` float64."""
        return token_probabilities(logits, self.mask_token_id, self.temperature, self.top_p, self.top_k)

    @property
    def is_plain(self) -> bool:
        """Whether tokens are drawn from the denoiser's own probabilities."""
        return self.temperature == 1.0 and self.top_p in (None, 1.0) and self.top_k is None

    def belief(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Probabilities `(n,)` of tokens before temperature, top-p and top-k, float64; 0 of the mask."""
        own = TokenDraw(self.mask_token_id)
        return _in_parts(
            logits, lambda mu, part: Drawn(tokens[part], mu.gather(-1, tokens[part][:, None]).squeeze(-1)), own
        ).probs

    def tokens(self, mu: Tensor, uniform: Tensor, is_argmax: Tensor | None, part: slice | Tensor) -> Drawn:
        """Tokens from distributions `(n, vocab)` by uniform numbers `(n,)`, or the most probable where `is_argmax`."""
        if self.forced_tokens is not None:
            drawn = self.forced_tokens[part]
        else:
            drawn = draw_categorical(mu, uniform)
            if is_argmax is not None:
                drawn = torch.where(is_argmax, mu.argmax(dim=-1), drawn)
        return Drawn(drawn, mu.gather(-1, drawn[:, None]).squeeze(-1))


@dataclass
class RowMemory:
    """What a run remembers of its rows from step to step.

    Args:
        fillable: `(rows, ...)` booleans: positions that were masked at some time, and are no part of the prompt.
        confidence: `(rows, ...)` float64: probability that each decided token had when it was drawn, before
            temperature, top-p and top-k; 1 of a prompt.
        previous: `(rows, ..., vocab)` float32: predictions of the last step where masked, else NaN; None if not needed.
        num_close: `(rows, ...)`: number of comparisons in a row by which the prediction has not changed.
    """

    fillable: Tensor
    confidence: Tensor
    previous: Tensor | None = None
    num_close: Tensor | None = None

    @classmethod
    def of_start(cls, masked: Tensor) -> RowMemory:
        """Memory of rows that begin, from where they are masked."""
        return cls(masked.clone(), torch.ones(masked.shape, dtype=torch.float64, device=masked.device))

    def after(self, committed: Tensor, probs: Tensor) -> RowMemory:
        """Memory after a step that has decided tokens at `committed` `(rows, ...)`, of these probabilities."""
        return replace(self, confidence=torch.where(committed, probs.double(), self.confidence))

    def with_given(self, given: Tensor, masked: Tensor) -> RowMemory:
        """Memory after others have put in tokens at `given`, which are kept, and have made `masked` what is masked."""
        return replace(self, fillable=(self.fillable & ~given) | masked)

    def rows(self, rows: Tensor) -> RowMemory:
        """Copy of the memory of some rows."""
        return RowMemory(*(None if x is None else x[rows.to(x.device)] for x in vars(self).values()))

    def put(self, rows: Tensor, memory: RowMemory):
        """Replace the memory of some rows."""
        for name, new in vars(memory).items():
            old = getattr(self, name)
            if new is None:
                continue
            if old is None:
                missing = math.nan if new.dtype.is_floating_point else 0
                old = new.new_full((len(self.fillable), *new.shape[1:]), missing)
                setattr(self, name, old)
            old[rows.to(old.device)] = new


@dataclass
class StepPlan:
    """
    Noise of a reverse step, drawn before the denoiser runs, and the positions where the denoiser is needed.

    Args:
        candidates (`torch.BoolTensor` of shape `(batch, ...)`):
            Positions that may be unmasked, where the denoiser is needed. It has to see the mask there.
        noise (`torch.DoubleTensor` of shape `(batch, ..., 2)`): The uniform numbers that the step will use.
        left_over (`torch.BoolTensor` of shape `(batch, ...)`, *optional*):
            Candidates decoded by arg max, while all others are drawn; `None` if there are none.
        remasked (`torch.BoolTensor` of shape `(batch, ...)`, *optional*): Decided tokens that the step masks again.
        memory (`RowMemory`, *optional*): What the step has to know of the steps before.
        belief (`torch.FloatTensor` of shape `(batch, ...)`, *optional*):
            Probabilities of the tokens decided before temperature, top-p and top-k, where a step has noted them.
    """

    candidates: torch.BoolTensor
    noise: torch.DoubleTensor
    left_over: torch.BoolTensor | None = None
    remasked: torch.BoolTensor | None = None
    memory: RowMemory | None = None
    belief: Tensor | None = None

    @property
    def hidden(self) -> Tensor:
        """Positions `(batch, ...)` where the denoiser has to see the mask, if they are not masked: the candidates."""
        return self.candidates

    def rows(self, rows: Tensor) -> StepPlan:
        """Plan of some rows."""
        parts = {}
        for name, value in vars(self).items():
            if isinstance(value, RowMemory):
                parts[name] = value.rows(rows)
            elif isinstance(value, Tensor):
                parts[name] = value[rows.to(value.device)]
        return replace(self, **parts)

    def remembered(self, committed: Tensor, probs: Tensor) -> RowMemory | None:
        """Memory after the step, which has decided tokens at `committed` `(batch, ...)` of these probabilities."""
        if self.memory is None:
            return None
        return self.memory.after(committed, probs if self.belief is None else self.belief)

    def draw(self, logits: Tensor, how: TokenDraw) -> Drawn:
        """Decide the candidates, from their logits `(n, vocab)` in row-major order: here, all of them."""
        uniform = sent(self.noise[..., 1][self.candidates], logits.device)
        left_over = None if self.left_over is None else sent(self.left_over[self.candidates], logits.device)
        return _in_parts(
            logits,
            lambda mu, part: how.tokens(mu, uniform[part], None if left_over is None else left_over[part], part),
            how,
        )


@dataclass
class ThinnedPlan(StepPlan):
    """Plan of a step of GenMD4: candidates are unmasked by thinning, with the ratio of their own r_j to the largest.

    Args:
        opens (`torch.DoubleTensor` of shape `(batch, vocab)`): Probabilities r_j of each row's step.
        is_last (`torch.BoolTensor` of shape `(batch,)`): Whether the step is the last one, which leaves no mask.
    """

    opens: Tensor = field(kw_only=True)
    is_last: Tensor = field(kw_only=True)

    def draw(self, logits: Tensor, how: TokenDraw) -> Drawn:
        """Draw from the table [r_j mu_j, the rest]; what rounding leaves at the last step gets the most probable."""
        row = self.candidates.nonzero()[:, 0]
        noise, is_last = self.noise[self.candidates], self.is_last[row]

        def of_part(mu: Tensor, part: slice) -> Drawn:
            table = self.opens[row[part]] * mu
            opens, uniform = ancestral_sampler(table.sum(dim=-1), noise[part])
            decided = opens | is_last[part]
            if how.forced_tokens is None:
                drawn = torch.where(decided & ~opens, mu.argmax(dim=-1), draw_categorical(table, uniform))
            else:
                drawn = how.forced_tokens[part]
            probs = mu.gather(-1, drawn[:, None]).squeeze(-1)
            return Drawn(torch.where(decided, drawn, how.mask_token_id), torch.where(decided, probs, 0.0))

        return _in_parts(logits, of_part, how)


@dataclass
class OrderedPlan(StepPlan):
    """Plan of a step that unmasks by the denoiser's predictions.

    Args:
        order (`OpeningOrder`): The order.
        quota (`torch.LongTensor` of shape `(batch,)`): Number of positions that each row unmasks at least.
        after (`RowMemory`, *optional*): The memory as `draw` leaves it.
    """

    order: OpeningOrder = field(kw_only=True)
    quota: Tensor = field(kw_only=True)
    after: RowMemory | None = None

    def draw(self, logits: Tensor, how: TokenDraw) -> Drawn:
        """Score all candidates, select some of them by row, and draw their tokens."""
        order, place = self.order, self._places()
        uniform = self.noise[..., 1][self.candidates]
        drawn = None
        if order.depends_on_draws and how.forced_tokens is None:
            drawn = _in_parts(logits, lambda mu, part: how.tokens(mu, uniform[part], None, part), how)
        own = TokenDraw(how.mask_token_id)  # the denoiser's own belief
        close = self._closeness(logits.shape[-1]) if order.keeps_predictions else None

        def score(mu: Tensor, part: slice) -> Drawn:
            candidate = how.forced_tokens if drawn is None else drawn.tokens
            scores = order.score(mu, place[part], None if candidate is None else candidate[part])
            if close is not None:
                close(mu, part)
            return Drawn(place[part], scores)

        taken = self._select(_in_parts(logits, score, own).probs)
        if drawn is None:
            index = taken.nonzero().squeeze(1)
            found = _in_parts(
                logits[index], lambda mu, part: how.tokens(mu, uniform[index][part], None, index[part]), how
            )
            drawn = Drawn(place.new_zeros(len(taken)), uniform.new_zeros(len(taken)))
            drawn.tokens[index], drawn.probs[index] = found
        return Drawn(torch.where(taken, drawn.tokens, how.mask_token_id), torch.where(taken, drawn.probs, 0.0))

    def remembered(self, committed: Tensor, probs: Tensor) -> RowMemory | None:
        """Memory after the step, see `StepPlan.remembered`; with the predictions that `draw` has noted."""
        noted = self if self.after is None else replace(self, memory=self.after, after=None)
        return StepPlan.remembered(noted, committed, probs)

    def _places(self) -> Tensor:
        """Place of each candidate in its row `(n,)`."""
        return self.candidates.flatten(1).nonzero()[:, 1]

    def _select(self, scores: Tensor) -> Tensor:
        """Booleans `(n,)` of the candidates that are unmasked."""
        flat = self.candidates.flatten(1)
        by_row = torch.full(flat.shape, -math.inf, dtype=torch.float64, device=flat.device)
        by_row = by_row.masked_scatter(flat, scores)
        stable = None
        if self.order.keeps_predictions:
            stable = self.after.num_close.flatten(1) >= self.order.num_comparisons
        return self.order.selected(by_row, self.quota, self.noise[..., 0].flatten(1), stable)[flat]

    def _closeness(self, vocab_size: int) -> Callable[[Tensor, slice], None]:
        """Function of predictions and part that notes, in `after`, the predictions and which have not changed."""
        shape, device, where = self.candidates.shape, self.candidates.device, self.candidates.nonzero(as_tuple=True)
        predicted = torch.full((*shape, vocab_size), math.nan, device=device)
        close = torch.zeros(shape, dtype=torch.long, device=device)
        before = predicted.clone() if self.memory.previous is None else self.memory.previous
        close_before = close.clone() if self.memory.num_close is None else self.memory.num_close
        self.after = replace(self.memory, previous=predicted, num_close=close)

        def note(mu: Tensor, part: slice):
            at = tuple(index[part] for index in where)
            close[at] = torch.where(self.order.is_close(mu, before[at]), close_before[at] + 1, 0)
            predicted[at] = mu.float()

        return note


def ancestral_sampler(probability: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse-CDF draw from the table [r mu, 1 - r]: a position is unmasked if u < r, and u / r then draws its token.

    From r `(...)` and uniform noise `(..., 2)`, float64: booleans, and the numbers u / r, meaningful where open.
    """
    u = noise[..., 0]
    return u < probability, u / probability.clamp(min=torch.finfo(torch.float64).tiny)


def _in_parts(logits: Tensor, draw, how: TokenDraw) -> Drawn:
    """Results of `draw(mu, part)` of all n rows of logits, so that their float64 probabilities never exist together."""
    results = [draw(how.probabilities(logits[part]), part) for part in _parts(*logits.shape)]
    if not results:
        return Drawn(torch.empty(0, dtype=torch.long, device=logits.device), logits.new_empty(0, dtype=torch.float64))
    return results[0] if len(results) == 1 else Drawn(*(torch.cat(x) for x in zip(*results, strict=True)))


def _parts(num_rows: int, vocab_size: int) -> Iterator[slice]:
    size = max(PROBABILITIES_AT_A_TIME // vocab_size, 1)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def token_probabilities(
    logits: Tensor, mask_token_id: int, temperature: float = 1.0, top_p: float | None = None, top_k: int | None = None
) -> Tensor:
    """Distribution that tokens are drawn from, `(n, vocab)` float64: 0 at the mask and where logits are suppressed.

    Raises:
        ValueError: On the CPU, for rows that are not finite or have no token to draw.
    """
    is_suppressed = logits == torch.finfo(logits.dtype).min  # which no temperature may bring back
    logits = logits.double().masked_fill(is_suppressed, -torch.inf)
    logits[..., mask_token_id] = -torch.inf
    if temperature >= MIN_TEMPERATURE:
        logits /= float(temperature)
        if top_k is not None:
            logits = top_k_logits(logits, top_k)
        if top_p is not None:
            logits = top_p_logits(logits, top_p)
    mu = denoiser_probabilities(logits, mask_token_id)
    if mu.device.type == "cpu" and mu[:, 0].isnan().any():  # a check elsewhere would wait for the device
        raise ValueError("`model_output` must be finite, with a token to draw, got rows with nan or infinity.")
    if temperature < MIN_TEMPERATURE:
        mu = torch.zeros_like(mu).scatter(-1, mu.argmax(dim=-1, keepdim=True), 1.0)
    return mu


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Copy to a device, from the CPU without a wait for what it has been given to do."""
    return x.to(device, non_blocking=x.device.type == "cpu")
