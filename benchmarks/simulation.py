"""The time of a launch on an H200 from what its first program executed: arithmetic, not a measurement.

The programs that a multiprocessor holds run through its pipes, step by step. What is taken for granted: instructions
between two accesses to memory overlap perfectly, the warps of a program go in step, and L2 holds what is read. What is
not: an access waits for its latency, a product for its operands, and whoever waits until the work is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.pipes import CLOCK, SHARED, SMS, SPECIAL, TENSOR, pipes
from tests.compiled.ptx import Instruction

HBM = 4.3e12
"""Bytes per second of a copy, measured by others on an H200, of 4.8 in the datasheet."""
L2, PORT = 7.0e12, 64
"""Bytes per second from L2 to all multiprocessors (measured by others: 5.5 to 7 TB/s on an H100, up to 10 on an H200),
and bytes per clock to one."""
L2_LATENCY, SHARED_LATENCY, DRAIN, BARRIER = 280, 30, 30, 25
"""Clocks from a request to its data in L2 and in shared memory, from products to registers, and of a bar.sync."""
GRID_BARRIER = 1.3e-6 * CLOCK
"""Clocks of a barrier between the programs of a launch: what others measured, 1.1 to 1.7 microseconds."""
REGISTERS, SHARED_SIZE, THREADS = 65536, 227 * 1024, 2048
"""Of a multiprocessor."""
PIPES = ("HBM", "tensor", "L2", "shared", "special", "alu", "issue")
STEADY = 4
"""Programs of a place that are simulated; more of them add what the last half of these took."""
KINDS = (
    ("cp.async.commit", "commit copies"), ("cp.async.wait", "wait for copies"), ("cp.async.bulk.tensor", "tile"),
    ("cp.async.c", "copy"), ("mbarrier.try_wait", "passed"), ("wgmma.mma", "product"),
    ("wgmma.commit", "commit products"), ("wgmma.wait", "wait for products"), ("bar", "barrier"),
    ("ld.shared", "load shared"), ("ldmatrix", "load shared"), ("st.shared", "store shared"),
    ("stmatrix", "store shared"), ("ld.global.gpu.acquire", "spin"), ("atom.global.gpu.acquire", "spin"),
    ("atom.global.gpu.release", "arrive"), ("ld.global", "load L2"), ("atom", "load L2"), ("st.global", "store L2"),
)  # fmt: skip
"""Start of an opcode -> what the simulation does with it; everything else is computing."""


@dataclass
class Step:
    """An instruction that is not just computing, or all the computing between two of them."""

    kind: str
    cost: Counter[str] = field(default_factory=Counter)
    reads: set[str] = field(default_factory=set)
    writes: tuple[str, ...] = ()
    number: int = 0

    @property
    def memory(self) -> str:
        """The pipe of an access to memory, or nothing."""
        return "shared" if "shared" in self.kind else "L2" if self.kind in ("copy", "tile") or "L2" in self.kind else ""


def steps_of(block: Sequence[Instruction], loaded: set[str]) -> list[Step]:
    """A block as steps; `loaded` are the registers that loads write, of which a reader waits."""
    out: list[Step] = []
    for i in block:
        kind = next((kind for start, kind in KINDS if i.op.startswith(start)), "compute")
        if kind != "compute" or not out or out[-1].kind != "compute":
            out.append(Step(kind, writes=i.writes))
        for pipe, cost in pipes(i):
            out[-1].cost[pipe] += cost  # type: ignore[assignment]
        out[-1].reads.update(loaded.intersection(i.reads))
        out[-1].number = next((a.value for a in i.args if hasattr(a, "value")), 0)
    return out


def size_of(step: Step, noted: Any) -> float:
    """What was noted of an access: wavefronts of shared memory, or bytes from or to L2."""
    return float(noted[0] if step.kind == "tile" else noted)


@dataclass
class Launch:
    """One launch: its programs, the bytes of all tensors that it reads and of those that it writes, and of its first
    program what it holds and its blocks with (warps, notes on accesses)."""

    kernel: str
    grid: int
    bytes: int
    threads: int
    registers: int
    shared: int
    ran: list[tuple[list[Step], int, list[Any]]]

    @property
    def resident(self) -> int:
        """Programs of a multiprocessor at a time."""
        by_registers = REGISTERS // (self.threads * -(-self.registers // 8) * 8)
        return max(1, min(by_registers, SHARED_SIZE // (self.shared + 1024), THREADS // self.threads, 32))

    @property
    def waves(self) -> float:
        return self.grid / (SMS * self.resident)

    def busy(self) -> Counter[str]:
        """Clocks that the first program keeps each pipe busy; of L2 the bytes."""
        out: Counter[Any] = Counter()
        for steps, warps, notes in self.ran:
            given = iter(notes)
            for step in steps:
                for pipe, cost in step.cost.items():
                    out[pipe] += cost * warps
                noted = next(given) if step.memory or step.kind in ("passed", "arrive", "spin") else None
                if step.memory:
                    out[step.memory] += size_of(step, noted)
                if step.kind in ("tile", "copy"):
                    out["shared"] += size_of(step, noted) / SHARED
        return out

    @property
    def flops(self) -> float:
        """Of the products of all programs, if they are like the first one."""
        return self.busy()["tensor"] * TENSOR * self.grid

    @property
    def special(self) -> float:
        """Special functions of all programs."""
        return self.busy()["special"] * SPECIAL * self.grid

    def seconds(self, pipe: str) -> float:
        """Least seconds that the whole launch keeps HBM or a pipe busy, if its programs are like the first one."""
        if pipe == "HBM":
            return self.bytes / HBM
        total = self.busy()[pipe] * self.grid
        return total / L2 if pipe == "L2" else total / SMS / CLOCK


class Place:
    """Where one program after the other runs on a multiprocessor; `free` says until when each pipe is taken."""

    def __init__(self, launch: Launch, free: dict[str, float]) -> None:
        self.launch, self.free, self.now = launch, free, 0.0
        self.products_from = self.products_to = 0.0
        self.arrivals: list[float] = []

    def run(self) -> Iterator[None]:
        """One program, a step at a time."""
        self.ready: dict[Any, float] = {}  # register, or mbarrier -> when its data is there
        self.groups = {"copies": [0.0], "products": [0.0]}
        self.written = self.stored = self.products_from = 0.0
        for steps, warps, notes in self.launch.ran:
            given = iter(notes)
            for step in steps:
                self.now = max([self.now, *(self.ready.get(name, 0.0) for name in step.reads)])
                noted = next(given) if step.memory or step.kind in ("passed", "arrive", "spin") else None
                if step.memory:
                    self.access(step, noted)
                else:
                    self.other(step, noted, warps)
                yield
        self.now = max(self.now, self.stored)

    def take(self, pipe: str, clocks: float) -> float:
        """When a pipe is through with this."""
        self.free[pipe] = max(self.free[pipe], self.now) + clocks
        return self.free[pipe]

    def access(self, step: Step, noted: Any) -> None:
        size = size_of(step, noted)
        end = self.take(step.memory, size / PORT if step.memory == "L2" else size)
        arrives = end + (L2_LATENCY if step.memory == "L2" else SHARED_LATENCY)
        if step.kind in ("tile", "copy"):
            self.take("shared", size / SHARED)
        if step.kind == "tile":
            self.ready[noted[1]] = max(self.ready.get(noted[1], 0.0), arrives)
        elif step.kind == "copy":
            self.groups["copies"][-1] = max(self.groups["copies"][-1], arrives)
        elif step.kind.startswith("load"):
            self.ready.update(dict.fromkeys(step.writes, arrives))
        elif step.memory == "shared":
            self.written = end
        else:
            self.stored = end
        self.now += step.cost["issue"]

    def other(self, step: Step, noted: Any, warps: int) -> None:
        kind = step.kind
        if kind == "compute":
            self.now = max([self.now, *(self.take(pipe, cost * warps) for pipe, cost in step.cost.items())])
        elif kind == "product":
            start = max(self.now, self.free["tensor"])
            operands = self.take("shared", step.cost["shared"] * warps)
            self.products_to = self.free["tensor"] = max(start + step.cost["tensor"] * warps, operands)
            self.groups["products"][-1] = self.products_to
            self.products_from = self.products_from or start
        elif kind == "passed":
            self.now = max(self.now, self.ready.get(noted, 0.0))
        elif kind == "barrier":
            self.now = max(self.now, self.written) + BARRIER
        elif kind == "arrive":
            self.now = max(self.now, self.stored)
            self.arrivals.append(self.now)
            self.now += GRID_BARRIER
        elif kind.startswith("commit"):
            self.groups[kind.split()[1]].append(0.0)
        elif kind.startswith("wait"):
            groups = self.groups[kind.split()[2]]
            due = max(groups[: len(groups) - 1 - step.number], default=0.0)
            if due > self.now:
                self.now = due + DRAIN * ("products" in kind)


def simulate(launch: Launch, resident: int, programs: int) -> tuple[float, tuple[float, float, float]]:
    """Clocks of `programs` of a launch on one multiprocessor, `resident` at a time; and of the program that ends first
    the clocks before its products, of them, and after."""
    free = dict.fromkeys(PIPES, 0.0)
    places = [Place(launch, free) for _ in range(min(resident, programs))]
    running = [(place, place.run()) for place in places]
    left, phases, end = programs - len(places), None, 0.0
    while running:
        at = min(range(len(running)), key=lambda n: running[n][0].now)
        place, steps = running[at]
        if next(steps, running) is not running:
            continue
        end = max(end, place.now)
        if phases is None:
            first = place.products_from or place.now
            last = max(place.products_to, first)
            phases = first, last - first, place.now - last
        if left:
            left -= 1
            running[at] = place, place.run()
        else:
            del running[at]
    return end, phases or (0.0, 0.0, 0.0)


def seconds_of(launch: Launch) -> float:
    """Seconds from the start of a launch to its end."""
    each, some = -(-launch.grid // SMS), STEADY * launch.resident
    if each <= some:
        clocks = simulate(launch, launch.resident, each)[0]
    else:
        whole, half = (simulate(launch, launch.resident, n)[0] for n in (some, some // 2))
        clocks = whole + (each - some) / (some - some // 2) * (whole - half)
    return max(clocks / CLOCK, launch.seconds("L2"), launch.seconds("HBM"))
