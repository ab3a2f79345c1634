# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Actions of the page of a model of text: sample, fill gaps, answer. Each gives pictures while the text is unmasked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.chat_messages import ASSISTANT, end_of_answer
from ..core.pipeline_inputs import GAP
from ..core.text_encoding import encode_texts
from ..data.chat_turns import fit_turns, max_prompt_tokens
from ..evaluation.shown_texts import ShownTexts
from ..evaluation.trajectories import Trajectory
from ..evaluation.trajectory_animation import MASK
from ..objective.figures import counted
from .controls import arguments_of, seed_of
from .running import Frame, frames, generators
from .text_view import TextView


EXAMPLES = ("the value of the <mask:20> is used", "The <mask:8> is <mask:8>, and the <mask:12>.")
RUNNING = "unmasking"  # first word of the note of a call that runs


@dataclass
class TextActions:
    """What a model of text can do on the page.

    Args:
        pipeline: A pipeline of text.
        examples: Texts with gaps to try; those that the tokenizer cannot read are left out.
    """

    pipeline: Any
    examples: Sequence[str] = EXAMPLES

    def __post_init__(self):
        self.pipeline.set_progress_bar_config(disable=True)
        self.examples = [text for text in self.examples if self.can_infill and self._reads(text)]

    @property
    def can_infill(self) -> bool:
        """Whether gaps can be filled: the model sees both sides of them, and reads text."""
        return self.pipeline.tokenizer is not None and not self.pipeline.model.config.is_causal

    @property
    def can_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.pipeline.tokenizer, "chat_template", None))

    def sample(
        self, prompt: str = "", *, color_by: str = "step", seed: Any = None, **settings: Any
    ) -> Iterator[tuple[str, str, str]]:
        """Write texts, from nothing or from their beginning: HTML, a note and, at the end, a page that plays it.

        Raises:
            ValueError: For settings out of their range, and whatever the pipeline refuses.
        """
        yield from self._write({"prompt": prompt} if prompt else {}, color_by, seed, settings)

    def infill(
        self, text: str, *, color_by: str = "step", seed: Any = None, **settings: Any
    ) -> Iterator[tuple[str, str, str]]:
        """Fill the gaps of a text, as `sample`; a ValueError also for a text without any."""
        if not GAP.search(text) and str(self.pipeline.tokenizer.mask_token) not in text:
            raise ValueError(f'The text must have a gap such as <mask:12>, got "{text}". Select words and make one.')
        yield from self._write({"prompt": text}, color_by, seed, settings)

    def answer(
        self, messages: Sequence[dict[str, str]], *, seed: Any = None, **settings: Any
    ) -> Iterator[tuple[list[dict[str, str]], str]]:
        """Answer a conversation whose last message is a user's: its messages with the answer, and a note.

        The oldest turns are left out of what the model reads if the conversation is too long for it.
        """
        seed, arguments = seed_of(seed), arguments_of(settings)
        config, tokenizer = self.pipeline.model.config, self.pipeline.tokenizer
        longest = max_prompt_tokens(config, arguments.get("max_new_tokens"), None, use_cache=True)
        read, num_dropped = fit_turns(tokenizer, messages, longest)
        end = end_of_answer(tokenizer, read, "`messages`").strip()
        texts = ShownTexts(tokenizer, self.pipeline.mask_token_id, is_answer=True, end_mark=end)

        def show(trajectories: Sequence[Trajectory]) -> str:
            return "".join(MASK if text is None else text for row in trajectories for text in texts(row)[1])

        note = f" · the oldest {counted(num_dropped, 'turn')} left out" if num_dropped else ""
        call = frames(self.pipeline, show, messages=read, generator=generators(seed, 1), **arguments)
        for frame in call:
            text = frame.shown if frame.output is None else frame.output.texts[0]
            yield [*messages, {"role": ASSISTANT, "content": text}], note_of(frame, seed) + note

    def _write(
        self, given: dict[str, Any], color_by: str, seed: Any, settings: dict[str, Any]
    ) -> Iterator[tuple[str, str, str]]:
        seed, arguments = seed_of(seed), arguments_of(settings)
        count = arguments.setdefault("num_samples", 1)
        arguments["output_type"] = "ids" if self.pipeline.tokenizer is None else "text"
        view = TextView(self.pipeline, color_by)
        for frame in frames(self.pipeline, view, generator=generators(seed, count), **given, **arguments):
            yield frame.shown, note_of(frame, seed), frame.replay

    def _reads(self, text: str) -> bool:
        """Whether the tokenizer keeps all of a text besides its gaps."""
        tokenizer, parts = self.pipeline.tokenizer, GAP.split(text)[::2]  # between them, the sizes of the gaps
        read = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in encode_texts(tokenizer, parts)]
        return [part.strip() for part in read] == [part.strip() for part in parts]


def note_of(frame: Frame, seed: int) -> str:
    """Words on how far a call is, and with which seed it can be repeated."""
    calls = counted(frame.num_calls, "network call")
    return f"{RUNNING if frame.output is None else 'done'} · {calls} · {frame.seconds:.1f} s · seed {seed}"
