"""What the package never contains: code from data, unguarded loads. Each rule is shown to bite.

Addresses computed in 32 bits are found by `tests/proof/test_int32.py`, which runs every launch beyond 2^31.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "rtm_kernels").rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN = {"eval", "exec", "builtins.eval", "builtins.exec", "__import__", "torch.package.PackageImporter",
             "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}  # fmt: skip
SAFE_YAML = {"safe_load", "YAMLError"}


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


@cache
def nodes(text: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(text)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_never_written(rule: Rule) -> None:
    bad, good = RULES[rule]
    assert all(any(map(rule, nodes(line))) for line in bad.split("; ")) and not any(map(rule, nodes(good)))
    found = [f"{p.relative_to(ROOT)}: {ast.unparse(n)}" for p in SOURCES for n in nodes(p.read_text()) if rule(n)]
    assert not found
