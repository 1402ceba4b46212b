"""The launchers of the package on CPU tensors: every launch is compiled by Triton and executed here.

`installed(arch)` makes Triton believe in an idle GPU of compute capability `arch` and takes over its launches, so that
public functions with impl="triton" run as they do on a GPU.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.compiled import threads
from tests.compiled.memory import Memory
from tests.compiled.products import Machine
from tests.compiled.program import Program
from tests.compiled.ptx import Fault
from tests.compiled.races import Watch
from tests.compiled.shared import TensorMap
from tests.gates.hazards import hazards
from tests.gates.precision import imprecise
from tests.gates.source import LAST_BITS, interpret, unlike

THREADS = 2048
"""Threads of independent programs that run together."""


class Launch:
    """One launch of a kernel on the buffers of `memory`, which `run` executes, perhaps in another version."""

    def __init__(self, name: str, binary: Any, function: Any, given: tuple[Any, ...], kwargs: Any, grid: Any) -> None:
        self.name, self.binary, self.function, self.given, self.kwargs = name, binary, function, given, kwargs
        grid = grid({**dict(zip(function.arg_names, given, strict=False)), **kwargs}) if callable(grid) else grid
        self.grid = (*grid, *(1,) * (3 - len(grid)))
        self.programs = [p[::-1] for p in product(*(range(n) for n in self.grid[::-1]))]
        self.memory, self.values, self.maps = arguments(binary, function, given, kwargs)
        self.cooperative = bool(kwargs.get("launch_cooperative_grid"))

    def run(
        self, code: Program, programs: Sequence[Any], after: Any = None, seed: int = 0, stop: bool = False
    ) -> dict[str, None]:
        """What was found; `after(name, binary, machine)` sees what ran. With `stop` a `Fault` says it first."""
        if len(self.values) != len(code.kernel.params):
            raise Fault(f"{self.name}: {len(self.values)} arguments for {len(code.kernel.params)} parameters")
        parameters = dict(zip(code.kernel.params, self.values, strict=True))
        watch, self.ran = Watch(code.kernel, len(programs), stop), Counter[int]()

        def machine(some: list[tuple[int, ...]]) -> Machine:
            made = Machine(code, parameters, self.binary.metadata.shared, some, self.grid, watch)
            made.memory, made.tensor_maps = self.memory, self.maps
            made.start()
            return made

        with np.errstate(all="ignore"):
            if self.cooperative:
                machines = [machine([p]) for p in programs]
                take_turns(machines, seed)
                for made in machines:
                    self.ran += made.ran
            else:
                at_once = max(1, THREADS // code.kernel.threads)
                for n in range(0, len(programs), at_once):
                    made = machine(programs[n : n + at_once])
                    made.run()
                    self.ran += made.ran
                    if after is not None:
                        after(self.name, self.binary, made)
        return watch.found

    def by_source(self, programs: Sequence[Any]) -> list[Any]:
        """What these programs of its source leave in the buffers; nothing if programs wait for each other."""
        if self.cooperative and len(self.programs) > 1:
            return []
        self.memory.fill([])
        interpret(self.function, self.given, {**self.kwargs, "OVERLAP": False}, self.grid, programs)
        return self.memory.state()

    def unlike(self, wanted: list[Any], wide: float = LAST_BITS) -> dict[str, None]:
        """Which buffers do not hold what is wanted, of all that is not what it was before."""
        found = {}
        for b, other in zip(self.memory.buffers, wanted, strict=False):
            changed = torch.from_numpy((b.as_width[1] != b.before) | (other != b.before))
            if b.dtype is not None and changed.any():
                touched = changed.view(-1, b.dtype.itemsize).any(1)
                both = (torch.from_numpy(x).view(b.dtype)[touched] for x in (b.as_width[1], other))
                if text := unlike(*both, wide):
                    found[f"{b.name}: {text}"] = None
        return found

    def against_source(self, code: Program, programs: Sequence[Any], wide: float) -> dict[str, None]:
        """How these programs, run by themselves, differ from their source."""
        left, wanted = self.memory.state(), self.by_source(programs)
        if wanted and len(programs) < len(self.programs):
            self.memory.fill([])
            self.run(code, programs)
        else:
            self.memory.fill(left)
        found = self.unlike(wanted, wide)
        self.memory.fill(left)
        return found


@dataclass
class Executor:
    """What a launch does, and what was found.

    seed: of the order in which programs of a cooperative launch take turns. most_programs: of a launch, the first ones
    alone. after(name, binary, machine) sees what ran. checks(launch, n): programs of a kernel's n-th launch that are
    held to its source, results wider than 16 bits by `wide`. judge(launch, code) sees it last, and may run it again.
    """

    seed: int = 0
    most_programs: int | None = None
    after: Callable[[str, Any, Machine], None] | None = None
    checks: Callable[[Launch, int], Sequence[Any]] | None = None
    wide: float = LAST_BITS
    judge: Callable[[Launch, Program], None] | None = None
    launches: Counter[str] = field(default_factory=Counter)
    found: dict[str, None] = field(default_factory=dict)
    known: dict[str, Program] = field(default_factory=dict)

    def program(self, name: str, binary: Any) -> Program:
        text = binary.asm["ptx"]
        if text not in self.known:
            self.known[text] = Program(text)
            wrong = *hazards(self.known[text].kernel), *imprecise(binary.asm["ttir"])
            self.found.update({f"{name}: {what}": None for what in wrong})
        return self.known[text]

    def launch(self, binary: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], grid: Any) -> None:
        launch = Launch(function.__name__, binary, function, args, kwargs, grid)
        launch.programs = launch.programs[: self.most_programs]
        self.launches[launch.name] += 1
        code = self.program(launch.name, binary)
        found = launch.run(code, launch.programs, self.after, self.seed)
        code.keep()
        if self.checks and (programs := self.checks(launch, self.launches[launch.name])):
            found |= launch.against_source(code, programs, self.wide)
        self.found.update({f"{launch.name}: {what}": None for what in found})
        if self.judge is not None:
            self.judge(launch, code)


def take_turns(machines: list[Machine], seed: int) -> None:
    """Programs that wait for each other, a random few blocks of a random one at a time."""
    rng = np.random.default_rng(seed)
    left = threads.MOST_STEPS
    while live := [m for m in machines if not m.finished]:
        chosen = live[rng.integers(len(live))]
        for _ in range(int(rng.integers(1, 40))):
            if not chosen.finished:
                chosen.step()
                left -= 1
        if left < 0:
            raise Fault("the programs of a cooperative launch wait for ever")


def arguments(
    binary: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Memory, list[int], dict[int, TensorMap]]:
    """The buffers of a launch, the bits of its parameters in order, and its tensor maps by address."""
    named = {**dict(zip(function.arg_names, args, strict=False)), **kwargs}
    described = iter(getattr(binary.metadata, "tensordesc_meta", None) or ())
    memory, values, maps = Memory(), [], {}
    for name in function.arg_names:
        kind, value = binary.src.signature.get(name, "constexpr"), named.get(name)
        if kind == "constexpr":
            continue
        if kind.startswith("tensordesc"):
            meta = next(described)
            address = 0x7000_0000_0000 + 128 * len(maps)
            maps[address] = TensorMap(value, tuple(meta["block_size"]), meta["swizzle"])  # type: ignore[arg-type]
            values += [address, *map(int, value.shape), *map(int, value.strides)]  # type: ignore[union-attr]
        elif isinstance(value, Tensor):
            values.append(memory.add(value, name))
        elif kind.startswith("fp"):
            values.append(int(np.float32(value).view(np.uint32)))
        else:
            values.append(int(value))  # type: ignore[arg-type]
    return memory, [*values, 0, 0], maps  # two scratch buffers that no kernel uses


@contextlib.contextmanager
def installed(arch: int) -> Iterator[Executor]:
    """Triton's launches go to the executor, for a GPU of compute capability `arch`."""
    from triton.runtime.jit import JITFunction

    from rtm_kernels import impl
    from rtm_kernels.recursion.persistent import runner
    from tests.gates.compile_gate import _install_target

    _install_target(arch)
    executor, real = Executor(), JITFunction.run
    why_not = impl.why_not_triton, runner.why_not_triton

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        binary = real(self, *args, **{**kwargs, "grid": (1,), "warmup": True})
        executor.launch(binary, self, args, kwargs, grid)
        return binary

    JITFunction.run = run  # type: ignore[method-assign]
    impl.why_not_triton = runner.why_not_triton = lambda device: None  # type: ignore[assignment]
    try:
        yield executor
    finally:
        JITFunction.run = real  # type: ignore[method-assign]
        impl.why_not_triton, runner.why_not_triton = why_not  # type: ignore[assignment]
