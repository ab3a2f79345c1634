# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""`md4 chat`: a conversation on a terminal, or answers to the lines of a pipe."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.chat_messages import ASSISTANT, check_chat_template, end_of_answer
from ..data.chat_turns import fit_turns, max_prompt_tokens
from ..data.conversations import read_chat_template
from ..evaluation.trajectories import Trajectory
from ..evaluation.trajectory_recorder import TrajectoryRecorder
from ..hub.loading import load_pipeline
from ..objective.figures import counted
from ..objective.noise import sample_seed
from .demo import name_of
from .draw import ARGUMENTS_OF_PIPELINE, check_ranges, sampler_config, suppressed_ids
from .live_text import LiveText, watches
from .options import RECORDED_TEXTS, ChatArguments, WatchArguments
from .watching import check_watching, write_trajectories


INVITATION = "> "
HELP = """/reset           begin a new conversation
/steps N         steps of an answer, of a block model those of each block
/temperature X   0 takes the most probable tokens
/help            these lines
/exit            end; so does Ctrl-D, and Ctrl-C ends an answer"""
# Arguments of the pipeline that follow from the conversation.
NOT_ASKED_FOR = ("length", "gen_length", "eos_early_stop")


def chat(options: ChatArguments, watch: WatchArguments, rest: argparse.Namespace):
    """Talk with a model; from a pipe, answer each line."""
    check_ranges(options)
    check_watching(watch)
    pipeline = open_chat(rest.model, options)
    is_terminal = sys.stdin.isatty() and watches(sys.stdout)
    talk = Chat(pipeline, options, watch, name_of(rest.model), shows_drafts=is_terminal)
    if not is_terminal:
        talk.answer_lines(line.rstrip("\r\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):  # of systems without it
        import readline  # noqa: F401  (the line can then be edited, and earlier ones are found)
    print(f"{rest.model}. /help lists the commands, /exit ends.")
    while talk.is_open:
        try:
            talk.take(input(INVITATION))
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D ends.)")


def open_chat(model: str, options: ChatArguments):
    """The pipeline of a model of text whose tokenizer has a chat template."""
    names = {"base": options.base, "revision": options.revision}
    pipeline = load_pipeline(model, **names, dtype=options.dtype, device=options.device)
    if pipeline.image_shape is not None:
        raise ValueError(f"`model` must be a model of text, got the model of images {model}.")
    if pipeline.tokenizer is None:
        raise ValueError(f"`model` must have a tokenizer to chat, got {model} without.")
    if options.chat_template is not None:
        pipeline.tokenizer.chat_template = read_chat_template(options.chat_template)
    check_chat_template(pipeline.tokenizer)
    sampler_config(pipeline, options)  # refuses options without effect
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass
class Chat:
    """A conversation with a pipeline, and what its user has set.

    Args:
        pipeline: Pipeline of text with a tokenizer and a chat template.
        options: Options of the command.
        watch: How answers are shown, and files of their unmasking.
        title: Heading of a page.
        shows_drafts: Whether standard output is a terminal, on which an answer is shown while it is written.
    """

    pipeline: Any
    options: ChatArguments
    watch: WatchArguments
    title: str
    shows_drafts: bool = False
    is_open: bool = True
    num_answers: int = 0
    messages: list[dict[str, str]] = field(init=False)
    arguments: dict[str, Any] = field(init=False)
    recorded: list[Trajectory] = field(default_factory=list)  # of the first answers, for files

    def __post_init__(self):
        names = [name for name in ARGUMENTS_OF_PIPELINE if name not in NOT_ASKED_FOR]
        self.arguments = {name: getattr(self.options, name) for name in (*names, "max_new_tokens")}
        self.arguments["suppress_tokens"] = suppressed_ids(self.options.suppress_tokens, self.pipeline.tokenizer)
        self.reset()

    def reset(self):
        """Begin a new conversation."""
        system = self.options.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def answer_lines(self, lines: Iterator[str]):
        """Answer lines of a pipe until they end; an error ends the process."""
        for line in lines:
            if self.is_open and line.strip():
                self.take(line)

    def take(self, line: str):
        """Do what a line says: a command, or a message to answer."""
        if not line.strip():
            return
        if line.startswith("/"):
            self._command(*line[1:].strip().partition(" ")[::2])
            return
        before = [*self.messages]
        self.messages.append({"role": "user", "content": line})
        try:
            self.fit()
            answer = self.answer()
        except KeyboardInterrupt:
            self.messages = before
            if not self.shows_drafts:
                raise
            print("\n(The answer is ended; it and the message are left out of the conversation.)")
        except ValueError as error:
            self.messages = before
            if not self.shows_drafts:
                raise
            print(f"({error})")
        else:
            self.messages.append({"role": ASSISTANT, "content": answer})

    def answer(self) -> str:
        """Answer to the conversation, which is shown."""
        live, generator = self._live_text(), self._generator()
        recorder = TrajectoryRecorder(on_change=(lambda trajectory: None) if live is None else live.show)
        is_seen = live is not None or self.watch.writes_files
        try:
            output = self.pipeline(
                messages=self.messages,
                generator=generator,
                callback_on_step_end=recorder if is_seen else None,
                **self.arguments,
            )
        except KeyboardInterrupt:
            if live is not None:
                live.stop()
            raise
        self.num_answers += 1
        (answer,) = output.texts
        if live is None:
            print(answer, flush=True)
        else:
            live.finish(answer)
        self._write_files(recorder)
        return answer

    def _write_files(self, recorder: TrajectoryRecorder):
        """Write the page and the animation anew, with the last answer, if they are asked for and not full."""
        if self.watch.writes_files and len(self.recorded) < RECORDED_TEXTS:
            self.recorded += recorder.trajectories
            recorder.trajectories = self.recorded
            write_trajectories(recorder, self.watch, self.title)

    def fit(self):
        """Drop the oldest turns until the model can read the conversation and has room for an answer.

        Raises:
            ValueError: The last message alone is too long.
        """
        names = ("max_new_tokens", "block_length", "use_cache")
        longest = max_prompt_tokens(self.pipeline.model.config, *(self.arguments[name] for name in names))
        self.messages, num_dropped = fit_turns(self.pipeline.tokenizer, self.messages, longest)
        if num_dropped:
            turns = counted(num_dropped, "turn")
            print(f"(The conversation is too long for the model: the oldest {turns} left out.)", file=sys.stderr)

    def _live_text(self) -> LiveText | None:
        if not self.shows_drafts:
            return None
        tokenizer = self.pipeline.tokenizer
        end = end_of_answer(tokenizer, self.messages, "`messages`").strip()
        color_by = self.watch.color_by if self.watch.watch else None
        num_steps = functools.partial(getattr, self.pipeline, "num_timesteps")
        seconds = self.watch.seconds
        return LiveText(tokenizer, sys.stdout, color_by, num_steps, is_answer=True, end_mark=end, seconds=seconds)

    def _generator(self) -> torch.Generator | None:
        """Source of the draws of the next answer, by the seed if there is one."""
        if self.options.seed is None:
            return None
        return torch.Generator().manual_seed(sample_seed(self.options.seed, self.num_answers))

    def _command(self, name: str, value: str):
        commands: dict[str, Callable[[str], str | None]] = {
            "reset": self._reset,
            "steps": self._steps,
            "temperature": self._temperature,
            "help": lambda value: HELP,
            "exit": self._exit,
        }
        if name not in commands:
            said: str | None = f"(/{name} is no command.)\n{HELP}"
        else:
            try:
                said = commands[name](value.strip())
            except ValueError as error:
                said = f"({error})"
        if said is not None:
            print(said, file=sys.stdout if self.shows_drafts else sys.stderr)

    def _reset(self, value: str) -> str:
        self.reset()
        return "(A new conversation.)"

    def _exit(self, value: str) -> None:
        self.is_open = False

    def _steps(self, value: str) -> str:
        if not (value.isdecimal() and int(value) >= 1):
            raise ValueError(f"/steps must have a number >= 1, got {value!r}.")
        self.arguments["num_inference_steps"] = int(value)
        return f"({counted(int(value), 'step')}.)"

    def _temperature(self, value: str) -> str:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise ValueError(f"/temperature must have a number >= 0, got {value!r}.")
        self.arguments["temperature"] = number
        return f"(Temperature {number:g}.)"
