# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Parts of `benchmarks/gpu.py`, the most important first; minutes are their shares of an eight-minute run."""

from .part import Part


PARTS = [
    Part(
        "correctness",
        "right: against the processor in float64",
        minutes=1.5,
        environment={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},  # which deterministic algorithms need
    ),
    Part("host_sync", "no waits, graph breaks or recompiles", minutes=0.5),
    Part("training_speed", "training speed and memory", minutes=2.2),
    Part("sampling_speed", "sampling speed", minutes=0.6),
    Part("learning", "does it learn", minutes=2.7),
    Part("profiling", "where the time of a step goes", minutes=0.5),
]
