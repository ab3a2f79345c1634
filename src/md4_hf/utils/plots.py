# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""How every figure is made and written."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .files import whole_file


PANEL, LEGEND, HEIGHT = 5.5, 2.5, 4.2  # widths of a panel and of the legend, and the height of both, in inches


@contextmanager
def figure_file(path: str | os.PathLike, panels: int = 1) -> Iterator[list[Any]]:
    """Axes side by side for the context, at whose end they are written, with one legend beside them.

    The suffix gives the format, PNG or SVG. The file is never seen half-written, and no display is needed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (PANEL * panels + LEGEND, HEIGHT)
    figure, axes = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
    try:
        yield list(axes[0])
        for panel in axes[0]:
            panel.grid(alpha=0.3)
            panel.set_axisbelow(True)
        entries = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in axes[0]]
        handles = {label: handle for handle, label in itertools.chain(*entries)}
        legend = figure.legend(handles.values(), handles.keys(), loc="outside right upper")
        for text in legend.get_texts():
            text.set_parse_math(False)  # a token may hold dollars
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=150, format=Path(path).suffix.lstrip(".") or "png")
    finally:
        plt.close(figure)
