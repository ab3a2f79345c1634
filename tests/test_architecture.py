# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Who may import whom, read from the sources: imports inside functions and under TYPE_CHECKING count too."""

import ast
import importlib.util
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "md4_hf"
PATHS = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}
MODULES = frozenset(PATHS)

# The files that are saved with a model (trust_remote_code): flat, without diffusers.
REMOTE_CODE = ("masked_diffusion", "configuration_md4", "modeling_md4", "modeling_md4_unet", "image_processing_md4")
REMOTE_PIPELINE = ("remote_pipeline", "pipeline_masked_diffusion", "scheduling_masked_diffusion")
ALLOWED_LIBRARIES = {
    "masked_diffusion": {"torch"},
    "configuration_md4": {"torch", "transformers", "huggingface_hub"},
    "modeling_md4": {"torch", "transformers", "huggingface_hub"},
    "modeling_md4_unet": {"torch", "transformers", "huggingface_hub"},
    "image_processing_md4": {"torch", "transformers", "numpy", "PIL"},
}
ALLOWED = {
    "masked_diffusion": set(),
    "configuration_md4": set(),
    "modeling_md4_unet": {"configuration_md4"},
    "modeling_md4": {"configuration_md4", "masked_diffusion", "modeling_md4_unet"},
    "scheduling_masked_diffusion": {"masked_diffusion"},
    "pipeline_masked_diffusion": set(),
    # Opens a saved pipeline without the package: names every file that it needs.
    "remote_pipeline": {
        "configuration_md4",
        "image_processing_md4",
        "masked_diffusion",
        "modeling_md4",
        "modeling_md4_unet",
        "pipeline_masked_diffusion",
        "scheduling_masked_diffusion",
    },
    "evaluation": {"masked_diffusion"},
    "trainer": {"masked_diffusion", "evaluation"},
    "cli": set(),
}
# The command, one module per group of subcommands: they use the public names of the package, and each other.
CLI = {module for module in MODULES if module.split("_")[0] == "cli"}
ALLOWED.update(dict.fromkeys(sorted(CLI), CLI))
# Every other module is a helper (data, plots, model_card, ...): these two may use any, the rest of the table none.
MAY_USE_HELPERS = ("evaluation", "trainer")

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


def siblings(source, modules=MODULES):
    """The modules of the package that `source` imports; "" stands for the package itself."""
    found = set()
    for module, name in imported(source, "md4_hf"):
        top, _, rest = module.partition(".")
        if top == "md4_hf":
            found.add(rest.split(".")[0] or (name if name in modules else ""))
    return found


def libraries(source):
    names = {module.partition(".")[0] for module, _ in imported(source, "md4_hf")}
    return names - set(sys.stdlib_module_names) - {"md4_hf"}


def allowed_siblings(module):
    helpers = MODULES - set(ALLOWED)
    return ALLOWED[module] | (helpers if module in MAY_USE_HELPERS else set())


def remote_code_errors(source):
    """What breaks a file once it is loaded from a repository: every sibling has to be a `from .x import y`."""
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


def cycle(graph):
    """A cycle of `graph` (module to the modules it imports) as a list of names, or None."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def read(module):
    return PATHS[module].read_text(encoding="utf-8")


def present(modules):
    """The modules of the table that exist so far."""
    return [module for module in modules if module in MODULES]


def test_the_package_is_where_this_file_looks():
    assert {"masked_diffusion", "configuration_md4", "modeling_md4"} <= MODULES
    nested = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]
    assert not nested, f"the package is flat, found {nested}"


@pytest.mark.parametrize("module", present(ALLOWED))
def test_imports_follow_the_arrows(module):
    found = siblings(read(module))
    if module in CLI:  # the public names of the package itself
        found.discard("")
    assert found <= allowed_siblings(module)


@pytest.mark.parametrize("module", sorted(MODULES - CLI))
def test_no_module_imports_the_package_or_the_cli(module):
    assert not siblings(read(module)) & {"", *CLI}


@pytest.mark.parametrize("module", sorted(CLI))
def test_the_cli_uses_public_names_only(module):
    import md4_hf

    names = {name for library, name in imported(read(module), "md4_hf") if library == "md4_hf" and name}
    assert names <= {*md4_hf.__all__, "__version__"}


@pytest.mark.parametrize("module", present(REMOTE_CODE))
def test_remote_code_needs_few_libraries(module):
    assert libraries(read(module)) <= ALLOWED_LIBRARIES[module]


@pytest.mark.parametrize("module", present(REMOTE_CODE + REMOTE_PIPELINE))
def test_remote_code_finds_its_files(module):
    assert remote_code_errors(read(module)) == []


def test_remote_code_is_complete():
    """Nothing the remote-code files import is left behind when they are copied to a repository."""
    assert {sibling for module in present(REMOTE_CODE) for sibling in siblings(read(module))} <= set(REMOTE_CODE)


def test_imports_have_no_cycle():
    assert cycle({module: siblings(read(module)) - {""} for module in MODULES}) is None


def transitive(edges):
    """All that follows from the arrows."""
    found = set(edges)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


def test_the_map_has_every_module_once_and_its_diagram_shows_the_imports():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (`.+) \|$", page, re.MULTILINE)
    listed = [(module, group) for group, cell in rows for module in re.findall(r"`(\w+)`", cell)]
    group_of = dict(listed)
    assert len(group_of) == len(listed) and set(group_of) == MODULES
    imports = {
        (group_of[module], group_of[sibling]) for module in MODULES for sibling in siblings(read(module)) - {""}
    }
    imports = {(group, other) for group, other in imports if group != other}
    arrows = set(re.findall(r"^ +(\w+) --> (\w+)$", page, re.MULTILINE))
    assert arrows <= imports and transitive(arrows) == transitive(imports)
    assert not any(group == other for group, other in transitive(arrows))


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
        ("from .a import x", {"a"}),
        ("from . import a", {"a"}),
        ("from . import x", {""}),
        ("import md4_hf", {""}),
        ("import md4_hf.a as z", {"a"}),
        ("from md4_hf import a, x", {"a", ""}),
        ("from md4_hf.a import x", {"a"}),
        ("def f():\n    from .a import x", {"a"}),
        ("import md4_hfx.a\nfrom a import x", set()),
    ],
)
def test_siblings_are_recognised(source, expected):
    assert siblings(source, modules={"a"}) == expected


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


def test_cycles_are_recognised():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert set(cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
    assert cycle({"a": {"a"}}) is not None
