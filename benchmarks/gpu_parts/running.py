# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Run parts one after the other, each in a process of its own: neither a failure nor a hang takes the others along.

A process is started while the part before it runs, so that its imports cost no time. It sends its rows, and this
process alone writes them.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from multiprocessing.connection import Connection

from .part import Context, Options, Part
from .report import Report


GRACE_SECONDS = 15.0  # by which a part may run over, for what it was in the middle of
LEAST_SECONDS = 5.0  # with less left, no part begins


class Worker:
    """Process of a part, which has imported what it needs and waits to begin."""

    def __init__(self, part: Part, options: Options):
        context = multiprocessing.get_context("spawn")
        self.part = part
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, part, options))
        before = {name: os.environ.get(name) for name in part.environment}
        os.environ.update(part.environment)  # a process inherits it
        self.process.start()
        other.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)

    def follow(self, report: Report, end: float, share: float):
        """Let the part run for this share of the time until `end`, and put its rows into the report."""
        begin, state, error = time.time(), "stopped", "the run was stopped"
        report.begin(self.part)
        try:
            state, error = self._follow(report, end, share)
        except (EOFError, ConnectionError):
            self.process.join(5.0)
            state, error = "failed", f"its process ended with exit code {self.process.exitcode}"
        finally:
            self.end()
            report.end(self.part, state, error, time.time() - begin)

    def _follow(self, report: Report, end: float, share: float) -> tuple[str, str | None]:
        """How the part ended, and its error."""
        limit = end
        while (left := limit + GRACE_SECONDS - time.time()) > 0:
            if not self.connection.poll(left):
                continue
            kind, content = self.connection.recv()
            if kind == "ready":  # its time starts when the imports are over
                limit = time.time() + share * (end - time.time())
                self.connection.send(limit)
            elif kind == "row":
                report.add(self.part, content)
            else:
                return kind, content
        return "stopped", f"it ran over its deadline by {GRACE_SECONDS:g} s"

    def end(self):
        """End the process, if it has not."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(2.0)
        if self.process.is_alive():
            self.process.kill()


def work(connection: Connection, part: Part, options: Options):
    """Body of a part's process: prepare, wait to begin, send rows, and how it ended."""
    try:
        run = part.prepared()
        connection.send(("ready", None))
        context = Context(options, connection.recv())
        for row in run(context):
            connection.send(("row", row))
        connection.send(("done", None))
    except Exception:
        connection.send(("failed", traceback.format_exc()))


def run_parts(parts: list[Part], options: Options, report: Report, end: float):
    """Run the parts until this time at most; what one does not use is the others'."""
    workers: dict[str, Worker] = {}
    try:
        for number, part in enumerate(parts):
            if time.time() > end - LEAST_SECONDS:
                report.end(part, "left out", "no time was left", 0.0)
                continue
            for wanted in parts[number : number + 2]:
                if wanted.name not in workers:
                    workers[wanted.name] = Worker(wanted, options)
            workers[part.name].follow(report, end, part.minutes / sum(other.minutes for other in parts[number:]))
    finally:
        for worker in workers.values():
            worker.end()
