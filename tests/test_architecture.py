"""Rules of the design that the reader of one file cannot see: which way imports point, and what is never written."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "rtm_kernels"
MAX_LINES = 350

LEVELS = (
    "errors", "ranges", "program", "config", "impl", "shared", "kernel", "api", "block", "embedding", "recursion",
    "model", "surface", "cli", "package",
)  # fmt: skip
"""Lowest first: a module imports what is below it. What is neither named here nor below `ops` is `surface`."""

FREE = {"shared", "recursion", "surface", "cli"}
"""Levels whose modules also import each other; modules of an op import their own op only."""

FORWARDS = {(f"{PACKAGE}.model", f"{PACKAGE}.pretrained")}
"""Imports that point up, each inside a public method that only forwards (`RecursiveReasoner.from_pretrained`)."""

CORE = {"torch", "numpy", "safetensors"}
"""Packages that a module may import at its top, besides triton in kernels; every other one when first needed."""

EXTRAS = {
    f"{PACKAGE}.cli": {"typer", "rich", "click"},
    f"{PACKAGE}.serve": {"fastapi", "h11", "pydantic", "pydantic_core", "starlette", "uvicorn", "prometheus_client"},
    f"{PACKAGE}.agent": {"mcp", "mcp_types", "pydantic", "starlette", "uvicorn"},
}
"""Folders that are themselves imported when first needed, and the packages of their extra."""

DEFERRED = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Import:
    """One imported name: the module it comes from, its line, and whether it runs when the module is imported."""

    target: str
    line: int
    at_top: bool


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    names = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def level(name: str) -> str:
    """The level of a module of the package."""
    parts = name.split(".")[1:]
    if not parts:
        return "package"
    if parts[0] != "ops":
        return parts[0] if parts[0] in LEVELS else "surface"
    if len(parts) == 1:
        return "api"
    if not (ROOT / PACKAGE / "ops" / parts[1] / "reference.py").exists():
        return "shared"
    return "api" if parts[2:] in ([], ["api"]) else "kernel"


def unit(name: str) -> str:
    """What a module may import freely from: its op, or its level where the level allows that."""
    return level(name) if level(name) in FREE else ".".join(name.split(".")[:3])


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def find_imports(tree: ast.AST, name: str, known: frozenset[str], at_top: bool = True) -> Iterator[Import]:
    """Every import below `tree`, the ones for type checkers alone left out."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*name.split(".")[: -node.level], *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in known else base, node.lineno, at_top)
        else:
            yield from find_imports(node, name, known, at_top and not isinstance(node, DEFERRED))


@cache
def imports(name: str) -> tuple[Import, ...]:
    return tuple(find_imports(ast.parse(modules()[name].read_text()), name, frozenset(modules())))


@cache
def needs_triton(name: str) -> bool:
    """Whether importing a module imports triton, by itself or through the modules it imports."""
    eager = [i.target for i in imports(name) if i.at_top]
    return any(t.split(".")[0] == "triton" or (t in modules() and needs_triton(t)) for t in eager)


def arrow_error(source: str, target: str) -> str | None:
    """Why `source` must not import `target`, both modules of the package, or None."""
    distance = LEVELS.index(level(source)) - LEVELS.index(level(target))
    if distance > 0 or (distance == 0 and unit(source) == unit(target)):
        return None
    return f"{level(source)} must not import {level(target)}"


@pytest.mark.parametrize("name", modules())
def test_imports_point_one_way(name: str) -> None:
    for item in imports(name):
        forwards = (name, item.target) in FORWARDS and not item.at_top
        if item.target in modules() and item.target != PACKAGE and not forwards:
            reason = arrow_error(name, item.target)
            assert reason is None, f"{modules()[name].name}:{item.line}: {item.target}: {reason}"


@pytest.mark.parametrize("name", modules())
def test_only_the_core_is_needed_at_import(name: str) -> None:
    allowed = CORE.union({"triton"}, *(more for folder, more in EXTRAS.items() if f"{name}.".startswith(f"{folder}.")))
    for item in imports(name):
        head = item.target.split(".")[0]
        where = f"{modules()[name].name}:{item.line}: {item.target}"
        in_extra = any(f"{item.target}.".startswith(f"{folder}.") for folder in EXTRAS)
        outside = not any(f"{name}.".startswith(f"{folder}.") for folder in EXTRAS)
        assert not (item.at_top and in_extra and outside), f"{where} needs an extra: import it when first needed"
        assert head not in ("tests", "benchmarks"), f"{where} is not part of the package"
        if item.at_top and head != PACKAGE and head not in sys.stdlib_module_names:
            assert head in allowed, f"{where} is not a core dependency"


@pytest.mark.parametrize("name", modules())
def test_triton_is_imported_when_first_needed(name: str) -> None:
    home_of_kernels = level(name) in ("shared", "kernel", "recursion") and not name.endswith(".reference")
    assert home_of_kernels or not needs_triton(name), f"importing {name} imports triton"


def test_no_import_cycles() -> None:
    graph = {name: {i.target for i in imports(name) if i.at_top and i.target in modules()} for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("ops.swiglu_norm.reference", "ops.attention_norm.reference", False),
        ("ops.swiglu_norm.reference", "ops.swiglu_norm.api", False),
        ("ops.swiglu_norm.api", "ops.swiglu_norm.reference", True),
        ("ops.swiglu_norm.api", "ops.attention_norm.api", False),
        ("ops.swiglu_norm.reference", "ops.primitives", True),
        ("ops.primitives", "ops.swiglu_norm.reference", False),
        ("errors", "config", False),
        ("config", "program", True),
        ("config", "impl", False),
        ("block", "ops.swiglu_norm.api", True),
        ("block", "recursion.reference", False),
        ("recursion.reference", "block", True),
        ("model", "recursion.reference", True),
        ("recursion.reference", "model", False),
        ("model", "data", False),
        ("data", "model", True),
        ("data", "cli", False),
    ],
)
def test_the_arrows_are_the_ones_of_the_design(source: str, target: str, allowed: bool) -> None:
    assert (arrow_error(f"{PACKAGE}.{source}", f"{PACKAGE}.{target}") is None) is allowed


def test_imports_are_found_wherever_they_stand() -> None:
    text = "import a.b\nfrom . import c\nfrom pkg.d import e, F\ndef f():\n    if f:\n        import g\n"
    found = list(find_imports(ast.parse(text), "pkg.here", frozenset({"pkg.c", "pkg.d.e"})))
    assert [(i.target, i.at_top) for i in found] == [
        ("a.b", True), ("pkg.c", True), ("pkg.d.e", True), ("pkg.d", True), ("g", False),
    ]  # fmt: skip


def test_files_stay_short() -> None:
    suffixes = {".py", ".cpp", ".cu", ".h", ".cuh"}
    long = {}
    for folder in (PACKAGE, "csrc", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in suffixes and len(path.read_text().splitlines()) > MAX_LINES:
                long[str(path.relative_to(ROOT))] = len(path.read_text().splitlines())
    assert not long, f"longer than {MAX_LINES} lines: {long}"
