"""Rules of the design that the reader of one file cannot see: which way imports point, and what is never written."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "rtm_kernels"
MAX_LINES = 350
SUFFIXES = {".py", ".cpp", ".cu", ".h", ".cuh"}

LEVELS = (
    "errors", "ranges", "energy", "access", "files", "program", "config", "impl", "flops", "shared", "kernel", "api",
    "block", "names", "carry", "recursion", "hub", "pretrained", "model", "text", "data", "losses", "engine", "interop",
    "train", "trace", "serve", "agent", "distributed", "cli",
)  # fmt: skip
"""Lowest first: a module imports what is below it, and its own package. `shared`, `kernel` and `api` are parts of
`ops`: what several ops share, one op, and the public function of an op."""

ROOTS = (f"{PACKAGE}", f"{PACKAGE}.cli.main")
"""What users import or start, besides what the documentation shows."""

CORE = {"torch", "numpy", "safetensors"}
"""Packages that a module may import at its top, besides triton in kernels; every other one when first needed."""

POSIX = {"fcntl", "grp", "pwd", "resource", "termios", "tty"}
"""Modules of Python that Windows lacks."""

EXTRAS = {
    f"{PACKAGE}.cli": {"typer", "rich"},
    f"{PACKAGE}.serve": {"fastapi", "pydantic", "pydantic_core", "starlette", "uvicorn", "prometheus_client"},
    f"{PACKAGE}.trace": {"pydantic"},
    f"{PACKAGE}.agent": {"mcp", "mcp_types", "pydantic", "uvicorn"},
    f"{PACKAGE}.train": {"pydantic"},
    f"{PACKAGE}.interop.lm_eval": {"lm_eval"},
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
        return parts[0]
    if len(parts) == 1:
        return "api"
    if not (ROOT / PACKAGE / "ops" / parts[1] / "reference.py").exists():
        return "shared"
    return "api" if parts[2:] in ([], ["api"]) else "kernel"


def unit(name: str) -> str:
    """What a module may import besides lower levels: its op, or its package."""
    return ".".join(name.split(".")[:3]) if level(name) in ("kernel", "api") else level(name)


def find_imports(tree: ast.AST, name: str, known: frozenset[str], at_top: bool = True) -> Iterator[Import]:
    """Every import below `tree`, the ones for type checkers alone left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
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
    if level(source) == "package":
        return None
    distance = LEVELS.index(level(source)) - LEVELS.index(level(target))
    if distance > 0 or (distance == 0 and unit(source) == unit(target)):
        return None
    return f"{level(source)} must not import {level(target)}"


@pytest.mark.parametrize("name", modules())
def test_imports_point_one_way(name: str) -> None:
    for item in imports(name):
        if item.target in modules() and item.target != PACKAGE:
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
        posix = item.at_top and head in POSIX
        assert not posix, f"{where} is not on Windows: import it when first needed"
        if item.at_top and head != PACKAGE and head not in sys.stdlib_module_names:
            assert head in allowed, f"{where} is not a core dependency"


@pytest.mark.parametrize("name", modules())
def test_triton_is_imported_when_first_needed(name: str) -> None:
    home_of_kernels = level(name) in ("shared", "kernel", "recursion") and not name.endswith(".reference")
    assert home_of_kernels or not needs_triton(name), f"importing {name} imports triton"


def test_every_package_has_a_level() -> None:
    assert {level(name) for name in modules()} - {"package"} == set(LEVELS)


def test_no_import_cycles() -> None:
    """Imports inside functions count, too."""
    graph = {name: {i.target for i in imports(name) if i.target in modules()} - {name} for name in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


@cache
def names_in(name: str) -> Counter[str]:
    """How often a module mentions each name: variables, attributes, imported names and strings."""
    field = {ast.Name: "id", ast.Attribute: "attr", ast.alias: "name", ast.Constant: "value"}
    nodes = ast.walk(ast.parse(modules()[name].read_text()))
    values = (getattr(node, field[type(node)]) for node in nodes if type(node) in field)
    return Counter(value for value in values if isinstance(value, str) and len(value) < 100)


def named_modules(text: str) -> set[str]:
    """Modules that a text names, as in `from rtm_kernels.x import y`, `rtm_kernels.x:y` and `-m rtm_kernels.x`."""
    found = set()
    for match in re.finditer(rf"{PACKAGE}(?:\.\w+)+", text):
        parts = match[0].split(".")
        found |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & modules().keys()
    return found


def reached() -> set[str]:
    """Modules that users can reach: by imports, by strings, from the entry points and the documentation."""
    texts = [ROOT / "pyproject.toml", ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    todo = [*ROOTS, *(name for path in texts for name in named_modules(path.read_text()))]
    homes = importlib.import_module(PACKAGE)._HOMES
    todo += [f"{PACKAGE}.{home}" for home in homes.values()]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        strings = {text for text in names_in(name) if text.startswith(f"{PACKAGE}.")}
        todo += [i.target for i in imports(name) if i.target in modules()]
        todo += [module for text in strings for module in named_modules(text)]
        todo += [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)]
    return seen


def test_every_module_is_reached_from_what_users_call() -> None:
    lost = modules().keys() - reached() - {f"{PACKAGE}.cli.__main__"}
    assert not lost, f"only tests or benchmarks reach {sorted(lost)}"


def test_every_public_function_of_the_inner_packages_has_a_caller_in_the_package() -> None:
    mentions: Counter[str] = Counter()
    for name in modules():
        mentions += names_in(name)
    lost = set()
    for name in modules():
        if name.split(".")[1:2] not in (["ops"], ["recursion"], ["engine"]):
            continue
        for node in ast.parse(modules()[name].read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                own = sum(isinstance(n, ast.Name) and n.id == node.name for n in ast.walk(node))
                if mentions[node.name] <= own:
                    lost.add(f"{name.removeprefix(PACKAGE + '.')}:{node.name}")
    assert not lost, f"only tests or benchmarks call {sorted(lost)}"


def test_files_stay_short() -> None:
    paths = (path for folder in (PACKAGE, "csrc", "tests", "benchmarks") for path in (ROOT / folder).rglob("*"))
    counts = {path: len(path.read_text().splitlines()) for path in paths if path.suffix in SUFFIXES}
    long = {str(path.relative_to(ROOT)): count for path, count in counts.items() if count > MAX_LINES}
    assert not long, f"longer than {MAX_LINES} lines: {long}"
