# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Processes of a test: started together, ended within a time limit, none left over."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil


HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment(**more):
    """Environment of a new process, without the precision that trainers of other tests leave for accelerate to read."""
    names = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    return {**names, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "DS_ACCELERATOR": "cpu", **more}


def start(command, **variables):
    """A process in a group of its own, with its output in a pipe."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [str(part) for part in command]
    return subprocess.Popen(command, env=environment(**variables), start_new_session=True, **streams)


def kill(process):
    """SIGKILL to a process and all that it has started, and to nothing else."""
    family = [process.pid]
    with contextlib.suppress(psutil.NoSuchProcess):
        family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=30)


def run(command, timeout=240, **variables):
    """`(exit status, output)` of a command; whatever it started is dead afterwards."""
    process = start(command, **variables)
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output
    finally:
        kill(process)
        left = [other for other in psutil.process_iter(["pid"]) if _group(other.pid) == process.pid]
        for other in left:
            other.kill()


def succeed(command, **options):
    """Output of a command that has to succeed."""
    status, output = run(command, **options)
    assert status == 0, output
    return output


def run_python(*arguments, timeout=300, **options):
    """Standard output of a new Python process, which has to succeed."""
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _group(pid):
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
