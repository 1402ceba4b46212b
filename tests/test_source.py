"""What the package never contains: code from data, unguarded loads, narrow addresses. Each rule is shown to bite."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "rtm_kernels").rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN = {"eval", "exec", "builtins.eval", "builtins.exec", "__import__", "torch.package.PackageImporter",
             "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}  # fmt: skip
SAFE_YAML = {"safe_load", "YAMLError"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


Rule = Callable[[ast.AST], bool]


def callee(node: ast.AST) -> str:
    """Dotted name of what a call calls, or an empty string."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def keyword(node: ast.AST, name: str) -> ast.expr | None:
    assert isinstance(node, ast.Call)
    return next((k.value for k in node.keywords if k.arg == name), None)


def unpickles(node: ast.AST) -> bool:
    """Any use of a pickling module but the name of pickle's own error."""
    if isinstance(node, ast.Import):
        return any(a.name.split(".")[0] in UNPICKLERS and (a.name != "pickle" or a.asname) for a in node.names)
    if isinstance(node, ast.ImportFrom):
        names = {alias.name for alias in node.names}
        return (node.module or "").split(".")[0] in UNPICKLERS and names != {"UnpicklingError"}
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError"


def is_false(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is False)


def allows_pickle(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and not is_false(keyword(node, "allow_pickle"))


def reads_yaml(node: ast.AST) -> bool:
    """Any name of PyYAML but the safe loader and its error."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "yaml"
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml" and node.attr not in SAFE_YAML


def loads_unsafely(node: ast.AST) -> bool:
    if callee(node) != "torch.load":
        return False
    value = keyword(node, "weights_only")
    return not (isinstance(value, ast.Constant) and value.value is True)


def calls_what_is_never_called(node: ast.AST) -> bool:
    return callee(node) in FORBIDDEN or callee(node).endswith(("jit.load", ".extractall", ".unpack_archive"))


def starts_shell(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and not is_false(keyword(node, "shell"))


def loads_without_other(node: ast.AST) -> bool:
    if callee(node) != "tl.load":
        return False
    assert isinstance(node, ast.Call)
    masked = keyword(node, "mask") is not None or len(node.args) > 1
    return masked and keyword(node, "other") is None and len(node.args) < 3


RULES: dict[Rule, tuple[str, str]] = {
    unpickles: ("pickle.loads(data)", "except_ = pickle.UnpicklingError"),
    allows_pickle: ("np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=False)"),
    reads_yaml: ("yaml.load(text, Loader=yaml.Loader)", "yaml.safe_load(text)"),
    loads_unsafely: ("torch.load(path, map_location='cpu')", "torch.load(path, weights_only=True)"),
    calls_what_is_never_called: (
        "eval(text); os.system(line); torch.jit.load(path); archive.extractall(folder)",
        "model.eval()",
    ),
    starts_shell: ("subprocess.run(line, shell=True)", "subprocess.run([program], shell=False)"),
    loads_without_other: ("tl.load(ptr, mask=mask)", "tl.load(ptr, mask=mask, other=0.0)"),
}
"""Rule -> a line that breaks it and a line that keeps it."""


def violations(module: ast.AST, rule: Rule) -> list[int]:
    return [getattr(node, "lineno", 0) for node in ast.walk(module) if rule(node)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_never_written(rule: Rule) -> None:
    bad, good = RULES[rule]
    assert all(violations(ast.parse(line), rule) for line in bad.split("; ")) and not violations(ast.parse(good), rule)
    found = [f"{p.relative_to(ROOT)}:{n}" for p in SOURCES for n in violations(tree(p), rule)]
    assert not found


class Addresses(ast.NodeVisitor):
    """Follows program ids through one kernel and notes each that is multiplied in 32 bits inside an address.

    `width` holds the names that derive from a program id: narrow until cast to int64, then wide. A product of a
    narrow value in the pointer of a load or store overflows at 2^31.
    """

    def __init__(self, widening: frozenset[str]) -> None:
        self.widening = widening
        self.width: dict[str, str] = {}
        self.scaled: set[str] = set()
        self.found: list[int] = []

    def width_of(self, node: ast.AST) -> str:
        """`narrow` or `wide` for a value that derives from a program id or a cast, else an empty string."""
        if is_cast(node) or callee(node) in self.widening:
            return "wide"
        if callee(node) == "tl.program_id":
            return "narrow"
        if isinstance(node, ast.Name):
            return self.width.get(node.id, "")
        # a remainder indexes the tiles of one weight, which stays far below 2^31 elements; a loaded value is data
        bounded = isinstance(node, ast.Compare) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod))
        if bounded or callee(node) in ("tl.load", "tl.num_programs"):
            return ""
        widths = {self.width_of(part) for part in ast.iter_child_nodes(node)}
        return "wide" if "wide" in widths else "narrow" if "narrow" in widths else ""

    def is_scaled(self, node: ast.AST) -> bool:
        """Whether an expression multiplies a narrow value, or holds a pointer that was made so."""
        for part in ast.walk(node):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mult) and self.width_of(part) == "narrow":
                return True
            if isinstance(part, ast.Name) and part.id in self.scaled:
                return True
        return False

    def assign(self, target: ast.AST, value: ast.AST) -> None:
        width, scaled = self.width_of(value), is_address(value) and self.is_scaled(value)
        for name in (n.id for n in ast.walk(target) if isinstance(n, ast.Name)):
            self.width[name] = width
            (self.scaled.add if scaled else self.scaled.discard)(name)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for part, value in zip(target.elts, node.value.elts, strict=True):
                    self.assign(part, value)
            else:
                self.assign(target, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        self.assign(node.target, ast.BinOp(node.target, node.op, node.value))

    def visit_For(self, node: ast.For) -> None:
        self.assign(node.target, node.iter)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if callee(node) in ("tl.load", "tl.store") and self.is_scaled(node.args[0]):
            self.found.append(node.lineno)


def is_cast(node: ast.AST) -> bool:
    return (callee(node).endswith(".to") or callee(node) == "tl.cast") and "int64" in ast.unparse(node)


def is_address(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Name) and n.id.endswith(("_ptr", "_ptrs")) for n in ast.walk(node))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


@cache
def widening() -> frozenset[str]:
    """Device functions of the package that cast what they are given to int64."""
    return frozenset(f.name for p in SOURCES for f in functions(tree(p)) if any(map(is_cast, ast.walk(f))))


def narrow_addresses(text: str, wide: frozenset[str]) -> list[int]:
    found = []
    for function in functions(ast.parse(text)):
        visitor = Addresses(wide)
        visitor.visit(function)
        found += visitor.found
    return found


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("    row = tl.program_id(0)\n    tl.load(x_ptr + row * stride)", 1),
        ("    row = tl.program_id(0).to(tl.int64)\n    tl.load(x_ptr + row * stride)", 0),
        ("    row = tl.program_id(0)\n    tl.load(x_ptr + row.to(tl.int64) * stride)", 0),
        ("    row = tl.program_id(0)\n    tl.load(x_ptr + row)", 0),
        ("    rows = tl.program_id(0) * B + tl.arange(0, B)\n    tl.store(x_ptr + rows[:, None] * stride, 0)", 1),
        ("    for row in range(tl.program_id(0), n):\n        p_ptr = x_ptr + row * stride\n        tl.load(p_ptr)", 1),
        ("    p, s = tl.program_id(0), tl.program_id(1).to(tl.int64)\n    tl.load(x_ptr + (s * n + p) * stride)", 0),
        ("    row = widen(tl.program_id(0))\n    tl.load(x_ptr + row * stride)", 0),
    ],
)
def test_narrow_addresses_are_found(body: str, count: int) -> None:
    assert len(narrow_addresses(f"def kernel(x_ptr, stride, n, B):\n{body}\n", frozenset({"widen"}))) == count


@pytest.mark.parametrize("path", [p for p in SOURCES if "tl.program_id" in p.read_text()], ids=lambda p: p.stem)
def test_program_ids_are_wide_before_they_address(path: Path) -> None:
    assert narrow_addresses(path.read_text(), widening()) == []
