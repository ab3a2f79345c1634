# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Which room may import which, read from the sources: imports inside functions and under TYPE_CHECKING count too."""

import ast
import importlib.util
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from clean_environment import BASELINES

from md4_hf.hub.registration import DIFFUSERS_CLASSES


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "md4_hf"
# Each room and the rooms that it may import: the one table of this house.
ROOMS = {
    "core": set(),
    "utils": set(),
    "objective": {"core", "utils"},
    "data": {"core", "utils", "objective"},
    "hub": {"core", "utils", "objective", "data"},
    "training": {"core", "utils", "objective", "data", "hub"},
    "evaluation": {"core", "utils", "objective", "data", "hub"},
    "page": {"core", "utils", "objective", "data", "hub", "evaluation"},
    "cli": {"core", "utils", "objective", "data", "hub", "training", "evaluation", "page"},
}
# "room.module" -> its file.
PATHS = {f"{room}.{path.stem}": path for room in ROOMS for path in sorted((PACKAGE / room).glob("*.py"))}
MODULES = sorted(PATHS)
# Files that are copied beside weights (trust_remote_code). Those of a model do without diffusers.
PORTABLE = [module for module in MODULES if module.startswith("core.") and module != "core.__init__"]
LIBRARIES = {
    "schedules": {"torch"},
    "masked_diffusion": {"torch"},
    "linear_nelbo": {"torch"},
    "triton_nll": {"torch"},
    "discrete_kernels": {"torch"},
    "discrete_processes": {"torch"},
    "input_checks": {"torch"},
    "image_processing_md4": {"torch", "transformers", "numpy", "PIL"},
    "image_inputs": {"torch", "transformers", "numpy", "PIL"},
    "scheduler_base": {"diffusers"},  # or stand-ins, where it is not installed
    "text_encoding": {"transformers"},
    "chat_messages": {"transformers"},
    "pipeline_masked_diffusion": {"torch", "transformers", "diffusers", "huggingface_hub", "numpy", "PIL"},
    "remote_pipeline": {"transformers", "diffusers"},
    "token_filter": {"torch", "transformers"},
}
LIBRARIES_OF_A_NETWORK = {"torch", "transformers", "huggingface_hub"}

# How transformers finds the files that a remote-code file needs (dynamic_module_utils.get_relative_imports).
REMOTE_FROM = re.compile(r"^\s*from\s+\.(\S+)\s+import", re.MULTILINE)
REMOTE_IMPORT = re.compile(r"^\s*import\s+\.(\S+)\s*$", re.MULTILINE)
# diffusers finds the libraries of a file in the same way, and then asks the user to install them.
ABSOLUTE_SELF = re.compile(r"^\s*(?:from|import)\s+md4_hf\b.*$", re.MULTILINE)


def imported(source, package=""):
    """`(module, name)` of every import in `source`, relative ones resolved; name is None for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = importlib.util.resolve_name("." * node.level + module, package)
            yield from ((module, alias.name) for alias in node.names)


def modules_imported(source, room, modules=MODULES):
    """The "room.module" names that `source`, a file of this room, imports; "" stands for the package itself."""
    found = set()
    for module, name in imported(source, f"md4_hf.{room}"):
        top, _, rest = module.partition(".")
        if top == "md4_hf":
            inside = f"{rest}.{name}" if f"{rest}.{name}" in modules else rest
            found.add(inside if "." in inside else f"{inside}.__init__" if inside else "")
    return found


def libraries(source):
    names = {module.partition(".")[0] for module, _ in imported(source, "md4_hf.core")}
    return names - set(sys.stdlib_module_names) - {"md4_hf"}


def read(module):
    return PATHS[module].read_text(encoding="utf-8")


def room_of(module):
    return module.partition(".")[0]


def imports_of(module):
    return modules_imported(read(module), room_of(module))


def remote_code_errors(source):
    """Import lines that break a file loaded from a repository: every sibling has to be a `from .x import y`."""
    errors = [f"absolute: {line.strip()}" for line in ABSOLUTE_SELF.findall(source)]
    by_syntax = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > 1 or node.module is None or "." in node.module:
                errors.append("not in the same folder: from " + "." * node.level + f"{node.module or ''} import")
            else:
                by_syntax.add(node.module)
    by_pattern = {*REMOTE_FROM.findall(source), *REMOTE_IMPORT.findall(source)}
    errors += [f"{name!r} looks like an import, but is none" for name in sorted(by_pattern - by_syntax)]
    errors += [f"transformers does not see the import of {name!r}" for name in sorted(by_syntax - by_pattern)]
    return errors


def test_every_file_is_in_a_room():
    outside = [path for path in PACKAGE.rglob("*.py") if path.parent not in {PACKAGE / room for room in ROOMS}]
    assert {path.relative_to(PACKAGE).as_posix() for path in outside} == {"__init__.py", "__main__.py"}
    assert all(f"{room}.__init__" in PATHS for room in ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module):
    room = room_of(module)
    may_import = {*ROOMS[room], room, *([""] if room == "cli" else [])}  # the command prints the package's version
    assert {room_of(found) for found in imports_of(module)} <= may_import


def test_imports_have_no_cycle():
    TopologicalSorter({module: imports_of(module) - {""} for module in MODULES}).prepare()  # raises the cycle


@pytest.mark.parametrize("module", PORTABLE)
def test_portable_files_need_few_libraries(module):
    assert libraries(read(module)) <= LIBRARIES.get(module.partition(".")[2], LIBRARIES_OF_A_NETWORK)


@pytest.mark.parametrize("module", PORTABLE)
def test_portable_files_find_each_other(module):
    assert remote_code_errors(read(module)) == []


def test_the_pipeline_that_is_saved_names_every_portable_file():
    """diffusers copies only the files that the first one names; baselines open with the package alone."""
    named = imports_of("core.remote_pipeline") | {"core.remote_pipeline", *(f"core.{name}" for name in BASELINES)}
    assert named == set(PORTABLE)


def test_the_registration_waits_for_every_module_between_pipeline_and_scheduler():
    """At the scheduler's end the pipeline is imported: not while a module is underway that both of them need."""
    edges = transitive({(module, found) for module in MODULES for found in imports_of(module)})
    pipeline, scheduler = "core.pipeline_masked_diffusion", "core.scheduling_masked_diffusion"
    between = {module for module in PORTABLE if {(pipeline, module), (module, scheduler)} <= edges}
    assert {f"md4_hf.{module}" for module in between | {pipeline, scheduler}} == set(DIFFUSERS_CLASSES)


def test_the_map_has_every_module_once_and_its_diagram_shows_the_imports():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \| (`.+) \|$", page, re.MULTILINE)
    listed = [f"{room}.{module}" for room, cell in rows for module in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == [module for module in MODULES if not module.endswith(".__init__")]
    imports = {(room_of(module), room_of(found)) for module in MODULES for found in imports_of(module) - {""}}
    imports = {(room, other) for room, other in imports if room != other}
    arrows = set(re.findall(r"^ +(\w+) --> (\w+)$", page, re.MULTILINE))
    assert arrows <= imports and transitive(arrows) == transitive(imports)


def transitive(edges):
    """Transitive closure of the arrows."""
    found = set(edges)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


def scripts_and_tests():
    folders = ("scripts", "tests", "benchmarks", "metrics")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", scripts_and_tests(), ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_and_tests_use_public_names(path):
    private = []
    for module, name in imported(path.read_text(encoding="utf-8"), "relative"):
        parts = [*module.split("."), *([name] if name else [])]
        if parts[0] == "md4_hf" and any(part.startswith("_") and part != "__version__" for part in parts):
            private.append(".".join(parts))
    assert not private, f"{path.name} imports private names: {private}"


# The rules themselves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, expected",
    [
        ("from .a import x", {"r.a"}),
        ("from . import a", {"r.a"}),
        ("from ..s.b import x", {"s.b"}),
        ("from ..s import b", {"s.b"}),
        ("from ..s import x", {"s.__init__"}),
        ("from .. import x", {""}),
        ("import md4_hf", {""}),
        ("import md4_hf.r.a as z", {"r.a"}),
        ("from md4_hf.r.a import x", {"r.a"}),
        ("def f():\n    from .a import x", {"r.a"}),
        ("import md4_hfx.a\nfrom a import x", set()),
    ],
)
def test_imported_modules_are_recognised(source, expected):
    assert modules_imported(source, "r", modules={"r.a", "s.b"}) == expected


@pytest.mark.parametrize(
    "source",
    [
        "from .a import x",
        "from .a import (\n    x,\n    y,\n)",
        "def f():\n    from .a import x",
        "from torch import nn\nimport math",
        '"""Example:\n\n    >>> from md4_hf import MD4Config\n"""',
    ],
)
def test_good_remote_code_passes(source):
    assert remote_code_errors(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "from . import a",
        "from ..a import x",
        "from .a.b import x",
        "from md4_hf.a import x",
        "from md4_hf import x",
        "import md4_hf.a as z",
        "def f():\n    import md4_hf",
        '"""Example:\n\n    from .a import x\n"""',
        '"""Example:\n\n    import .a\n"""',
        '"""Example:\n\n    from md4_hf import MD4Config\n"""',
        "import math; from .a import x",
    ],
)
def test_bad_remote_code_is_recognised(source):
    assert remote_code_errors(source)
