# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs that die end where the unbroken run does: killed at any moment, restarted by torchrun, asked to stop."""

import contextlib
import random
import signal
import sys
import time

import psutil
import pytest
from launching import HERE, TORCHRUN, kill, start, succeed

from md4_hf.training.checkpoints import checkpoint_problem


STORM = HERE / "storm.py"
LAUNCHERS = {1: [sys.executable], 2: TORCHRUN}
KILLS = 20
# torchrun's agents otherwise share their store with the workers, which is gone for the restarted ones.
ELASTIC = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def final(folder):
    return (folder / "final" / "model.safetensors").read_bytes()


def checkpoints(folder):
    return list((folder / "run").glob("checkpoint-*"))


def assert_stopped_early(folder, first):
    """The run ended at a step before its last, with a checkpoint that is whole."""
    newest = max(checkpoints(folder), key=lambda path: int(path.name.split("-")[1]))
    assert first <= int(newest.name.split("-")[1]) < 60
    assert checkpoint_problem(newest) is None


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_storm_of_kills_ends_where_the_unbroken_run_does(tmp_path, processes):
    """SIGKILL to all at random moments; as a checkpoint is written at every step, most fall into the writing of one."""
    command = [*LAUNCHERS[processes], STORM]
    succeed([*command, tmp_path / "unbroken"], timeout=300)
    moments, kills, half_written = random.Random(0), 0, 0
    storm = tmp_path / "storm"
    while kills < KILLS:
        before = len(checkpoints(storm))
        process = start([*command, storm])
        # A third is killed before it gets anywhere, as while it resumes.
        wanted = min(before + (0 if kills % 3 == 2 else 1), 19)
        wait_for(lambda wanted=wanted: len(checkpoints(storm)) >= wanted, process)
        time.sleep(moments.uniform(0.0, 0.5))
        assert process.poll() is None, process.communicate()[0]
        kill(process)
        kills += 1
        half_written += (storm / "run" / ".checkpoint-in-progress").exists()
        assert all(checkpoint_problem(folder) is None for folder in checkpoints(storm))
    assert half_written > 0
    succeed([*command, storm], timeout=300)
    assert final(storm) == final(tmp_path / "unbroken")


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_rank_died(tmp_path):
    succeed([*TORCHRUN, STORM, tmp_path / "unbroken"], timeout=300)
    elastic = [*TORCHRUN, "--max-restarts", "2", STORM, tmp_path / "restarted", "1", "7"]
    succeed(elastic, timeout=300, **ELASTIC)
    assert (tmp_path / "restarted" / "died").exists()
    assert final(tmp_path / "restarted") == final(tmp_path / "unbroken")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_to_a_run_and_the_workers_of_its_loader_leaves_a_checkpoint(tmp_path, number):
    """A terminal and schedulers send it so: the workers serve until the step is done."""
    process = start([sys.executable, STORM, tmp_path], STORM_WORKERS="2")
    wait_for(lambda: checkpoints(tmp_path), process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    for member in [*family, psutil.Process(process.pid)]:
        member.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "Stopping after this step" in output, output
    assert_stopped_early(tmp_path, first=1)
    assert not any(psutil.pid_exists(member.pid) for member in family)


@pytest.mark.slow
def test_a_signal_to_the_launcher_and_again_to_the_ranks_leaves_a_checkpoint(tmp_path):
    """Schedulers signal all processes, and the launcher passes the signal on; the ranks have loader workers too."""
    process = start([*TORCHRUN, STORM, tmp_path], STORM_WORKERS="1", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="100")
    wait_for(lambda: len(checkpoints(tmp_path)) >= 2, process)
    for member in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that lived for a moment
            member.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert "Stopping after this step" in output
    assert "killed by signal" not in output, output
    assert_stopped_early(tmp_path, first=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_rank_stops_all_at_one_step_with_a_checkpoint(tmp_path, number):
    process = start([*TORCHRUN, STORM, tmp_path])
    wait_for(lambda: len(checkpoints(tmp_path)) >= 2, process)
    workers = [child for child in psutil.Process(process.pid).children() if str(STORM) in child.cmdline()]
    assert len(workers) == 2
    workers[1].send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "Stopping after this step" in output
    assert_stopped_early(tmp_path, first=2)
    assert not any(psutil.pid_exists(worker.pid) for worker in workers)
