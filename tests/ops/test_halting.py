"""Halting: the formulas of training and of the solver's state, the kernel against them, bits and errors."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels.errors import InputError
from rtm_kernels.impl import launches
from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.mixture import halting_update, initial_state
from rtm_kernels.ops.halting.policy import HaltingPolicy
from rtm_kernels.ops.halting.reference import Outputs, SlotState, SlotStates, relative_change, sigmoid

SEQ, PREFIX, WIDTH, VOCABULARY = 5, 2, 20, 4
POLICIES = (
    "fixed", "q", "q_continue=0.6", "q=0.8+settle=2", "settle=2/0.4", "cumulative", "cumulative_token+q", "verified",
    "settle=1+verified", "cumulative+cumulative_token+verified",
)  # fmt: skip
ROUNDED = ("residual", "token_accumulated")
"""Columns that the kernel computes from the latents in float32, in another order."""


def states_of(text: str, batch: int, min_steps: int = 1) -> SlotStates:
    states = SlotStates(HaltingPolicy.parse(text, min_steps=min_steps, max_steps=4), batch, SEQ, PREFIX)
    states.rows.copy_(states.fresh.expand(batch, -1))
    states.first(batch).limit.copy_(torch.arange(batch) % 4 + 2)
    return states


def outputs(batch: int, seed: int, compares: bool = False) -> Outputs:
    """A random step; every other sample answers as always, and some answers have equal logits."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    y, others = normal(batch, PREFIX + SEQ, WIDTH), tuple(normal(batch, PREFIX + SEQ, WIDTH) for _ in range(seed % 3))
    logits = torch.randint(0, 3, (batch, PREFIX + SEQ, VOCABULARY), generator=g)[:, PREFIX:].float()
    logits[::2] = 1.0
    head = normal(2, WIDTH) / WIDTH**0.5, normal(2)
    previous = y + 0.5 * torch.rand(batch, 1, 1, generator=g) * normal(*y.shape)
    return Outputs(logits, normal(batch, 2), y, previous, others, head, compares)


def advance(states: SlotStates, n: int, seen: Outputs, impl: str, confirmed: Tensor | None = None) -> SlotState:
    """One step of the first n rows; under `verified` with both calls."""
    at, sums = states.first(n), n % 2 == 0
    halting_step_(at, states.policy, seen, sums=sums, impl=impl)
    if "verified" in states.policy.on:
        halting_step_(at, states.policy, None, torch.arange(n) % 3 == 0 if confirmed is None else confirmed, impl=impl)
    return at


def same(one: SlotState, other: SlotState) -> None:
    for name, a, b in list(zip(SlotState._fields, one, other, strict=True))[1:]:
        if name not in ROUNDED:
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), name
        else:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_the_sigmoid_is_exact_enough_and_its_bits_do_not_depend_on_the_place() -> None:
    x = torch.linspace(-64, 64, 4097)
    torch.testing.assert_close(sigmoid(x), torch.sigmoid(x.double()), rtol=1e-11, atol=0)
    assert sigmoid(torch.tensor([0.0, 200.0, -200.0])).tolist() == [0.5, sigmoid(x[-1:]).item(), sigmoid(x[:1]).item()]
    assert torch.equal(sigmoid(x)[7:9], sigmoid(x[7:9]))


def test_relative_change() -> None:
    y = torch.ones(2, 2, 2)
    torch.testing.assert_close(
        relative_change(y, y * torch.tensor([0.5, 0.999]).view(2, 1, 1)), torch.tensor([0.5, 0.001])
    )


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(("above", "reason"), [(0.0, 0), (1e-7, 3)])
def test_thresholds_at_equality(impl: str, above: float, reason: int) -> None:
    pytest.importorskip("triton")
    seen = outputs(1, 0)
    at = advance(states_of("q", 1), 1, replace(seen, q=torch.tensor([[above, 0.0]])), impl)
    assert at.reason.item() == reason, "q: p has to exceed the threshold"
    states = states_of("cumulative", 1)
    for _ in range(2):
        at = advance(states, 1, replace(seen, q=torch.tensor([[0.0, 0.0]])), impl)
    assert at.accumulated.item() == 1.0 and at.reason.item() == 3, "cumulative: a sum of 1 is enough"


@pytest.mark.parametrize("policy", ["q", "q_continue", "cumulative", "cumulative_token"])
def test_thresholds_at_equality_in_training(policy: str) -> None:
    """The same rule: a logit of 0 is not enough, a sum of 1 is."""
    state, logits = initial_state(1, 2), torch.tensor([[[0.0, 0.0], [0.5, 0.5]]])
    if policy == "q":
        logits[0, 1] = 0.0
    for step in (1, 2):
        state = halting_update(state, policy, logits, max_steps=9)
        assert state.active.tolist() == [[policy.startswith("q") or step == 1] * 2], step


@pytest.mark.parametrize("min_steps", [1, 3])
@pytest.mark.parametrize("text", POLICIES)
def test_the_kernel_does_what_the_reference_does_in_one_launch(text: str, min_steps: int) -> None:
    pytest.importorskip("triton")
    n, draw = 7, random.Random(min_steps)
    mine, right = states_of(text, n, min_steps), states_of(text, n, min_steps)
    found = set()
    for step in range(4):
        seen = outputs(n, draw.randrange(1 << 20), "continue" in text)
        if step == 2:
            where = draw.choice([seen.logits, seen.q, seen.output, *seen.others])
            assert where is not None
            where[1].view(-1)[-1] = draw.choice([torch.nan, torch.inf])
        if step == 3:
            seen = replace(seen, finite=torch.arange(n) != 4, change=torch.full((n,), 0.3))
        launches.clear()
        a = advance(mine, n, seen, "triton")
        assert launches == {"halting.step": 1 + ("verified" in text)}
        b = advance(right, n, seen, "reference")
        same(a, b)
        found |= set(a.reason.tolist())
    assert found >= {0, 1, 2} if text == "fixed" else found & {3, 4, 5}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_latents_in_half_precision_and_of_any_strides(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    seen = outputs(4, 2)
    strided = seen.output.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)
    assert seen.previous is not None
    seen = replace(
        seen, output=strided, previous=seen.previous.to(dtype).expand(4, -1, -1), logits=seen.logits.to(dtype),
        others=tuple(t.to(dtype).flip(0) for t in seen.others),
    )  # fmt: skip
    mine, right = states_of("cumulative_token+settle=2/0.3", 4), states_of("cumulative_token+settle=2/0.3", 4)
    same(advance(mine, 4, seen, "triton"), advance(right, 4, seen, "reference"))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_no_samples_and_what_a_model_lacks(impl: str) -> None:
    pytest.importorskip("triton")
    for text in ("cumulative_token", "verified"):
        advance(states_of(text, 0), 0, outputs(0, 0), impl)
    bare = replace(outputs(3, 1), q=None, previous=None, others=(), head=None)
    at = advance(states_of("settle=2", 3), 3, bare, impl)
    assert at.logit.isnan().all() and at.residual.isnan().all() and at.finite.all()
    bare.output.fill_(torch.nan)  # what is not carried is not looked at
    assert advance(states_of("settle=2", 3), 3, bare, impl).finite.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 4, 2)}, r"logits='torch.float32\[3, 4, 2\]'"),
        ({"output": torch.zeros(2, 7, 20)}, "output="),
        ({"previous": torch.zeros(3, 7, 21)}, "previous, others="),
        ({"q": torch.zeros(2, 2)}, "q="),
        ({"finite": torch.ones(2, dtype=torch.bool)}, "finite="),
        ({"answers": torch.ones(3, 4)}, "answers="),
        ({"head": None}, "head='None' .* cumulative_token reads"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    states = states_of("cumulative_token", 3)
    with pytest.raises(InputError, match=message):
        halting_step_(states.first(3), states.policy, replace(outputs(3, 0), **change))


def test_the_calls_under_a_verifier_and_the_implementation_are_checked() -> None:
    pytest.importorskip("triton")
    states, policy = states_of("verified", 3), HaltingPolicy(("q",))
    at, seen, yes = states.first(3), outputs(3, 0), torch.ones(3, dtype=torch.bool)
    for arguments, message in (
        ((policy, seen, yes), "confirmed=.* None without `verified`"),
        ((states.policy, seen, yes), "seen='given'"),
        ((states.policy, None), "seen='None'"),
        ((states.policy, None, yes[:2]), r"confirmed='torch.bool\[2\]'"),
    ):
        with pytest.raises(InputError, match=message):
            halting_step_(at, *arguments)
    with pytest.raises(InputError, match="impl='cuda'"):
        halting_step_(at, states.policy, seen, impl="cuda")
