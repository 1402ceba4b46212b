"""Halting: the formulas of every policy, the in-place kernel against them, the registered op, bits and errors."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.impl import launches
from rtm_kernels.ops.halting import reference
from rtm_kernels.ops.halting.api import HaltingStep, halting_step_
from rtm_kernels.ops.halting.reference import POLICIES, HaltingState, halting_update, initial_state


def state_at(batch: int, units: int = 1, seed: int = 0) -> HaltingState:
    """A state as it may be in the middle of a run: about half of the units active, some mass accumulated."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 5, (batch, units), generator=g, dtype=torch.int32)
    active = torch.rand(batch, units, generator=g) < 0.6
    return HaltingState(steps, active, *(torch.rand(batch, units, generator=g) for _ in range(3)))


def copy_of(state: HaltingState) -> HaltingState:
    return HaltingState(*(getattr(state, field.name).clone() for field in fields(state)))


def arguments(policy: str, pool: str, batch: int, length: int, width: int, seed: int = 0) -> dict[str, Any]:
    """Random arguments of `halting_step_`, scaled so that about half of the samples want to halt."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(batch, length, width, generator=g)
    found: dict[str, Any] = {"y": y, "policy": policy, "pool": pool, "max_steps": 5, "min_steps": 2}
    if policy == "settle":
        found["previous"] = y + 0.1 * torch.rand(batch, 1, 1, generator=g) * torch.randn(y.shape, generator=g)
        found["tol"] = 0.05
        found["answer"] = torch.randint(0, 2, (batch, 3), generator=g)
        found["previous_answer"] = torch.randint(0, 2, (batch, 3), generator=g)
    elif policy != "fixed":
        found["weight"] = torch.randn(2, width, generator=g) / width**0.5 * (length**0.5 if pool == "mean" else 1)
        found["bias"] = torch.randn(2, generator=g) * 0.1
    return found


def pools(policy: str) -> tuple[str, ...]:
    return ("token",) if policy == "cumulative_token" else ("first", "mean")


CASES = [(policy, pool) for policy in POLICIES for pool in pools(policy) if policy != "settle" or pool == "first"]


@pytest.mark.parametrize(
    ("policy", "logits", "wants"),
    [("q", [0.1, -5.0], True), ("q", [0.0, -5.0], False), ("q_continue", [-3.0, -4.0], True),
     ("q_continue", [2.0, 2.0], False), ("fixed", [9.0, 0.0], False)],
)  # fmt: skip
def test_policies_without_memory(policy: str, logits: list[float], wants: bool) -> None:
    state = halting_update(initial_state(1), policy, logits=torch.tensor([[logits]]), max_steps=9)
    assert (state.active.item(), state.steps.item(), state.weight.item()) == (not wants, 1, 1.0)


def test_max_steps_wins_over_min_steps_and_idle_units_do_not_move() -> None:
    state = initial_state(2)
    state.active[1] = False
    for step in range(1, 4):
        state = halting_update(state, "q", logits=torch.full((2, 1, 2), 5.0), max_steps=3, min_steps=7)
        assert state.active.tolist() == [[step < 3], [False]]
        assert state.steps.tolist() == [[step], [0]] and state.weight.tolist() == [[1.0], [0.0]]


def test_min_steps_of_each_sample() -> None:
    state = initial_state(3)
    for step in range(1, 4):
        state = halting_update(state, "q", logits=torch.ones(3, 1, 2), max_steps=9, min_steps=torch.tensor([1, 2, 3]))
        assert state.active.flatten().tolist() == [step < least for least in (1, 2, 3)]


def test_cumulative_weights_sum_to_one_and_the_remainder_closes_them() -> None:
    p = torch.tensor([[0.4, 0.3, 0.9, 0.9], [0.6, 0.5, 0.9, 0.9], [0.01, 0.01, 0.01, 0.01]], dtype=torch.float64)
    logits = torch.logit(p).requires_grad_()
    state, total = initial_state(3), torch.zeros(3, 1, dtype=torch.float64)
    for step in range(4):
        state = halting_update(state, "cumulative_sequence", logits=logits[:, step].reshape(3, 1, 1), max_steps=4)
        total = total + state.weight
    torch.testing.assert_close(total.detach(), torch.ones_like(total))
    assert state.steps.flatten().tolist() == [3, 2, 4]
    torch.testing.assert_close(state.remainder.flatten(), torch.tensor([0.3, 0.4, 0.97], dtype=torch.float64))
    (d_logits,) = torch.autograd.grad(state.remainder.sum(), logits)
    torch.testing.assert_close(d_logits[0, :2], (-p * (1 - p))[0, :2])
    assert (d_logits[0, 2:] == 0).all()


def test_each_token_halts_on_its_own_and_the_sample_with_its_last_token() -> None:
    logits = torch.tensor([[[9.0], [0.0], [-9.0]]])
    state = initial_state(1, units=3)
    seen = []
    for _ in range(3):
        state = halting_update(state, "cumulative_token", logits=logits, max_steps=3)
        seen.append((state.active.sum().item(), state.active_samples.item()))
    assert seen == [(3, True), (1, True), (0, False)]
    assert state.steps.tolist() == [[2, 2, 3]] and state.sample_steps.tolist() == [3]


def test_settling_by_change_or_by_answer() -> None:
    y = torch.ones(3, 2, 2)
    previous = y * torch.tensor([0.5, 0.999, 0.5]).view(3, 1, 1)
    answers = torch.tensor([[1, 2], [1, 2], [3, 3]]), torch.tensor([[1, 0], [1, 0], [3, 3]])
    torch.testing.assert_close(reference.relative_change(y, previous), torch.tensor([0.5, 0.001, 0.5]))
    assert reference.settled(y, previous, 0.01, *answers).flatten().tolist() == [False, True, True]
    assert not reference.settled(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), 0.5).item()


def test_reset_starts_the_chosen_samples_again() -> None:
    state = state_at(4, 3).reset(torch.tensor([True, False, True, False]))
    fresh, kept = initial_state(4, 3), state_at(4, 3)
    for field in fields(state):
        found = getattr(state, field.name)
        assert torch.equal(found[::2], getattr(fresh, field.name)[::2])
        assert torch.equal(found[1::2], getattr(kept, field.name)[1::2])


@pytest.mark.parametrize(("policy", "pool"), CASES)
@pytest.mark.parametrize(("batch", "length", "width"), [(70, 5, 24), (1, 1, 7), (3, 17, 130)])
def test_kernel_equals_the_reference(policy: str, pool: str, batch: int, length: int, width: int) -> None:
    pytest.importorskip("triton")
    given = arguments(policy, pool, batch, length, width)
    before = state_at(batch, length if pool == "token" else 1)
    mine, right = copy_of(before), copy_of(before)
    launches.clear()
    got = halting_step_(mine, **given, impl="triton")
    assert launches == {"halting.step": 1}
    wanted = halting_step_(right, **given, impl="reference")
    torch.testing.assert_close(got.logits, wanted.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.order, wanted.order) and torch.equal(got.still_active, wanted.still_active)
    for field in fields(mine):
        a, b = getattr(mine, field.name), getattr(right, field.name)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    changed = before.active & ~mine.active
    assert policy == "fixed" or batch < 9 or (changed.any() and not changed[before.active].all())


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_order_is_a_stable_partition(impl: str) -> None:
    pytest.importorskip("triton")
    state = state_at(600)
    result = halting_step_(state, torch.zeros(600, 1, 4), policy="fixed", max_steps=4, impl=impl)
    active = state.active_samples
    everything = torch.arange(600, dtype=torch.int32)
    assert result.still_active.tolist() == [active.sum()]
    assert torch.equal(result.order, torch.cat((everything[active], everything[~active])))


@pytest.mark.parametrize("batch", [0, 1])
def test_empty_and_single_batches(batch: int) -> None:
    pytest.importorskip("triton")
    for impl in ("triton", "reference"):
        result = halting_step_(initial_state(batch), torch.zeros(batch, 3, 4), policy="fixed", max_steps=1, impl=impl)
        assert result.order.tolist() == list(range(batch)) and result.still_active.tolist() == [0]


def test_a_nan_never_halts_early_and_touches_no_other_sample() -> None:
    pytest.importorskip("triton")
    for policy, pool in CASES:
        given = arguments(policy, pool, 6, 5, 8)
        clean, dirty = (copy_of(state_at(6, 5 if pool == "token" else 1)) for _ in range(2))
        for state in (clean, dirty):
            state.active[2], state.steps[2] = True, 2
        halting_step_(clean, **given, impl="triton")
        given["y"][2] = float("nan")
        given.pop("answer", None), given.pop("previous_answer", None)
        if policy == "settle":
            clean = copy_of(dirty)
            halting_step_(clean, **{**given, "y": given["y"].nan_to_num(0)}, impl="triton")
        halting_step_(dirty, **given, impl="triton")
        others = torch.tensor([0, 1, 3, 4, 5])
        assert all(torch.equal(getattr(clean, f.name)[others], getattr(dirty, f.name)[others]) for f in fields(clean))
        assert dirty.active[2].all() and (dirty.steps[2] == 3).all()


def test_a_sample_does_not_depend_on_its_batch() -> None:
    pytest.importorskip("triton")
    for policy, pool in CASES:
        given = arguments(policy, pool, 40, 5, 24)
        whole = state_at(40, 5 if pool == "token" else 1)
        part = HaltingState(*(getattr(whole, f.name)[7:20].clone() for f in fields(whole)))
        all_logits = halting_step_(whole, **given, impl="triton").logits
        sliced = {k: v[7:20] if isinstance(v, Tensor) and k not in ("weight", "bias") else v for k, v in given.items()}
        logits = halting_step_(part, **sliced, impl="triton").logits
        assert torch.equal(logits, all_logits[7:20])
        assert all(torch.equal(getattr(whole, f.name)[7:20], getattr(part, f.name)) for f in fields(whole))


def test_latents_in_half_precision_and_of_any_strides() -> None:
    pytest.importorskip("triton")
    given = arguments("q_continue", "first", 9, 4, 24)
    given["y"] = given["y"].half().transpose(0, 1).contiguous().transpose(0, 1)
    mine, right = state_at(9), state_at(9)
    got, wanted = (halting_step_(s, **given, impl=i) for s, i in ((mine, "triton"), (right, "reference")))
    torch.testing.assert_close(got.logits, wanted.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.active, right.active)


@pytest.mark.parametrize(("policy", "pool"), [("q", "first"), ("cumulative_token", "token"), ("settle", "first")])
def test_opcheck_and_compile(policy: str, pool: str) -> None:
    pytest.importorskip("triton")
    given = arguments(policy, pool, 3, 2, 8)
    state = state_at(3, 2 if pool == "token" else 1)

    def call(state: HaltingState, y: Tensor) -> HaltingStep:
        return halting_step_(state, **{**given, "y": y}, impl="triton")

    eager, compiled = copy_of(state), copy_of(state)
    wanted = call(eager, given["y"])
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(compiled, given["y"])
    assert all(map(torch.equal, got, wanted))
    assert all(torch.equal(getattr(eager, f.name), getattr(compiled, f.name)) for f in fields(eager))
    tensors = [given.get(n) for n in ("weight", "bias", "previous", "answer", "previous_answer")]
    numbers = (policy, pool, given.get("tol", 0.0), 5, 2)
    torch.library.opcheck(
        torch.ops.rtm_kernels.halting_step,
        (*(getattr(state, f.name) for f in fields(state)), given["y"], *tensors, None, *numbers),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "maybe"}, "policy='maybe'"),
        ({"pool": "max"}, "pool='max'"),
        ({"pool": "token"}, "pool='token' .* cumulative_token"),
        ({"policy": "cumulative_token"}, "pool='first'"),
        ({"weight": None}, "weight='None' .* policy q has a head"),
        ({"weight": torch.zeros(3, 8)}, r"weight.shape=\(3, 8\)"),
        ({"policy": "q_continue", "weight": torch.zeros(1, 8)}, r"weight.shape=\(1, 8\) .* K from 2 to 2"),
        ({"bias": torch.zeros(1)}, "bias="),
        ({"policy": "fixed"}, "weight="),
        ({"previous": torch.zeros(3, 2, 8)}, "previous="),
        ({"max_steps": 0}, "max_steps=0"),
        ({"min_steps": -1}, "min_steps=-1"),
        ({"min_steps": torch.ones(2, dtype=torch.int32)}, "min_steps="),
        ({"y": torch.zeros(3, 8)}, "y="),
        ({"y": torch.zeros(4, 2, 8)}, r"state.steps.shape=\(3, 1\)"),
        ({"impl": "cuda"}, "impl='cuda'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    given = {"policy": "q", "weight": torch.zeros(2, 8), "bias": torch.zeros(2), "max_steps": 4}
    given = {"y": torch.zeros(3, 2, 8), **given, **change}
    with pytest.raises(InputError, match=message):
        halting_step_(initial_state(3), **given)


def test_settle_names_what_it_lacks() -> None:
    y = torch.zeros(3, 2, 8)
    with pytest.raises(InputError, match="previous='None'"):
        halting_step_(initial_state(3), y, policy="settle", max_steps=4)
    with pytest.raises(InputError, match="previous_answer='None'"):
        halting_step_(initial_state(3), y, policy="settle", max_steps=4, previous=y, answer=torch.zeros(3, 1))
    with pytest.raises(InputError, match=r"logits=None .* policy q"):
        halting_update(initial_state(1), "q", max_steps=1)
    with pytest.raises(InputError, match="quiet=None"):
        halting_update(initial_state(1), "settle", max_steps=1)


def test_bfloat16_is_refused_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    with pytest.raises(BackendUnavailable, match="bfloat16"):
        y = torch.zeros(1, 1, 4, dtype=torch.bfloat16)
        halting_step_(initial_state(1), y, policy="fixed", max_steps=1, impl="triton")
