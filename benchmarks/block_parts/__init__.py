# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Parts of `benchmarks/blocks.py`: modules that measure something and write a section of the report about it.

`measure(args)` gives figures that JSON takes, and `section(figures, picture)` their lines; a part that has a plot draws
it to `picture`, a path without its ending, unless that is None.
"""

from . import bounds, speed, texts


PARTS = {"bounds": bounds, "texts": texts, "speed": speed}
