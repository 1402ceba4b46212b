"""PTX as data: the instructions of one kernel in basic blocks, with the registers that each one writes and reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
NO_RESULT = ("st", "bra", "ret", "exit", "bar", "barrier", "cp", "stmatrix", "fence", "red", "trap", "prefetch",
             "griddepcontrol")  # fmt: skip
"""Opcodes without a destination register."""
NO_RESULT_FORMS = ("mbarrier.init", "mbarrier.inval", "wgmma.fence", "wgmma.commit", "wgmma.wait")
BARRIERS = ("bar.sync", "barrier.sync", "barrier.cta.sync")
"""Where the threads of a program wait for each other; a block ends there."""


class Fault(Exception):
    """What compiled code must not do, or an instruction that the tests do not know."""


@dataclass(frozen=True, slots=True)
class Register:
    name: str


@dataclass(frozen=True, slots=True)
class Number:
    """An immediate: an integer, or the bits of a float."""

    value: int


@dataclass(frozen=True, slots=True)
class Name:
    """A label, a parameter, or a symbol of shared memory."""

    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """`{a, b, ..}`, or the pair `a|b`."""

    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """`[base + offset]`, or `[descriptor, {coordinates}]` of a tensor map."""

    base: Any
    offset: int = 0
    coordinates: tuple[Any, ...] = ()


@dataclass(slots=True)
class Instruction:
    """`@guard op args;` in a line of the text."""

    line: int
    op: str
    args: list[Any]
    guard: Register | None = None
    negated: bool = False
    parts: list[str] = field(init=False)
    writes: tuple[str, ...] = field(init=False)
    reads: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = self.op.split(".")
        results = 0 if self.parts[0] in NO_RESULT or self.op.startswith(NO_RESULT_FORMS) else 1
        self.writes = tuple(r for a in self.args[:results] if not isinstance(a, Address) for r in registers(a))
        read = [a for n, a in enumerate(self.args) if n >= results or isinstance(a, Address) or self.accumulates]
        self.reads = tuple(r for a in (*read, self.guard) for r in registers(a))

    @property
    def accumulates(self) -> bool:
        """Whether it is an asynchronous product, which reads the accumulators that it writes."""
        return self.op.startswith("wgmma.mma_async")

    @property
    def synchronises(self) -> bool:
        return self.op.startswith(BARRIERS)

    @property
    def ends_block(self) -> bool:
        return self.parts[0] in ("bra", "ret", "exit", "trap") or self.synchronises


def registers(operand: Any) -> Iterator[str]:
    """Names of the registers in an operand."""
    if isinstance(operand, Register):
        yield operand.name
    elif isinstance(operand, Group):
        for item in operand.items:
            yield from registers(item)
    elif isinstance(operand, Address):
        for item in (operand.base, *operand.coordinates):
            yield from registers(item)


@dataclass
class Kernel:
    """One entry: its parameters (name -> type), threads of a program, register types, and blocks of instructions.

    `labels` are the blocks that branches name. `successors(n)` are those that may follow block n.
    """

    name: str
    params: dict[str, str]
    threads: int
    types: dict[str, str]
    blocks: list[list[Instruction]]
    labels: dict[str, int]

    def successors(self, n: int) -> tuple[int, ...]:
        last = self.blocks[n][-1]
        if last.parts[0] in ("ret", "exit", "trap") and last.guard is None:
            return ()
        onward = (n + 1,) if n + 1 < len(self.blocks) else ()
        if last.parts[0] != "bra":
            return onward
        return (self.labels[last.args[0].name], *(onward if last.guard else ()))

    def type_of(self, register: str) -> str:
        """`pred`, `u16`, `u32` or `u64`."""
        found = self.types.get(register) or self.types[register.rstrip("0123456789")]
        return found if found == "pred" else "u" + found[1:]


def parse(text: str) -> Kernel:
    """The only entry of a PTX text."""
    head = text[text.index(".entry") :]
    name = re.match(r"\.entry\s+(\w+)", head)[1]  # type: ignore[index]
    params = re.findall(rf"\.param\s+(?:\.align \d+\s+)?\.(\w+)(?:\s+\.ptr[\w. ]*?)?\s+({name}_param_\d+)", head)
    threads = re.search(r"\.reqntid\s+(\d+)", head)
    body = _Body(text.count("\n", 0, text.index("\n{", text.index(".entry"))) + 2)
    for number, line in enumerate(text.splitlines(), 1):
        if number >= body.first and not body.read(line.split("//")[0], number):
            break
    ends = {n + 1 for n, i in enumerate(body.instructions) if i.ends_block}
    starts = sorted({0, *body.labels.values(), *ends} - {len(body.instructions)})
    place = {start: n for n, start in enumerate(starts)}
    blocks = [body.instructions[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    labels = {label: place.get(at, len(starts)) for label, at in body.labels.items()}
    count = int(threads[1]) if threads else 0
    return Kernel(name, {n: t for t, n in params}, count, body.types, blocks, labels)


class _Body:
    """Statements between the braces of an entry. Names declared in an inner scope get its number."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.types: dict[str, str] = {}
        self.labels: dict[str, int] = {}
        self.instructions: list[Instruction] = []
        self.scopes: list[int] = []
        self.count = 0
        self.rest = ""
        self.started = 0

    def read(self, line: str, number: int) -> bool:
        """Take a line; False after the last brace."""
        if not self.rest and re.match(r"\s*\.(?!reg)", line):
            return True  # a directive
        for c in line:
            fresh = not self.rest.strip()
            self.started = number if fresh else self.started
            if c == "{" and fresh:
                self.count += 1
                self.scopes.append(self.count)
            elif c == "}" and fresh:
                self.scopes.pop()
                if not self.scopes:
                    return False
            elif c == ";":
                self.statement(self.rest.strip())
                self.rest = ""
            elif c == ":" and re.fullmatch(r"\s*[$\w]+", self.rest):
                self.labels[self.label(self.rest.strip())] = len(self.instructions)
                self.rest = ""
            else:
                self.rest += c
        self.rest = f"{self.rest} " if self.rest.strip() else ""
        return True

    def label(self, name: str) -> str:
        return name if name.startswith("$") else f"{name}#{self.scopes[-1]}"

    def statement(self, text: str) -> None:
        if declared := re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text):
            for name in declared[2].split(","):
                bare = name.strip().split("<")[0]
                self.types[bare if bare.startswith("%") else self.label(bare)] = declared[1]
            return
        found = re.match(r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)$", text, re.DOTALL)
        if not found:
            raise Fault(f"line {self.started}: {text}")
        guard = Register(self.operand(found[2]).name) if found[2] else None
        args = [self.operand(a) for a in split(found[4])]
        if found[3].startswith("bra"):
            args = [Name(self.label(args[0].name.split("#")[0]))]
        self.instructions.append(Instruction(self.started, found[3], args, guard, bool(found[1])))

    def operand(self, text: str) -> Any:
        if text.startswith("{"):
            return Group(tuple(self.operand(x) for x in split(text[1:-1])))
        if "|" in text:
            return Group(tuple(self.operand(x) for x in text.split("|")))
        if text.startswith("["):
            inner = split(text[1:-1])
            base, offset = re.match(r"([%\w$.]+)\s*(?:\+\s*(-?\w+))?$", inner[0]).groups()  # type: ignore[union-attr]
            rest = self.operand(inner[1]).items if len(inner) > 1 else ()
            return Address(self.operand(base), int(offset or "0", 0), rest)
        if re.match(r"-?\d", text):
            floating = text[:2].lower() in ("0f", "0d")
            return Number(int(text[2:], 16) if floating else int(text.rstrip("U"), 0))
        local = self.scopes and next((q for s in self.scopes if (q := f"{text}#{s}") in self.types), None)
        if text.startswith("%") or local:
            return Register(local or text)
        return Name(text)


def split(text: str) -> list[str]:
    """Operands between commas that are not inside brackets."""
    out, depth = [""], 0
    for c in text:
        depth += (c in "{[") - (c in "}]")
        if c == "," and not depth:
            out.append("")
        else:
            out[-1] += c
    return [part.strip() for part in out if part.strip()]
