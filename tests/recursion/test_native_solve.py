"""The native CPU executor with its heads: ACT steps until every sample halts, and the bits of the heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.ops.halting import reference as halting
from rtm_kernels.recursion import native
from rtm_kernels.recursion.native_weights import HeadWeights
from tests.recursion.native_support import (
    assert_each_as_alone,
    assert_within_budget,
    enough,
    make_latents,
    make_stacks,
    needs_native,
    one_thread_without_autograd,
    reference_and_truth,
    sliced,
    weights,
)

__all__ = ["one_thread_without_autograd"]

pytestmark = pytest.mark.usefixtures("one_thread_without_autograd")


def loop(
    executor: native.NativeExecutor, latents: dict[str, Tensor], x: Tensor, head: tuple[Tensor, Tensor], policy: str,
    pool: str, min_steps: int, max_steps: int, tolerance: float,
) -> tuple[dict[str, Tensor], int]:  # fmt: skip
    """ACT steps of one sample under `ops.halting`."""
    state = halting.initial_state(1)
    while bool(state.active):
        previous = latents["z_H"]
        latents = executor.run(latents, x)
        logits = halting.halting_logits(latents["z_H"], *head, pool=pool)
        quiet = halting.settled(latents["z_H"], previous, tolerance)
        state = halting.halting_update(
            state, policy, logits=logits, quiet=quiet, max_steps=max_steps, min_steps=min_steps
        )
    return latents, int(state.steps)


@needs_native
@pytest.mark.parametrize("pool", ["first", "mean"])
@pytest.mark.parametrize("policy", native.POLICIES)
def test_solve_takes_the_steps_of_the_halting_reference(policy: str, pool: str) -> None:
    L, D, N = 13, 32, 11
    program = programs.trm(1, 2)
    stacks = make_stacks(program, L, D)
    latents, x = make_latents(program, N, L, D)
    head = (torch.randn(2, D) * (0.4 if pool == "first" else 2.0), torch.tensor([-1.0, -1.0]))
    limits = {"min_steps": 2, "max_steps": 9, "tolerance": 0.9}
    tokens = torch.randn(5, D)
    heads = HeadWeights(tokens=tokens, halting=head, prefix=2)
    executor = native.NativeExecutor(program, weights(stacks), heads)
    result = executor.solve(latents, x, policy=policy, pool=pool, **limits)
    for i in range(N):
        expected, steps = loop(executor, sliced(latents, i), x[i : i + 1], head, policy, pool, **limits)
        assert result.steps[i] == steps
        assert result.reasons[i] in (("halted", "max_steps") if steps == 9 else ("halted",))
        logits = halting.halting_logits(expected["z_H"], *head, pool="token")[0]
        torch.testing.assert_close(result.last.halting[i], logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result.last.logits[i], (expected["z_H"] @ tokens.T)[0, 2:], rtol=1e-5, atol=1e-5)
        for name in program.latents:
            assert torch.equal(result.last.latents[name][i], expected[name][0])
    if policy != "fixed":
        assert len(set(result.steps.tolist())) > 1


@needs_native
def test_solve_stops_a_sample_that_is_not_finite() -> None:
    program = programs.trm(1, 2)
    stacks = make_stacks(program, 9, 32)
    latents, x = make_latents(program, 3, 9, 32)
    executor = native.NativeExecutor(program, weights(stacks))
    clean = executor.solve(latents, x, policy="fixed", max_steps=3)
    x[1, 0, 0] = float("nan")
    result = executor.solve(latents, x, policy="fixed", max_steps=3)
    assert result.steps.tolist() == [3, 1, 3]
    assert result.reasons == ("max_steps", "non_finite", "max_steps")
    assert torch.equal(result.last.latents["z_H"][0], clean.last.latents["z_H"][0])
    assert result.last.logits.shape == (3, 9, 0) and result.last.halting.shape == (3, 9, 0)


@needs_native
def test_a_head_that_is_not_finite_stops_its_sample_alone() -> None:
    program = programs.trm(1, 2)
    stacks = weights(make_stacks(program, 1, 32))
    latents, x = make_latents(program, 9, 1, 32)
    y = native.NativeExecutor(program, stacks).run(latents, x)["z_H"]
    along = (y[:, 0] @ y[4, 0]).sort().values
    assert along[-1] > along[-2] > 0
    heads = HeadWeights(tokens=y[4] * (torch.finfo(torch.float32).max / along[-2:].mean()))
    result = native.NativeExecutor(program, stacks, heads).solve(latents, x, policy="fixed", max_steps=1)
    assert result.reasons == ("max_steps",) * 4 + ("non_finite",) + ("max_steps",) * 4
    assert torch.isfinite(result.last.logits).flatten().tolist() == [i != 4 for i in range(9)]
    assert result.last.finite.tolist() == [i != 4 for i in range(9)]


@needs_native
@pytest.mark.parametrize("isa", native.isas() if native.available() else [])
@pytest.mark.parametrize(
    "L, D, V, K, prefix", [(1, 1, 1, 0, 0), (7, 24, 11, 2, 0), (97, 100, 33, 2, 16), (131, 40, 70, 1, 3)]
)
def test_heads_are_within_the_error_budget(L: int, D: int, V: int, K: int, prefix: int, isa: str) -> None:
    program = programs.trm(1, 1)
    stacks = make_stacks(program, L, D, seed=L + D)
    latents, x = make_latents(program, enough(L, D), L, D)
    tokens, weight, bias = torch.randn(V, D), torch.randn(K, D), torch.randn(K)
    heads = HeadWeights(tokens=tokens, halting=(weight, bias), prefix=prefix)
    found = native.NativeExecutor(program, weights(stacks), heads, isa=isa).step(latents, x)
    *_, (float32, truth) = reference_and_truth(program, stacks, latents, x)
    assert_within_budget(found.latents, float32, truth)

    def read(y: Tensor) -> dict[str, Tensor]:
        return {
            "logits": (y @ tokens.T.to(y))[:, prefix:],
            **({"halting": y @ weight.T.to(y) + bias.to(y)} if K else {}),
        }

    assert torch.equal(found.answers, found.logits.argmax(-1).int()) and found.finite.tolist() == [True] * len(x)
    change = halting.relative_change(found.latents["z_H"].double(), latents["z_H"].double())
    torch.testing.assert_close(found.change, change.float(), rtol=1e-6, atol=0)
    got = {"logits": found.logits, **({"halting": found.halting} if K else {})}
    assert found.halting.shape == (len(x), L, K)
    assert_within_budget(got, read(float32["z_H"]), read(truth["z_H"]))


@needs_native
@pytest.mark.parametrize("precision", [p for p in native.PRECISIONS if native.why_not_precision(p) is None])
def test_bits_of_the_heads_depend_on_neither_batch_nor_threads(precision: str) -> None:
    program = programs.trm(1, 1)
    latents, x = make_latents(program, 65, 101, 40)
    heads = HeadWeights(tokens=torch.randn(11, 40), halting=(torch.randn(2, 40), torch.randn(2)), prefix=4)
    stack_weights = weights(make_stacks(program, 101, 40))
    executor = native.NativeExecutor(program, stack_weights, heads, precision=precision)

    def heads_of(latents: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        step = executor.step(latents, x)
        assert step.halting is not None and step.change is not None
        return {"logits": step.logits, "halting": step.halting, "change": step.change}

    assert_each_as_alone(heads_of, latents, x)


@needs_native
@pytest.mark.parametrize("precision", [p for p in native.PRECISIONS if native.why_not_precision(p) is None])
def test_runs_of_16_steps_halt_alike_in_any_batch_and_with_any_number_of_threads(precision: str) -> None:
    program = programs.trm(1, 1)
    latents, x = make_latents(program, 65, 9, 32)
    heads = HeadWeights(tokens=torch.randn(7, 32), halting=(torch.randn(2, 32) * 0.3, torch.tensor([-2.0, 0.0])))
    executor = native.NativeExecutor(program, weights(make_stacks(program, 9, 32)), heads, precision=precision)
    steps = executor.solve(latents, x, policy="q", max_steps=16).steps
    assert int(steps.max()) == 16 and len(set(steps.tolist())) > 3

    def solved(latents: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        found = executor.solve(latents, x, policy="q", max_steps=16)
        last = found.last
        return {**last.latents, "logits": last.logits, "answers": last.answers, "steps": found.steps}

    assert_each_as_alone(solved, latents, x)
