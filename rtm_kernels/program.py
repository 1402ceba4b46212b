"""A recursion is data: a tuple of steps `latent[dst] <- stack((sum of state) + (sum of inject))`.

Every system of the field is a few lines here, and every executor (reference, per-op Triton,
persistent kernel, CUDA graph, C++) runs any of them. A new model is a new program, never a new
executor. Sums associate from left to right exactly as written, `z + (y + x)`: another association
lets untrained float32 trajectories drift apart by 1e-2 within three ACT steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rtm_kernels.errors import one_of, require

INPUT = "x"
"""Reserved name of the injected input embedding; it is read by steps and never written."""

SEED = "seed"
"""Reserved name beside the latents: whole numbers [B], one per sample, from which an ACT step draws its noise."""

ADAPTER = "adapter_"
"""Prefix of the stacks that are no blocks but a low-rank linear adapter: RINS has one per round."""


@dataclass(frozen=True)
class Step:
    """One update `latent[dst] <- stack((sum of latent[state]) + (sum of latent[inject]))`.

    With `keep` it is an exponential moving average: `latent[dst] <- keep latent[dst] + (1 - keep) stack(...)`.
    `noise` adds normal numbers of that deviation (EqR).
    `grad=False` runs the step under `no_grad`, which is all that the training contracts differ in.
    """

    dst: str
    state: tuple[str, ...]
    inject: tuple[str, ...] = ()
    stack: str = "L_level"
    grad: bool = True
    keep: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Program:
    """The steps of one ACT step, in order, and the latent that the heads read.

    Slicing gives a prefix or a part: `program[:n]` is what the per-prefix equality tests run.
    """

    name: str
    steps: tuple[Step, ...]
    output: str

    def __post_init__(self) -> None:
        require(bool(self.output) and self.output != INPUT, "output", self.output, "a latent other than the input")
        for step in self.steps:
            require(step.dst not in (INPUT, SEED), "dst", step.dst, "the input embedding and the seed are read-only")
            require(len(step.state) > 0, "state", step.state, "at least one latent is summed")
            require(0 <= step.keep < 1, "keep", step.keep, "from 0 to below 1")

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, part: slice) -> Program:
        return replace(self, steps=self.steps[part])

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of every latent of the program, in order of first mention, the input left out."""
        names = [n for s in self.steps for n in (*s.state, *s.inject, s.dst)] + [self.output]
        return tuple(dict.fromkeys(n for n in names if n != INPUT))

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks of blocks that the program applies, in order of first use."""
        return tuple(dict.fromkeys(s.stack for s in self.steps))

    @property
    def carried(self) -> tuple[str, ...]:
        """Latents that the program reads before it writes them: what one ACT step hands to the next."""
        written: set[str] = {INPUT}
        carried: dict[str, None] = {}
        for step in self.steps:
            carried.update(dict.fromkeys(n for n in (*step.state, *step.inject) if n not in written))
            written.add(step.dst)
        return tuple(carried)


def averaged(program: Program, keep: float, noise: float = 0.0) -> Program:
    """`program` with every step an exponential moving average that keeps the share `keep` of the latent before.

    `noise` is the deviation of the normal numbers that every step adds.

    Errors: `InputError` when it writes a latent that has no value before.
    """
    fresh = sorted({step.dst for step in program.steps} - set(program.carried))
    require(not fresh, "keep", keep, f"0 for {program.name}, which does not carry {', '.join(fresh)}")
    return replace(program, steps=tuple(replace(step, keep=keep, noise=noise) for step in program.steps))


def _schedule(H_cycles: int, *cycle: Step) -> tuple[Step, ...]:
    """`cycle` H_cycles times, the last time with grad."""
    return tuple(replace(step, grad=False) for step in cycle) * (H_cycles - 1) + cycle


def trm(H_cycles: int, L_cycles: int) -> Program:
    """TRM (arXiv 2510.04871): H_cycles x [L_cycles x `z <- f(z + (y + x))`; `y <- f(y + z)`], last cycle with grad."""
    inner, outer = Step("z_L", ("z_L",), ("z_H", INPUT)), Step("z_H", ("z_H",), ("z_L",))
    return Program("trm", _schedule(H_cycles, *[inner] * L_cycles, outer), output="z_H")


def trm_singlez(H_cycles: int, L_cycles: int) -> Program:
    """TRM with one latent: H_cycles x [L_cycles x `z <- f(z + x)`; `z <- f(z)`], last cycle with grad."""
    inner, outer = Step("z_L", ("z_L",), (INPUT,)), Step("z_L", ("z_L",))
    return Program("trm_singlez", _schedule(H_cycles, *[inner] * L_cycles, outer), output="z_L")


def trm_hier6(H_cycles: int, L_cycles: int) -> Program:
    """TRM with six low-level latents: `z_i <- f(sum z + (y + x))` for i = 1..6, then `y <- f(y + sum z)`."""
    require(L_cycles <= 6, "L_cycles", L_cycles, "trm_hier6 has six low-level latents, one per L cycle")
    z = tuple(f"z_L{i}" for i in range(1, 7))
    inner = [Step(name, z, ("z_H", INPUT)) for name in z[:L_cycles]]
    # the official code adds the *sum* of the z to y, so the sum is what is injected
    return Program("trm_hier6", _schedule(H_cycles, *inner, Step("z_H", ("z_H",), z)), output="z_H")


def hrm(H_cycles: int, L_cycles: int) -> Program:
    """HRM (arXiv 2506.21734): the TRM schedule with two stacks; only the last two steps have grad."""
    schedule = trm(H_cycles, L_cycles).steps
    last = len(schedule) - 2
    steps = tuple(
        replace(s, stack="H_level" if s.dst == "z_H" else "L_level", grad=i >= last) for i, s in enumerate(schedule)
    )
    return Program("hrm", steps, output="z_H")


def rsm(H_cycles: int, L_cycles: int, chained: bool = False) -> Program:
    """RSM (arXiv 2603.15641): the TRM schedule; grad in the last cycle, plus the outer update before it if chained."""
    steps = [replace(s, stack="core") for s in trm(H_cycles, L_cycles).steps]
    if chained and H_cycles >= 2:
        transition = (H_cycles - 1) * (L_cycles + 1) - 1
        steps[transition] = replace(steps[transition], grad=True)
    return Program("rsm", tuple(steps), output="z_H")


def rins(rounds: int, adapters: bool = False) -> Program:
    """RINS (arXiv 2502.07503): signature A^r B, `h <- A(h)` r times from the input, then `h <- B(h)` once.

    With `adapters` round i is followed by `h <- adapter_i(h)`.
    """
    steps = []
    for i in range(1, rounds + 1):
        steps += [Step("h", ("h" if i > 1 else INPUT,), stack="A")]
        steps += [Step("h", ("h",), stack=f"{ADAPTER}{i}")] if adapters else []
    steps += [Step("h", ("h",), stack="B")]
    return Program("rins", tuple(steps), output="h")


def rtm(cycles: int = 1) -> Program:
    """RTM (working draft, Oct 2025): `H <- f(H; x)`, `cycles` times per ACT step, every step with grad."""
    return Program("rtm", (Step("z_H", ("z_H",), (INPUT,), stack="core"),) * cycles, output="z_H")


def urm(H_cycles: int, L_cycles: int) -> Program:
    """URM (arXiv 2512.14693): one latent, `h <- f(h + x)` H_cycles x L_cycles times, the last L_cycles with grad."""
    step = Step("current_hidden", ("current_hidden",), (INPUT,), stack="layers")
    return Program("urm", _schedule(H_cycles, *[step] * L_cycles), output="current_hidden")


def eqr(H_cycles: int, L_cycles: int) -> Program:
    """EqR (arXiv 2605.21488): the TRM schedule, relaxed by `averaged`, from random latents."""
    return replace(trm(H_cycles, L_cycles), name="eqr")


def transformer() -> Program:
    """The transformer baseline of the TRM repository: `y <- f(y + x)` once per ACT step."""
    return Program("transformer", (Step("z_H", ("z_H",), (INPUT,), stack="H_level"),), output="z_H")


BUILDERS: dict[str, Callable[[int, int], Program]] = {
    "trm": trm,
    "trm_singlez": trm_singlez,
    "trm_hier6": trm_hier6,
    "hrm": hrm,
    "rsm": rsm,
    "rins": lambda H_cycles, L_cycles: rins(H_cycles),
    "rtm": lambda H_cycles, L_cycles: rtm(H_cycles),
    "urm": urm,
    "eqr": eqr,
    "transformer": lambda H_cycles, L_cycles: transformer(),
}
"""Architecture name -> builder from (H_cycles, L_cycles); RINS and RTM read H_cycles as their round count."""


def build(arch: str, H_cycles: int, L_cycles: int) -> Program:
    """The program of a named architecture.

    Errors: `InputError` for an unknown name or a cycle count below 1.
    """
    one_of("arch", arch, BUILDERS)
    require(H_cycles >= 1, "H_cycles", H_cycles, "at least 1")
    require(L_cycles >= 1, "L_cycles", L_cycles, "at least 1")
    return BUILDERS[arch](H_cycles, L_cycles)
