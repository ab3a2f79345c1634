# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""How a sample came about: which positions were decided at which step, to which token, with which probability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Moment(NamedTuple):
    """Place of a network call in the run of a row: its step, from 0, and the number of the correction after it.

    `correction` is 0 for the step itself.
    """

    step: int
    correction: int = 0


@dataclass(frozen=True)
class Event:
    """Change of a position.

    Args:
        position: The position, in images counted over channels, rows and columns.
        token: Its new id; the mask id if it is masked again.
        probability: Probability of the token, see `Decisions`; None if it was not drawn, as behind the end of a text.
    """

    position: int
    token: int
    probability: float | None = None


@dataclass
class Trajectory:
    """Course of a row of a call.

    Args:
        start: Ids at the start, flat; those that are no masks are the prompt.
        shape: `(length,)`, or `(channels, height, width)` of an image.
        mask_token_id: The mask id.
        events: The changes of each moment, in order.
        ids: Ids now.
        num_final: Ids before this place do not change any more, as far as it is known.
        end: Place behind the block that is being written; None for the end.
        is_finished: Whether the call has ended.
    """

    start: list[int]
    shape: tuple[int, ...]
    mask_token_id: int
    events: dict[Moment, list[Event]] = field(default_factory=dict)
    ids: list[int] = field(init=False)
    num_final: int = 0
    end: int | None = None
    is_finished: bool = False
    last_events: dict[int, tuple[Moment, Event]] = field(default_factory=dict)  # of each position that has any

    def __post_init__(self):
        self.ids = list(self.start)

    @property
    def is_given(self) -> list[bool]:
        """Whether each position is part of the prompt."""
        return [token != self.mask_token_id for token in self.start]

    @property
    def moments(self) -> list[Moment]:
        """Moments at which anything changed, ascending."""
        return list(self.events)

    @property
    def num_drawn(self) -> int:
        """Number of ids without those at the end that were filled in without being drawn, behind the end of a text."""
        count = len(self.ids)
        while count and self._is_filled(count - 1):
            count -= 1
        return count

    def _is_filled(self, position: int) -> bool:
        is_drawn = self.start[position] == self.mask_token_id != self.ids[position]
        return is_drawn and self.last_events[position][1].probability is None

    def add(self, moment: Moment, events: Sequence[Event]):
        """Add changes at a moment that is none before the last one."""
        if not events:
            return
        self.events.setdefault(moment, []).extend(events)
        for event in events:
            self.ids[event.position] = event.token
            self.last_events[event.position] = (moment, event)

    def states(self) -> Iterator[tuple[Moment, list[int]]]:
        """Each moment, and the ids after it."""
        ids = list(self.start)
        for moment, events in self.events.items():
            for event in events:
                ids[event.position] = event.token
            yield moment, list(ids)


def moments_of(trajectories: Sequence[Trajectory]) -> list[Moment]:
    """All moments at which anything changed in some rows, ascending."""
    return sorted({moment for trajectory in trajectories for moment in trajectory.events})
