# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Facts about this installation and machine for a bug report, without secrets. A broken library is one of the facts."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from .. import __version__
from ..utils.libraries import LIBRARIES, installed_versions


OPTIONAL_LIBRARIES = (
    *("peft", "deepspeed", "liger-kernel", "lm_eval", "evaluate", "scikit-learn", "torch-fidelity", "torchmetrics"),
    *("gradio", "playwright", "tensorboard", "trackio", "wandb", "mauve-text", "orbax-checkpoint", "flash-attn"),
    *("triton", "bitsandbytes"),
)
# Beginnings of the names of variables that change what torch, the libraries of Hugging Face or this package do.
VARIABLES = (
    *("MD4_", "HF_", "HUGGING", "TRANSFORMERS_", "DIFFUSERS_", "DATASETS_", "TOKENIZERS_", "SAFETENSORS_"),
    *("ACCELERATE_", "FSDP_", "DEEPSPEED_", "DS_", "WANDB_", "TRACKIO_", "TENSORBOARD_"),
    *("TORCH", "PYTORCH_", "TRITON_", "CUDA", "CUBLAS_", "CUDNN_", "NVIDIA_", "HIP_", "ROCR_", "ROCM_", "HSA_"),
    *("ZE_", "XPU_", "NCCL_", "RCCL_", "GLOO_", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ONEDNN_", "DNNL_"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_", "SLURM_N", "SLURM_JOB_NUM_NODES"),
    *("PYTHON", "LD_PRELOAD", "LD_LIBRARY_PATH", "LANG", "LC_", "XDG_CACHE_HOME", "COLUMNS", "NO_COLOR", "TERM"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "SSL_CERT_"),
)
SECRET_NAME = re.compile(r"token(?!iz)|key|secret|passw|credential|auth", re.IGNORECASE)  # hides too much, if anything
# Tokens of the Hub, but not folders such as /data/hf_cache; users and passwords of addresses; their secret arguments.
SECRETS_OF_VALUE = re.compile(
    r"(?<![\w/])hf_\w+|hf_[a-z0-9]{20,}|(?<=://)[^/\s@]+(?=@)|(?<=token=|ecret=|sword=)[^&\s]+|(?<=key=|sig=)[^&\s]+",
    re.IGNORECASE,
)
HIDDEN = "***"


def env(rest: argparse.Namespace):
    """Print the report, on the first process if there are several."""
    if os.environ.get("RANK", "0") == "0":
        print(report())


def report() -> str:
    """Text of a bug report about this installation: sections of lines, each a name and a value."""
    sections: dict[str, Callable[[], Iterable[tuple[str, str]]]] = {
        "installation": installation,
        "libraries": libraries,
        "hardware": hardware,
        "accelerate default config": accelerate_config,
        "environment variables": variables,
    }
    lines = []
    for title, facts in sections.items():
        rows = list(_until_error(facts()))
        width = max((len(name) for name, _ in rows), default=0)
        lines += [f"{title}:", *(f"  {name:<{width}}  {value}".rstrip() for name, value in rows), ""]
    home = os.path.expanduser("~")
    text = "\n".join(lines).rstrip()
    return text.replace(home, "~") if len(home) > 1 else text


def _until_error(facts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """These facts, and in place of those that raise an error, the error: what a report is about may be broken."""
    try:
        yield from facts
    except Exception as error:
        yield "error", without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))


def installation() -> Iterator[tuple[str, str]]:
    """This package, the interpreter and the operating system."""
    folder = Path(__file__).resolve().parents[1]
    commit = commit_of_checkout(folder)
    yield "md4_hf", f"{__version__}, in {folder}" + (f", commit {commit}" if commit else "")
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    yield "platform", platform.platform()


def commit_of_checkout(folder: Path) -> str | None:
    """Commit of the checkout that this package is in, None outside of one; read, as git may run other programs."""
    git = folder.parents[1] / ".git"
    try:
        if git.is_file():  # of a worktree
            git = (git.parent / git.read_text(encoding="utf-8").partition("gitdir: ")[2].strip()).resolve()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head[:12]
        common = git / "commondir"
        root = git / common.read_text(encoding="utf-8").strip() if common.exists() else git
        reference = head.removeprefix("ref: ")
        if (root / reference).exists():
            return (root / reference).read_text(encoding="utf-8")[:12]
        packed = (root / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line[:12] for line in packed if line.endswith(f" {reference}")), None)
    except OSError:
        return None


def libraries() -> Iterator[tuple[str, str]]:
    """Versions of the libraries that this package uses, and those that are not there."""
    for names in (LIBRARIES, OPTIONAL_LIBRARIES):
        found = installed_versions(names)
        yield from found.items()
        if missing := [name for name in names if name not in found]:
            yield "not installed", ", ".join(missing)


def hardware() -> Iterator[tuple[str, str]]:
    """Processor, memory, threads, the build of torch, and its accelerators."""
    yield "processor", f"{processor_name()}, {_cores()}"
    if (memory := _memory()) is not None:
        yield "memory", f"{memory / 2**30:.1f} GiB"
    import torch

    from ..utils.hardware import has_fast_bf16

    yield "torch threads", f"{torch.get_num_threads()} within an operation, {torch.get_num_interop_threads()} between"
    speed = "fast" if has_fast_bf16() else "emulated"
    yield "torch on processors", f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {speed}"
    builds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip, "XPU": getattr(torch.version, "xpu", None)}
    built = [f"{name} {version}" for name, version in builds.items() if version]
    yield "torch built for", ", ".join([*built, *_cudnn(torch)]) or "processors only"
    yield from accelerators(torch)


def processor_name() -> str:
    """Marketing name of the processor, or its kind where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{os.cpu_count()} cores" + (f", {usable} for this process" if usable != os.cpu_count() else "")


def _memory() -> int | None:
    """Bytes of memory of this machine, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _cudnn(torch) -> list[str]:
    version = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return [] if version is None else [f"cuDNN {version}"]


def accelerators(torch) -> Iterator[tuple[str, str]]:
    """Name, memory and capability of each accelerator that torch finds; a line if there is none."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        yield "accelerators", "none"
        return
    module = torch.get_device_module(kind)
    for index in range(torch.accelerator.device_count()):
        yield f"{kind.type}:{index}", describe_device(getattr(module, "get_device_properties", None), index)
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists():
        yield "driver", driver.read_text(encoding="utf-8", errors="replace").splitlines()[0].partition(":")[2].strip()


def describe_device(get_properties: Callable[[int], object] | None, index: int) -> str:
    """Name, memory and compute capability of a device, as far as its properties tell."""
    properties = get_properties(index) if get_properties is not None else None
    facts = [str(getattr(properties, "name", "no properties"))]
    if (memory := getattr(properties, "total_memory", None)) is not None:
        facts.append(f"{memory / 2**30:.1f} GiB")
    if hasattr(properties, "major") and hasattr(properties, "minor"):
        facts.append(f"compute capability {properties.major}.{properties.minor}")
    return ", ".join(facts)


def accelerate_config() -> Iterator[tuple[str, str]]:
    """Lines of the file that `accelerate config` writes and `accelerate launch` takes by default."""
    from accelerate.commands.config.config_args import default_config_file

    path = Path(default_config_file)
    if not path.is_file():
        yield "none", f"no {path}"
        return
    yield "file", str(path)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, colon, value = line.partition(":")
        yield "", f"{name}{colon}{f' {HIDDEN}' if value and is_secret(name) else without_secrets(value)}"


def variables(environment: Mapping[str, str] = os.environ) -> Iterator[tuple[str, str]]:
    """Variables that change what the libraries do, by name, without the values of secrets."""
    found = {name: value for name, value in environment.items() if name.upper().startswith(VARIABLES)}
    for name, value in sorted(found.items()):
        yield name, HIDDEN if value and is_secret(name) else without_secrets(value)
    if not found:
        yield "none", ""


def is_secret(name: str) -> bool:
    """Whether the value of a setting of this name must not be shown: HF_TOKEN, WANDB_API_KEY, aws_secret, ..."""
    return SECRET_NAME.search(name) is not None


def without_secrets(text: str) -> str:
    """A text in which tokens of the Hub, and users and passwords in addresses, are hidden."""
    return SECRETS_OF_VALUE.sub(HIDDEN, text)
