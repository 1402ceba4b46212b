"""One interpreted launch as data, so that a proof can run it its own way: other memory, other order, few programs.

Also what the proofs share: processes of their own, the kernels' files and names, the bits of a tensor.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from triton.runtime import interpreter

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rtm_kernels"

Program = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments by name, about to run on a grid in Triton's interpreter."""

    kernel: str
    function: Callable[..., None]
    grid: Program
    arguments: dict[str, Any]
    constexprs: frozenset[str] = field(default_factory=frozenset)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensor arguments by name."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, Tensor)}

    def programs(self) -> Iterator[Program]:
        """Every program id, in the interpreter's own order."""
        return itertools.product(*map(range, self.grid))

    def given(self, tensors: dict[str, Tensor]) -> Launch:
        """The same launch with other tensors."""
        return replace(self, arguments={**self.arguments, **tensors})

    def run(self, programs: Iterable[Program] | None = None) -> None:
        """Run these programs one after the other, by default all of the grid in order."""
        builder = interpreter.interpreter_builder
        bound = {k: v if k in self.constexprs else interpreter._implicit_cvt(v) for k, v in self.arguments.items()}
        scope = interpreter._patch_lang(self.function)
        try:
            builder.set_grid_dim(*self.grid)
            for program in self.programs() if programs is None else programs:
                builder.set_grid_idx(*program)
                self.function(**bound)
        finally:
            scope.restore()


@contextmanager
def every_launch(run: Callable[[Launch], None]) -> Iterator[list[str]]:
    """Call `run` in place of every launch on CPU or meta tensors; yields the names of the kernels launched so far."""
    seen: list[str] = []

    class Executor(interpreter.GridExecutor):
        def __call__(self, *args: Any, **kwargs: Any) -> None:
            kwargs = {k: v for k, v in kwargs.items() if k in inspect.getfullargspec(self.fn).args}
            arguments = inspect.getcallargs(self.fn, *args, **kwargs)
            grid = (*(int(n) for n in self.grid), 1, 1)[:3]
            seen.append(self.fn.__name__)
            run(Launch(self.fn.__name__, self.fn, grid, arguments, frozenset(self.constexprs)))

    original = interpreter.GridExecutor
    interpreter.GridExecutor = Executor
    try:
        yield seen
    finally:
        interpreter.GridExecutor = original


def process(*arguments: str, interpret: bool = True, **environment: str) -> str:
    """What Python prints with these arguments in a process of its own, whose Triton interprets or compiles."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    how = {"TRITON_INTERPRET": "1"} if interpret else {}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**inherited, **how, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def jit_functions(path: Path) -> Iterator[ast.FunctionDef]:
    """The functions of a file that Triton compiles."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
            yield node


def kernel_files() -> list[Path]:
    """Every file of the package with functions that Triton compiles."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "@triton.jit" in path.read_text()]


def kernel_names() -> set[str]:
    """The name of every kernel of the package; device functions, which no host launches, do not end in `_kernel`."""
    names = [node.name for path in kernel_files() for node in jit_functions(path)]
    return {name for name in names if name.endswith("_kernel")}


def bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor's elements: NaN equals NaN, and -0.0 differs from 0.0."""
    return tensor.detach().numpy().tobytes()
