# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Results of a run on a GPU, on disk after every row, and a short table of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from md4_hf.utils.files import write_whole

from .part import Part, Row


MAX_NOTE = 110  # characters of a note or error in the table; the file has all of it


class Report:
    """Results by part in a JSON file, which is whole at any moment.

    Args:
        path: The file. Parts that it has from an earlier run stay, unless they run again.
        header: Machine, versions and options.
    """

    def __init__(self, path: Path, header: dict[str, Any]):
        self.path = path
        earlier = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
        self.content: dict[str, Any] = {**header, "parts": earlier}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def begin(self, part: Part):
        """Begin a part, which forgets its earlier rows."""
        self.content["parts"][part.name] = {"title": part.title, "state": "running", "rows": []}
        self._write()

    def add(self, part: Part, row: Row):
        """Add a row of a part."""
        self.content["parts"][part.name]["rows"].append(row.as_dict())
        self._write()

    def end(self, part: Part, state: str, error: str | None, seconds: float):
        """End a part: "done", "failed", "stopped" or "left out"."""
        record = self.content["parts"].setdefault(part.name, {"title": part.title, "rows": []})
        record |= {"state": state, "seconds": round(seconds, 1)}
        if error is not None:
            record["error"] = error
        self._write()

    def _write(self):
        write_whole(self.path, json.dumps(self.content, indent=1) + "\n")

    def table(self) -> str:
        """A line for each part and its rows; of checks that hold only their number."""
        lines = [self.content["machine"]]
        for name, part in self.content["parts"].items():
            checks = [row["ok"] for row in part["rows"] if row["ok"] is not None]
            counted = f", {sum(checks)} of {len(checks)} checks hold" if checks else ""
            lines.append(f"\n{name} ({part['title']}): {part['state']}, {part.get('seconds', 0):.0f} s{counted}")
            if part.get("error"):
                lines.append(f"  {short(part['error'])}")
            shown = (row for row in part["rows"] if row["ok"] is not True or row["values"].get("show"))
            lines += [f"  {line_of(row)}" for row in shown]
        return "\n".join(lines)


def line_of(row: dict[str, Any]) -> str:
    """Name, figures and note of a row."""
    state = {True: "ok", False: "FAILED", None: ""}[row["ok"]]
    figures = [f"{name} {value_of(value)}" for name, value in row["values"].items() if name not in ("took_s", "show")]
    note = short(row["note"]) if row["note"] else ""
    return "  ".join(x for x in (row["name"], state, ", ".join(figures), note) if x)


def value_of(value: Any) -> str:
    """A figure in few characters."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else short(str(value))


def short(text: str) -> str:
    """The last line of a text, cut to the width of the table."""
    last = text.strip().splitlines()[-1].strip()
    return last if len(last) <= MAX_NOTE else last[: MAX_NOTE - 1] + "…"
