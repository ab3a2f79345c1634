# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Parts of `benchmarks/gpu.py` on the processor with small networks: they check, and they notice what is wrong."""

import functools
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from gpu_parts import (
    checks_networks,
    checks_sampling,
    checks_training,
    host_sync,
    learning,
    loss_alone,
    profiling,
    sampling_speed,
    training_speed,
)
from gpu_parts.comparing import BFLOAT16, FLOAT32, TOLERANCES, compared
from gpu_parts.part import Context, NotAvailable, Options
from gpu_parts.steps import WHOLE


@pytest.fixture
def context(tmp_path):
    return Context(Options("cpu", tmp_path, tiny=True), deadline=time.time() + 300.0)


# Correctness ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("name", ["net_text_class_glu", "loss_md4_model", "loss_genmd4_model", "net_uvit_uncond"])
def test_recorded_networks_are_right_on_a_processor(context, name, precision):
    row = checks_networks.golden(context, name, precision)
    assert row.ok and set(row.values) >= {"loss_error", "gradients_error"}


@pytest.mark.slow
@pytest.mark.parametrize("name", checks_networks.NAMES)
def test_recorded_networks_are_right_as_one_graph(context, name):
    assert checks_networks.golden(context, name, FLOAT32, way=WHOLE).ok


def test_a_network_whose_weights_differ_is_noticed(context, monkeypatch):
    given = checks_networks.golden_case

    def damaged(name):
        model, inputs, logits = given(name)
        with torch.no_grad():
            next(model.parameters()).mul_(1.001)
        return model, inputs, logits

    exact = checks_networks.in_float64
    monkeypatch.setattr(checks_networks, "golden_case", damaged)
    monkeypatch.setattr(checks_networks, "in_float64", lambda _: exact(given("net_text_class_glu")[0]))
    assert checks_networks.golden(context, "net_text_class_glu", FLOAT32).ok is False


@pytest.mark.parametrize("mask", ["no mask", "ragged", "documents"])
def test_kinds_of_attention_are_compared_or_said_to_be_missing(context, mask):
    reference, model, inputs = checks_networks.attention_case(context, mask)
    for implementation in checks_networks.ATTENTION:
        check = functools.partial(
            checks_networks.attention, context, model, inputs, reference, implementation, FLOAT32
        )
        row = context.measured(implementation, check)
        is_missing = implementation in ("sdpa mem-efficient", "sdpa cudnn", "flash_attention_2")
        assert (row.ok is None and "not available" in row.note) if is_missing else row.ok


def test_the_loss_operator_adapters_and_checkpointing_are_right_on_a_processor(context):
    rows = [*checks_networks.loss_operator(context), *checks_networks.gradients_made_otherwise(context)]
    assert all(row.ok for row in rows if "Triton" not in row.name)
    assert [row.ok for row in rows if "Triton" in row.name] == [None, None]


def test_noise_average_and_samples_are_right_on_a_processor(context):
    assert checks_training.keyed_noise(context).ok
    assert checks_training.moving_average(context).ok
    assert checks_sampling.planned_sampler(context).ok


def test_noise_of_other_bits_is_noticed(context, monkeypatch):
    calls = iter(range(100))  # the two devices are asked in turn
    draw = checks_training.training_times
    monkeypatch.setattr(checks_training, "training_times", lambda *key: draw(*key) + 1e-7 * next(calls))
    row = checks_training.keyed_noise(context)
    assert not row.ok and "times" in row.note


def test_samples_of_another_distribution_are_noticed(context, monkeypatch):
    exact = checks_sampling.exact_distribution
    monkeypatch.setattr(checks_sampling, "exact_distribution", lambda *args: exact(*args).flip(0))
    assert not checks_sampling.planned_sampler(context).ok


def test_a_resumed_run_has_the_bits_of_an_unbroken_one(context):
    row = checks_training.resumption(context, deterministic=True)
    assert row.ok and row.values["largest_difference"] == 0.0
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("factor, ok", [(1.0 + 1e-6, True), (1.01, False), (float("nan"), False)])
def test_an_error_beyond_the_tolerance_fails(factor, ok):
    reference = {"logits": torch.linspace(1.0, 2.0, 5, dtype=torch.float64)}
    row = compared({"logits": reference["logits"] * factor}, reference, TOLERANCES[FLOAT32])
    assert row.ok is ok


# Waits and graphs -----------------------------------------------------------------------------------------------------


def test_steps_run_where_nothing_tells_of_waits(context):
    make = functools.partial(host_sync.make_step, context)
    for measure in (
        functools.partial(host_sync.waits, context, make, True, host_sync.ragged_rows),
        functools.partial(host_sync.waits_of_the_trainer, context),
        functools.partial(host_sync.waits_of_the_sampler, context),
    ):
        with pytest.raises(NotAvailable, match="the steps ran"):
            measure()


@pytest.fixture
def sync_debug_mode(context, monkeypatch):
    """A device that seems to be CUDA's, and the mode that torch was told, as a list."""
    modes = ["default"]
    context.__dict__["device"] = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    return modes


def wait(modes):
    """Do as a call of CUDA that waits."""
    if modes[-1] == "error":
        raise RuntimeError("called a synchronizing CUDA operation")
    if modes[-1] == "warn":
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at a.cpp:1.)", stacklevel=1)


@pytest.mark.parametrize("num_waits", [0, 2])
def test_waits_are_counted_by_line_and_are_an_error(context, sync_debug_mode, num_waits):
    def step(**columns):
        for _ in range(num_waits):
            wait(sync_debug_mode)

    row = host_sync.waits(context, lambda: step, never_waits=True)
    assert row.ok is (num_waits == 0) and row.values["waits_per_step"] == num_waits
    assert sync_debug_mode[-1] == "default" and "error" in sync_debug_mode
    if num_waits:
        assert "test_gpu_parts.py" in row.values["lines"] and "synchronizing" in row.note


def test_waits_of_a_trainer_are_counted_between_its_first_and_last_steps(sync_debug_mode):
    watch = host_sync.Watch(torch.device("cuda"))
    callback = host_sync.WatchCallback(watch)
    for step in range(host_sync.WARM_UP + host_sync.STEPS + 1):
        callback.on_step_begin(None, SimpleNamespace(global_step=step), None)
        wait(sync_debug_mode)
    assert watch.figures(host_sync.STEPS)["waits_per_step"] == 1


def test_a_compiled_step_has_one_graph_for_ragged_rows(context):
    row = host_sync.graphs(context, WHOLE, host_sync.ragged_rows)
    assert row.ok and row.values == {"graph_breaks": 0, "recompilations": 0, "graphs": 1}


@pytest.mark.slow
def test_a_step_that_compiles_again_is_noticed(context):
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        row = host_sync.graphs(context, WHOLE, rows_of_changing_length)
    assert not row.ok and row.values["recompilations"] > 0


def rows_of_changing_length(_context, step, number):
    """No columns; after the warm-up a step takes more of the rows."""
    if number == 0:
        full, noised = step.x0, step.inputs

        def inputs(**columns):
            step.x0 = full[:, : 8 if step.step < host_sync.WARM_UP else 12]
            return noised(**columns)

        step.inputs = inputs
    return {}


# Speed ----------------------------------------------------------------------------------------------------------------


def test_figures_of_speed_are_measured(context):
    speed = training_speed.Speed(context, training_speed.MAIN, peak=1e12)
    rows = [*speed.sweep(), *loss_alone.losses_alone(context)]
    assert len(speed.by_batch) == 2 and all(row.ok is not False for row in rows)
    assert sum(row.ok is True for row in rows) >= 3  # torch 2.12 and older has no operator of its own
    assert any(row.values for row in training_speed.attention_alone(context))
    found = training_speed.against_official(speed, None)
    assert found.ok is None and found.values["times_faster"] > 0.0
    training_speed.plot(context, {training_speed.MAIN: speed})
    assert (context.output / "throughput.png").read_bytes().startswith(b"\x89PNG")


def test_samplers_are_timed_and_their_calls_counted(context):
    found = sampling_speed.compare(context, 2)
    assert found["calls"] <= found["steps"] == 20 and found["times_faster"] > 0.0
    assert sampling_speed.blocks(context)["calls"] <= 4 * 4 + 4


def test_shares_of_a_profile_add_up(context):
    row = profiling.shares(context, "eager", None)
    shares = {name: value for name, value in row.values.items() if name.endswith("share")}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert {"linear layers share", "loss operator share", "optimizer share", "data and noise share"} <= set(shares)
    assert len((context.output / "kernels_eager.md").read_text().splitlines()) == 2 + profiling.TOP


# Learning -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("the quick brown fox jumps over the lazy dog " * 1000, encoding="ascii")
    return path


def test_it_learns_a_corpus_of_a_file(tmp_path, corpus):
    context = Context(Options("cpu", tmp_path, tiny=True, corpus=corpus), deadline=time.time() + 300.0)
    learner = learning.Learner(context, learning.Corpus.load(context))
    learner.start()
    for _ in range(90):
        learner.step(rate=1e-2)
    bits = learner.evaluate(is_last=True).values["bits_per_character"]
    assert bits < learner.corpus.unigram_bits - 0.3
    assert len(learner.corpus.train) > 19 * len(learner.corpus.held_out) > 0


def test_learning_ends_in_its_time_with_a_curve_and_samples(tmp_path, corpus, monkeypatch):
    context = Context(Options("cpu", tmp_path, tiny=True, corpus=corpus), deadline=time.time() + 3.0)
    monkeypatch.setattr(learning, "EVALUATE_EVERY_S", 1.0)
    rows = list(learning.run(context))
    assert sum("held-out" in row.name for row in rows) >= 2 and time.time() < context.deadline + 30.0
    assert len(rows[-1].values["texts"]) == 2 and (tmp_path / "samples.txt").exists()
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")


# A measurement that cannot be made ------------------------------------------------------------------------------------


def fail():
    raise RuntimeError("no such kernel")


def run_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory.")


def touch_memory_of_others():
    raise RuntimeError("an illegal memory access was encountered")


@pytest.mark.parametrize(
    "measure, ok, note",
    [
        (fail, False, "no such kernel"),
        (touch_memory_of_others, False, "illegal"),
        (run_out_of_memory, None, "out of memory"),
        (dict, None, None),
    ],
)
def test_a_failed_measurement_is_a_row_of_its_own(context, measure, ok, note):
    row = context.measured("case", measure)
    assert row.name == "case" and row.ok is ok and (row.note is None if note is None else note in row.note)


def test_without_time_a_measurement_is_left_out(tmp_path):
    context = Context(Options("cpu", tmp_path), deadline=time.time() + 5.0)
    assert "left out" in context.measured("case", fail, seconds=10.0).note
