# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Rows that a text takes on a terminal, or in a picture, of some width."""

from __future__ import annotations

import unicodedata


def visible(text: str) -> str:
    """A text whose control characters but line breaks are replaced: a model might write any."""
    kept = (character if character == "\n" or character.isprintable() else " " for character in text)
    return "".join(kept)


def rows_of(text: str, columns: int) -> list[int]:
    """Row of each character on a terminal of this width, from 0, and at the end that of the cursor."""
    rows, row, column = [], 0, 0
    for character in text:
        if character == "\n":
            rows.append(row)
            row, column = row + 1, 0
            continue
        width = width_of(character)
        if column + width > columns:
            row, column = row + 1, 0
        column += width
        rows.append(row)
    return [*rows, row]


def width_of(character: str) -> int:
    """Columns of a terminal that a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def num_rows(text: str, columns: int) -> int:
    """Rows between the first one of a text and that of the cursor behind it."""
    return rows_of(text, columns)[-1]


def len_of_rows(text: str, columns: int, count: int) -> int:
    """Number of the characters in the first `count` rows."""
    return sum(row < count for row in rows_of(text, columns)[:-1])


def start_of_last_row(text: str, columns: int) -> int:
    """Number of the characters above the row of the cursor."""
    rows = rows_of(text, columns)
    return sum(row < rows[-1] for row in rows[:-1])
