# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Wheels for a GPU machine without a network: what it lacks, or has in another version than was tested.

python benchmarks/gpu_wheels.py list
python benchmarks/gpu_wheels.py download --folder runs/gpu_wheels
python benchmarks/gpu_wheels.py install --folder runs/gpu_wheels --target runs/gpu_site   (there, with its own Python)

torch and what belongs to it stay the machine's own. What the wheels need in turn is downloaded as well, where the
machine does not have it.
"""

from __future__ import annotations

import argparse
import email
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename


HERE = Path(__file__).parent
# Carried in the version of constraints.txt, whatever the machine has; liger-kernel, to compare with, in its newest.
CARRIED = ("transformers", "diffusers", "datasets", "peft", "liger-kernel")
PLATFORMS = [f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_26", "_2_24", "_2_17", "2014", "1")]
LARGEST_MIB = 60.0


@dataclass
class Machine:
    """Interpreter and packages of the machine that the wheels are for.

    Args:
        python: Version, such as "3.12".
        packages: Version of each package by its canonical name; None where only the name is known.
    """

    python: str
    packages: dict[str, str | None]

    @classmethod
    def read(cls, path: Path, python: str) -> Machine:
        """Machine with the packages of a file, one a line."""
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
        parts = (line.partition("==") for line in lines if line)
        return cls(python, {canonicalize_name(name): version or None for name, _, version in parts})

    @property
    def environment(self) -> dict[str, str]:
        """Values of the markers of requirements there."""
        there = {"python_version": self.python, "python_full_version": f"{self.python}.0", "extra": ""}
        linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
        return {**default_environment(), **there, **linux}

    def satisfies(self, requirement: Requirement) -> bool:
        """Whether the machine has what is required, as far as its versions are known."""
        name = canonicalize_name(requirement.name)
        if name not in self.packages:
            return False
        version = self.packages[name]
        return version is None or requirement.specifier.contains(version, prereleases=True)


@dataclass
class Closure:
    """Wheels that are needed, with all that they need in turn.

    Args:
        machine: The machine they are for.
        pins: Tested version by name, used where it satisfies a requirement.
        fetch: Downloads the wheel of a requirement and gives its path.
    """

    machine: Machine
    pins: dict[str, str]
    fetch: Callable[[str], Path]
    wheels: dict[str, Path] = field(default_factory=dict)

    def add(self, requirement: Requirement):
        """Download the wheel of a requirement and what it needs, unless it is there."""
        name = canonicalize_name(requirement.name)
        if name in self.wheels:
            return
        pin = self.pins.get(name)
        is_pinned = pin is not None and requirement.specifier.contains(pin)
        self.wheels[name] = self.fetch(f"{name}=={pin}" if is_pinned else f"{name}{requirement.specifier}")
        for needed in requirements_of(self.wheels[name]):
            if needed.marker is not None and not needed.marker.evaluate(self.machine.environment):
                continue
            if not self.machine.satisfies(needed):
                self.add(needed)


def requirements_of(wheel: Path) -> list[Requirement]:
    """Requirements that a wheel names."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    return [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]


def pinned(path: Path) -> dict[str, str]:
    """Versions of a file of constraints, by name."""
    lines = [line.partition(";")[0].partition("#")[0].strip() for line in path.read_text("utf-8").splitlines()]
    parts = (line.partition("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version.strip() for name, _, version in reversed([*parts])}


def download(requirement: str, folder: Path, machine: Machine) -> Path:
    """Download the wheel of a requirement for the machine, without what it needs."""
    before = set(folder.glob("*.whl"))
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    target = [f"--python-version={machine.python}", "--implementation=cp", "--only-binary=:all:", *platforms]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", *target]
    subprocess.run([*command, "-d", str(folder), requirement], check=True)
    name = canonicalize_name(Requirement(requirement).name)
    found = [path for path in folder.glob("*.whl") if parse_wheel_filename(path.name)[0] == name]
    return max(found, key=lambda path: (path not in before, path.stat().st_mtime))


def install(wheels: Iterable[Path], target: Path):
    """Install wheels into a folder for PYTHONPATH, from these files alone."""
    options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--upgrade", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, wheels)], check=True)


def parse_arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["list", "download", "install"])
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu_wheels"), help="Where the wheels are.")
    parser.add_argument("--target", type=Path, default=Path("runs/gpu_site"), help="Where they are installed.")
    parser.add_argument("--have", type=Path, default=HERE / "gpu_machine.txt", help="Packages that the machine has.")
    parser.add_argument("--python_version", default="3.12", help="Python of the machine.")
    parser.add_argument("--packages", nargs="+", default=CARRIED, help="Packages to carry in any case.")
    return parser.parse_args()


def main():
    """List, download or install."""
    args = parse_arguments()
    if args.action == "install":
        install(sorted(args.folder.glob("*.whl")), args.target)
        print(f"PYTHONPATH={args.target}")
        return
    pins, machine = pinned(HERE.parent / "constraints.txt"), Machine.read(args.have, args.python_version)
    if args.action == "list":
        for name in args.packages:
            print(f"{name}=={pins[name]}" if name in pins else name)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    closure = Closure(machine, pins, lambda requirement: download(requirement, args.folder, machine))
    for name in args.packages:
        closure.add(Requirement(name))
    for path in set(args.folder.glob("*.whl")) - {*closure.wheels.values()}:
        path.unlink()  # of an earlier call: two versions would stop the installation
    size = sum(path.stat().st_size for path in closure.wheels.values()) / 2**20
    print("\n".join(sorted(path.name for path in closure.wheels.values())))
    print(f"{size:.1f} MiB in {args.folder}")
    if size > LARGEST_MIB:
        sys.exit(f"error: the wheels must take at most {LARGEST_MIB:g} MiB, got {size:.1f}: name fewer --packages.")


if __name__ == "__main__":
    main()
