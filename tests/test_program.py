"""Programs: each equals the loops of its paper written out by hand, in values and in gradients, bit for bit."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.errors import InputError
from rtm_kernels.program import BUILDERS, Program, Step
from rtm_kernels.recursion.reference import run

CYCLES = [(1, 1), (2, 1), (3, 2), (2, 6)]


class Weights:
    """Random float32 stacks `tanh((state + sum of injection) W)` and latents, which accept the executor's calls."""

    def __init__(self, program: Program) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.x = draw(2, 3, 4).requires_grad_()
        self.weights = {name: draw(4, 4).requires_grad_() for name in program.stacks}
        self.latents = {name: draw(2, 3, 4) for name in program.latents}

    def stack(self, name: str):
        def apply(state: Tensor, injection: tuple[Tensor, ...] = ()) -> Tensor:
            if injection:
                total = injection[0]
                for term in injection[1:]:
                    total = total + term
                state = state + total
            return torch.tanh(state @ self.weights[name])

        return apply

    def stacks(self):
        return {name: self.stack(name) for name in self.weights}

    def gradients(self, output: Tensor) -> list[Tensor | None]:
        leaves = [self.x, *self.weights.values()]
        return list(torch.autograd.grad(output.square().sum(), leaves, allow_unused=True, retain_graph=True))


def no_grad_unless(condition: bool):
    return nullcontext() if condition else torch.no_grad()


def trm_loop(w: Weights, H: int, L: int) -> Tensor:
    f, y, z, x = w.stack("L_level"), w.latents["z_H"], w.latents["z_L"], w.x
    with torch.no_grad():
        for _ in range(H - 1):
            for _ in range(L):
                z = f(z + (y + x))
            y = f(y + z)
    for _ in range(L):
        z = f(z + (y + x))
    return f(y + z)


def singlez_loop(w: Weights, H: int, L: int) -> Tensor:
    f, z, x = w.stack("L_level"), w.latents["z_L"], w.x
    for cycle in range(H):
        with no_grad_unless(cycle == H - 1):
            for _ in range(L):
                z = f(z + x)
            z = f(z)
    return z


def hier6_loop(w: Weights, H: int, L: int) -> Tensor:
    f, y, x = w.stack("L_level"), w.latents["z_H"], w.x
    z = [w.latents[f"z_L{i}"] for i in range(1, 7)]

    def total() -> Tensor:
        return z[0] + z[1] + z[2] + z[3] + z[4] + z[5]

    for cycle in range(H):
        with no_grad_unless(cycle == H - 1):
            for i in range(L):
                z[i] = f(total() + (y + x))
            y = f(y + total())
    return y


def hrm_loop(w: Weights, H: int, L: int) -> Tensor:
    low, high, y, z, x = w.stack("L_level"), w.stack("H_level"), w.latents["z_H"], w.latents["z_L"], w.x
    with torch.no_grad():
        for cycle in range(H):
            for step in range(L):
                if not (cycle == H - 1 and step == L - 1):
                    z = low(z + (y + x))
            if cycle < H - 1:
                y = high(y + z)
    z = low(z + (y + x))
    return high(y + z)


def rsm_loop(w: Weights, H: int, L: int, chained: bool = False) -> Tensor:
    f, y, z, x = w.stack("core"), w.latents["z_H"], w.latents["z_L"], w.x
    for cycle in range(H):
        last, before = cycle == H - 1, cycle == H - 2
        if not (last and chained):
            y, z = y.detach(), z.detach()
        with no_grad_unless(last):
            for _ in range(L):
                z = f(z + (y + x))
        with no_grad_unless(last or (before and chained)):
            y = f(y + z)
    return y


def rins_loop(w: Weights, H: int, L: int) -> Tensor:
    h = w.x
    for _ in range(H):
        h = w.stack("A")(h)
    return w.stack("B")(h)


def rtm_loop(w: Weights, H: int, L: int) -> Tensor:
    h = w.latents["z_H"]
    for _ in range(H):
        h = w.stack("core")(h + w.x)
    return h


def transformer_loop(w: Weights, H: int, L: int) -> Tensor:
    return w.stack("H_level")(w.latents["z_H"] + w.x)


LOOPS = {
    "trm": trm_loop, "trm_singlez": singlez_loop, "trm_hier6": hier6_loop, "hrm": hrm_loop, "rsm": rsm_loop,
    "rsm_chained": partial(rsm_loop, chained=True), "rins": rins_loop, "rtm": rtm_loop, "transformer": transformer_loop,
}  # fmt: skip


@pytest.mark.parametrize("cycles", CYCLES)
@pytest.mark.parametrize("arch", LOOPS)
def test_program_equals_the_loops(arch: str, cycles: tuple[int, int]) -> None:
    chained = arch == "rsm_chained"
    program = programs.rsm(*cycles, chained=True) if chained else programs.build(arch, *cycles)
    w = Weights(program)
    got = run(program, w.latents, w.x, w.stacks())[program.output]
    expected = LOOPS[arch](w, *cycles)
    assert torch.equal(got, expected)
    for a, b in zip(w.gradients(got), w.gradients(expected), strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))


def test_carried_counts_reads_before_writes() -> None:
    steps = (Step("b", ("x",)), Step("a", ("b", "a"), ("x", "c")), Step("c", ("a",)))
    assert Program("mine", steps, output="c").carried == ("a", "c")
    assert Program("mine", steps[:1], output="b").carried == ()


@given(st.sampled_from(sorted(BUILDERS)), st.integers(1, 3), st.integers(1, 4), st.data())
def test_any_prefix_and_its_rest_make_the_whole(arch: str, H: int, L: int, data) -> None:
    program = programs.build(arch, H, L)
    cut = data.draw(st.integers(0, len(program)))
    w = Weights(program)
    with torch.no_grad():
        whole = run(program, w.latents, w.x, w.stacks())
        middle = run(program[:cut], w.latents, w.x, w.stacks())
        halves = run(program[cut:], middle, w.x, w.stacks())
    assert whole.keys() == halves.keys() and all(torch.equal(whole[key], halves[key]) for key in whole)
    untouched = set(w.latents) - {step.dst for step in program.steps[:cut]}
    assert all(middle[name] is w.latents[name] for name in untouched)
    assert len(program[:cut]) == cut and program[:cut].output == program.output


def test_nothing_is_written_in_place_and_no_grad_outside_wins() -> None:
    program = programs.trm(2, 2)
    w = Weights(program)
    copies = {name: value.clone() for name, value in w.latents.items()}
    with torch.no_grad():
        assert not run(program, w.latents, w.x, w.stacks())["z_H"].requires_grad
    assert torch.is_grad_enabled()
    assert all(torch.equal(w.latents[name], value) for name, value in copies.items())


def test_refusals() -> None:
    for wrong, message in (
        (lambda: programs.build("gpt", 1, 1), "arch='gpt' is not allowed: expected one of trm"),
        (lambda: programs.build("trm", 0, 1), "H_cycles=0 is not allowed: at least 1"),
        (lambda: programs.build("rsm", 1, 0), "L_cycles=0 is not allowed: at least 1"),
        (lambda: programs.build("trm_hier6", 1, 7), "L_cycles=7 is not allowed: trm_hier6 has six"),
        (lambda: Program("p", (Step("x", ("z",)),), output="z"), "dst='x' is not allowed: the input embedding"),
        (lambda: Program("p", (Step("z", ()),), output="z"), r"state=\(\) is not allowed"),
        (lambda: Program("p", (), output="x"), "output='x' is not allowed"),
        (lambda: Program("p", (), output=""), "output='' is not allowed"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
