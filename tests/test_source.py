"""What the package never contains: code from data, unguarded loads. Each rule is shown to find a bad line.

Addresses computed in 32 bits are found by `tests/proof/test_int32.py`, which runs every launch beyond 2^31.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "rtm_kernels").rglob("*.py"))
RULES = {
    "pickles": (
        r"(import|from) (?!pickle import UnpicklingError$)(pickle|_pickle|dill|cloudpickle|marshal|shelve|joblib)\b",
        "import pickle; from marshal import loads",
        "from pickle import UnpicklingError",
    ),
    "pickled arrays": (
        r".*allow_pickle=(?!False)",
        "np.load(path, allow_pickle=True)",
        "np.load(a, allow_pickle=False)",
    ),
    "yaml": (
        r".*\byaml\.(?!safe_load|YAMLError)|from yaml\b",
        "yaml.load(text); parse(yaml.load)",
        "yaml.safe_load(text)",
    ),
    "checkpoints": (r"torch\.load\((?!.*weights_only=True)", "torch.load(path)", "torch.load(path, weights_only=True)"),
    "code": (
        r"(builtins\.)?(eval|exec|__import__)\(|.*(jit\.load|\.extractall|\.unpack_archive|PackageImporter)\(",
        "eval(text); torch.jit.load(path); archive.extractall(folder)",
        "model.eval()",
    ),
    "shells": (
        r"os\.(system|popen)\(|subprocess\.get\w+\(|.*\bshell=(?!False)",
        "os.system(line); subprocess.run(line, shell=True)",
        "subprocess.run([program], shell=False)",
    ),
    "masked loads": (
        r"tl\.load\((?=.*mask)(?!.*other=)",
        "tl.load(ptr, mask=mask); tl.load(ptr, mask_d)",
        "tl.load(ptr, mask=mask, other=0.0)",
    ),
}
"""What is searched -> a pattern of calls and imports, lines that break the rule, and one that keeps it."""


def found(pattern: str, text: str) -> list[str]:
    """The calls and imports of a text, each on one line, that match from their beginning."""
    kinds = (ast.Call, ast.Import, ast.ImportFrom)
    lines = (ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, kinds))
    return [line for line in lines if re.match(pattern, line)]


@pytest.mark.parametrize("rule", RULES)
def test_never_written(rule: str) -> None:
    pattern, bad, good = RULES[rule]
    assert all(found(pattern, line) for line in bad.split("; ")) and not found(pattern, good)
    assert [(path.name, line) for path in SOURCES for line in found(pattern, path.read_text())] == []
