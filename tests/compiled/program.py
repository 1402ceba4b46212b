"""A kernel that can be executed: the functions of its blocks, compiled when they are first run and kept on disk."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import marshal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

from tests.compiled import arithmetic
from tests.compiled.codegen import SPECIAL, Writer
from tests.compiled.ptx import Instruction, Kernel, parse

CACHE = Path(tempfile.gettempdir()) / "rtm_kernels_compiled_gate"
"""Where generated code is kept between runs."""
SOURCES = ("arithmetic.py", "meanings.py", "codegen.py", "program.py", "ptx.py")


def branch(taken: Any, m: Any, target: int, onward: int) -> Any:
    """Where the threads of m go: those of `taken` to the target, the rest onward."""
    rest = ~taken if m is None else ~taken & m
    taken = taken if m is None else taken & m
    if not rest.any():
        return target
    return (taken, target, rest, onward) if taken.any() else onward


class Program:
    """A kernel with the functions of its blocks, compiled when they are first run and kept in `CACHE`."""

    def __init__(self, text: str) -> None:
        self.kernel = parse(text)
        own = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
        self.path = CACHE / hashlib.sha256(own + text.encode()).hexdigest()[:32]
        self.code: dict[tuple[int, bool], CodeType] = {}
        if self.path.exists():
            self.code = marshal.loads(self.path.read_bytes())
        self.kept = len(self.code)
        self.functions: dict[tuple[int, bool], Callable[..., Any]] = {}
        self.slots = {name: n for n, name in enumerate(sorted(between_blocks(self.kernel)))}

    def function(self, n: int, masked: bool) -> Callable[..., Any]:
        if (n, masked) not in self.functions:
            if (n, masked) not in self.code:
                source = Writer(self.kernel, self.slots, n, masked).source()
                self.code[n, masked] = compile(source, f"{self.kernel.name}:{n}", "exec")
            names = {"np": np, "A": arithmetic, "branch": branch, "constant": arithmetic.constant}
            exec(self.code[n, masked], names)
            self.functions[n, masked] = names["block"]  # type: ignore[assignment]
        return self.functions[n, masked]

    def changed(self, n: int, block: list[Instruction]) -> Program:
        """The kernel with another block n, which shares the functions of the rest."""
        other = copy.copy(self)
        blocks = [*self.kernel.blocks[:n], block, *self.kernel.blocks[n + 1 :]]
        other.kernel = dataclasses.replace(self.kernel, blocks=blocks)
        other.code = {k: code for k, code in self.code.items() if k[0] != n}
        other.functions = {k: function for k, function in self.functions.items() if k[0] != n}
        return other

    def keep(self) -> None:
        """Write the generated code where the next process finds it."""
        if len(self.code) > self.kept:
            self.kept = len(self.code)
            CACHE.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=CACHE, delete=False) as file:
                file.write(marshal.dumps(self.code))
            Path(file.name).replace(self.path)


def between_blocks(kernel: Kernel) -> set[str]:
    """Registers that one block writes, perhaps only in some threads, and another reads."""
    home: dict[str, int] = {}
    found = set()
    for n, block in enumerate(kernel.blocks):
        written: set[str] = set()
        for i in block:
            found.update(r for r in i.reads if r not in written)
            found.update(r for r in i.writes if i.guard and r not in written)
            written.update(i.writes)
            found.update(r for r in (*i.reads, *i.writes) if home.setdefault(r, n) != n)
    return found - SPECIAL.keys()
