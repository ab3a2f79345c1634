# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Terminals, for what is redrawn on one: one that keeps all rows, and the system's own."""

import codecs
import io
import os
import re
import select
import subprocess
import sys
import time
import unicodedata

import pytest
from launching import environment


CONTROL = re.compile(r"\x1b\[\??(\d*)[\d;]*([A-Za-z])")


class Terminal(io.StringIO):
    """A terminal with scrollback that knows what `LiveText` writes: it wraps lines late, as terminals do."""

    encoding = "utf-8"

    def __init__(self, columns, lines=24):
        super().__init__()
        self.columns, self.lines = columns, lines
        self.rows, self.row, self.column = [""], 0, 0

    def write(self, text):
        place = 0
        while place < len(text):
            if control := CONTROL.match(text, place):
                self.control(control[2], int(control[1] or 1))
                place = control.end()
                continue
            self.put(text[place])
            place += 1

    def control(self, kind, count):
        if kind == "A":
            assert self.row - count >= max(len(self.rows) - self.lines, 0), "no row above the screen is changed"
            self.row -= count
        elif kind == "J":
            assert self.column == 0
            del self.rows[self.row + 1 :]
            self.rows[self.row] = ""

    def put(self, character):
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.down()
        else:
            width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            width = 0 if unicodedata.combining(character) else width
            if self.column + width > self.columns:
                self.down()
            self.rows[self.row] += character
            self.column += width

    def down(self):
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append("")


def wrapped(text, columns):
    """Rows that a terminal makes of a text by itself."""
    terminal = Terminal(columns)
    terminal.write(text)
    return terminal.rows


class PseudoTerminal:
    """An `md4` command on a pseudo-terminal of 80 columns."""

    def __init__(self, *arguments):
        pty = pytest.importorskip("pty")
        self.terminal, child = pty.openpty()
        command = [sys.executable, "-m", "md4_hf", *arguments]
        env = {**environment(), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), child)
        self.process = subprocess.Popen(command, **streams, env=env, start_new_session=True, preexec_fn=control)
        os.close(child)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.shown, self.place = "", 0

    def type(self, text):
        os.write(self.terminal, text.encode())

    def read_until(self, wanted, seconds=120):
        """Read until a text is shown behind those that were waited for before; what is new, up to its end."""
        start = self.place
        self.read_while(lambda: wanted not in self.shown[start:], seconds)
        assert wanted in self.shown[start:], self.shown
        self.place = self.shown.index(wanted, start) + len(wanted)
        return self.shown[start : self.place]

    def read_while(self, is_wanting, seconds):
        """Read what is shown while something is wanting, until the process ends or the time is up."""
        deadline = time.monotonic() + seconds
        while is_wanting() and time.monotonic() < deadline:
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self.shown += self.decoder.decode(os.read(self.terminal, 4096))
                except OSError:  # all is read that an ended process wrote
                    return

    def press(self, key, is_wanting, seconds=120):
        """Press a key while something is wanting: Python loses one that comes before it waits for keys."""
        deadline = time.monotonic() + seconds
        while is_wanting():
            assert time.monotonic() < deadline, self.shown
            self.type(key)
            self.read_while(is_wanting, seconds=2)

    def end(self):
        """Press Ctrl-D until the process ends; its exit status."""
        self.press("\x04", lambda: self.process.poll() is None)
        return self.process.returncode

    def ended(self):
        """Exit status once the process has ended."""
        return self.process.wait(timeout=30)


def control():
    """Make the standard input the terminal of the new process, whose Ctrl-C is then its signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
