# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""A terminal that keeps all rows, for what is redrawn on one."""

import io
import re
import unicodedata


CONTROL = re.compile(r"\x1b\[\??(\d*)([A-Za-z])")


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
