"""Products in bfloat16 and int8: the arithmetic against the same rounding in PyTorch, and the promises of float32."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels import RecursiveReasoner, Solver
from rtm_kernels import program as programs
from rtm_kernels.data.examples import example_puzzles
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.recursion import native, reference
from tests.recursion.native_support import (
    ATTENTION,
    OPTIONS,
    PROGRAMS,
    REDUCED,
    callables,
    double,
    make_latents,
    make_stacks,
    one_thread_without_autograd,
    relative_error,
    tables,
    weights,
)

__all__ = ["one_thread_without_autograd"]
pytestmark = pytest.mark.usefixtures("one_thread_without_autograd")

needs_instructions = pytest.mark.skipif(not REDUCED, reason=f"{native.why_not_precision('int8')}")
BLOCK = 512  # elements of a row of a down projection that share a scale in the channel mix (kInnerBlock)
ALLOWED = {"bfloat16": 0.02, "int8": 0.1}


def rounded(precision: str) -> Callable[[Tensor], Tensor]:
    """What a row [..., K] is multiplied as."""

    def to_int8(x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        return torch.round(x / scale) * scale

    return to_int8 if precision == "int8" else lambda x: x.bfloat16().to(x.dtype)


def product(x: Tensor, weight: Tensor, precision: str, block: int) -> Tensor:
    """x [..., K] and weight [N, K] rounded in blocks of K, multiplied in float64."""
    to = rounded(precision)
    parts = zip(x.split(block, -1), weight.split(block, -1), strict=True)
    return sum((to(a) @ to(b).T for a, b in parts), torch.zeros(()))


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, precision: str, block: int) -> Tensor:
    gate, up = product(x, gate_up, precision, x.shape[-1]).chunk(2, -1)
    return product(F.silu(gate) * up, down, precision, block)


def rms_norm(x: Tensor, dim: int) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-5)


def emulated(stack: Any, h: Tensor, precision: str) -> Tensor:
    """One MLP stack in float64 with the products of `precision`."""
    for block in stack.layers:
        w = {k: v.double() for k, v in block.state_dict().items()}
        t = h.transpose(1, 2)
        mixed = swiglu(t, w["mlp_t.gate_up_proj.weight"], w["mlp_t.down_proj.weight"], precision, 1 << 30)
        h = rms_norm(h + mixed.transpose(1, 2), 1 if block.norm_axis == "sequence" else 2)
        h = rms_norm(h + swiglu(h, w["mlp.gate_up_proj.weight"], w["mlp.down_proj.weight"], precision, BLOCK), 2)
    return h


@needs_instructions
@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
@pytest.mark.parametrize("L, D", [(7, 24), (81, 128), (97, 100), (131, 33), (33, 520)])
def test_products_are_those_of_the_rounded_operands(L: int, D: int, norm_axis: str, precision: str) -> None:
    program = programs.trm(1, 1)[:1]
    stacks = make_stacks(program, L, D, norm_axis=norm_axis, layers=1, seed=L + D)
    latents, x = make_latents(programs.trm(1, 1), 3, L, D)
    got = native.NativeExecutor(program, weights(stacks), precision=precision).run(latents, x)["z_L"]
    h = latents["z_L"].double() + (latents["z_H"].double() + x.double())
    expected = emulated(stacks["L_level"], h, precision)
    exact = reference.run(
        program, double(latents), x.double(), callables({"L_level": copy.deepcopy(stacks["L_level"]).double()})
    )["z_L"]
    # what is left are the values that float32 sums and the short silu round to the other neighbour
    assert relative_error(got, expected) < 0.5 * relative_error(expected, exact)
    assert relative_error(got, exact) < ALLOWED[precision]


@needs_instructions
@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("name", PROGRAMS)
@OPTIONS
def test_every_prefix_stays_close(name: str, options: dict[str, Any], precision: str) -> None:
    program = PROGRAMS[name]
    stacks = make_stacks(program, 17, 48, **options)
    latents, x = make_latents(program, 2, 17, 48)
    cos_sin = tables(stacks, 17, rope=options is ATTENTION)
    executor = native.NativeExecutor(program, weights(stacks, cos_sin), precision=precision)
    for n in range(len(program)):  # single steps from equal states
        expected = reference.run(program[n : n + 1], latents, x, callables(stacks, cos_sin))
        got = executor.run(latents, x, begin=n, end=n + 1)
        for latent in expected:
            assert relative_error(got[latent], expected[latent]) < ALLOWED[precision], (n, latent)
        latents = expected
    assert torch.equal(executor.run(latents, x)[program.output], executor.run(latents, x)[program.output])


@needs_instructions
@pytest.mark.parametrize("precision", REDUCED)
def test_weights_and_inputs_of_any_size(precision: str) -> None:
    L, D = 9, 32
    program = programs.trm(1, 1)
    stacks = make_stacks(program, L, D)
    latents, x = make_latents(program, 2, L, D)
    nothing = {name: torch.zeros_like(value) for name, value in latents.items()}
    executor = native.NativeExecutor(program, weights(stacks), precision=precision)
    assert all(not value.any() for value in executor.run(nothing, torch.zeros_like(x)).values())
    for size in (1e-38, 1e-20, 1e15):
        scaled = {name: value * size for name, value in latents.items()}
        got = executor.run(scaled, x * size)
        assert all(torch.isfinite(value).all() for value in got.values()), size
    with torch.no_grad():
        stacks["L_level"].layers[0].mlp.gate_up_proj.weight[3, 5] = math.nan
    broken = native.NativeExecutor(program, weights(stacks), precision=precision).run(latents, x)
    assert all(not torch.isfinite(value).any() for value in broken.values())


@needs_instructions
@pytest.mark.parametrize("precision", REDUCED)
def test_the_bundled_model_gives_the_same_answers(precision: str) -> None:
    puzzles = example_puzzles()[:40]
    model = RecursiveReasoner.from_pretrained("sudoku")
    expected = Solver(model).solve(puzzles)
    solver = Solver(model, precision=precision)
    assert solver.executor.name == f"native-{precision}"
    answers = {s.input: s.answer for s in solver.solve(puzzles)}
    solved = [s for s in expected if s.status == "verified"]
    assert len(solved) > 30
    assert all(answers[s.input] == s.answer for s in solved)


def test_a_precision_that_cannot_run_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RecursiveReasoner.from_pretrained("sudoku")
    with pytest.raises(InputError, match=r"precision='int4' is not allowed: .*int8"):
        Solver(model, precision="int4")
    with pytest.raises(InputError, match="executor='reference' is not allowed: auto or native with precision='int8'"):
        Solver(model, executor="reference", precision="int8")
    if native.why_not() is not None:
        return
    monkeypatch.setattr(native, "isas", lambda precision="float32": ("portable",) if precision == "float32" else ())
    with pytest.raises(BackendUnavailable, match="AVX512-VNNI instructions, which this processor lacks"):
        Solver(model, precision="int8")
    with pytest.raises(BackendUnavailable, match="AVX512-BF16"):
        native.NativeExecutor(programs.trm(1, 1), {}, precision="bfloat16")
