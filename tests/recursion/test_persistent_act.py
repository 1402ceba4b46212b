"""ACT steps of the persistent kernel: halting head and update of every policy against the halting reference."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.errors import InputError
from rtm_kernels.ops.halting.reference import (
    HaltingState,
    halting_logits,
    halting_update,
    initial_state,
    relative_change,
)
from rtm_kernels.program import Program
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.persistent.executor import run_act_step
from rtm_kernels.recursion.persistent.pack import PackedWeights
from tests.recursion.support import bits, random_state, small_stacks

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted; test_persistent_gpu runs on the GPU")

BATCH, LENGTH, WIDTH = 2, 9, 24
CASES = [
    ("q", "first", 1),
    ("q_continue", "mean", 2),
    ("settle", "first", 1),
    ("cumulative_sequence", "mean", 1),
    ("cumulative_token", "token", 1),
    ("fixed", "first", 1),
]
"""Policy, pool, min_steps."""


def make_head(policy: str, pool: str, **changes: Any) -> HaltingHead:
    """A head whose samples halt at different steps."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, WIDTH, generator=generator) * (3 if pool == "mean" else 1) * WIDTH**-0.5
    return HaltingHead(policy, 3, weight, torch.tensor([-0.3, 0.1]), pool, **{"tolerance": 0.617, **changes})


def state_bits(state: HaltingState) -> dict[str, bytes]:
    return bits({f.name: getattr(state, f.name) for f in fields(state)})


def oracle(
    program: Program, latents: dict[str, Tensor], x: Tensor, stacks: Any, head: HaltingHead, state: HaltingState
) -> tuple[dict[str, Tensor], HaltingState, Tensor]:
    """One ACT step by the references: latents, state, and the halting logits of the samples that took it."""
    active = state.active_samples
    values = reference.run(program, latents, x, stacks)
    y, previous = values[program.output], latents[program.output]
    frozen = {n: torch.where(active[:, None, None], t, latents.get(n, t)) for n, t in values.items()}
    logits = quiet = None
    if head.policy == "settle":
        quiet = (relative_change(y, previous) < head.tolerance).unsqueeze(-1)
    elif head.policy != "fixed":
        logits = halting_logits(y, head.weight, head.bias, head.pool)
    new = halting_update(
        state, head.policy, logits=logits, quiet=quiet, max_steps=head.max_steps, min_steps=head.min_steps
    )
    return frozen, new, torch.zeros(len(y), 1, 2) if logits is None else logits


@pytest.mark.parametrize(("policy", "pool", "min_steps"), CASES)
def test_every_policy_equals_the_reference_step_by_step(policy: str, pool: str, min_steps: int) -> None:
    program = programs.rtm(1)
    stacks = small_stacks(program.stacks, LENGTH, WIDTH)
    weights = PackedWeights(stacks)
    latents, x = random_state(program, BATCH, LENGTH, WIDTH)
    head = make_head(policy, pool, min_steps=min_steps)
    state = initial_state(BATCH, head.units(LENGTH))
    while state.active.any():
        active = state.active_samples
        want_latents, want, want_logits = oracle(program, latents, x, stacks, head, state)
        got_latents, got, logits = run_act_step(program, latents, x, weights, head, state)
        for name, tensor in got_latents.items():
            torch.testing.assert_close(tensor, want_latents[name], atol=1e-5, rtol=1e-5)
            assert torch.equal(tensor[~active], latents[name][~active])
        torch.testing.assert_close(logits[active], want_logits[active], atol=1e-5, rtol=1e-5)
        assert torch.equal(got.steps, want.steps) and torch.equal(got.active, want.active)
        torch.testing.assert_close(got.accumulated, want.accumulated, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(got.weight, want.weight, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(got.remainder, want.remainder, atol=1e-6, rtol=1e-6)
        latents, state = got_latents, got
    assert state.steps.max() <= head.max_steps
    if policy != "fixed":
        assert len(set(state.steps.flatten().tolist())) > 1, "the case must halt samples at different steps"
    if policy.startswith("cumulative"):
        torch.testing.assert_close(state.accumulated, torch.ones_like(state.accumulated))


@pytest.mark.parametrize(("policy", "pool"), [("settle", "first"), ("cumulative_token", "token")])
def test_one_launch_until_all_have_halted_equals_one_launch_per_step(policy: str, pool: str) -> None:
    program = programs.rtm(1)
    weights = PackedWeights(small_stacks(program.stacks, LENGTH, WIDTH, norm_axis="hidden"))
    latents, x = random_state(program, BATCH, LENGTH, WIDTH)
    head = make_head(policy, pool)
    by_step, state, logits = dict(latents), None, None
    for step in range(1, head.max_steps + 1):
        if state is not None and not state.active.any():
            break
        before = logits
        by_step, state, logits = run_act_step(program, by_step, x, weights, head, state)
        if before is not None:
            logits = torch.where((state.sample_steps == step)[:, None, None], logits, before)
    together, final, last_logits = run_act_step(program, latents, x, weights, head, act_steps=head.max_steps + 3)
    assert state is not None and logits is not None
    assert bits(together) == bits(by_step) and state_bits(final) == state_bits(state)
    assert bits({"logits": last_logits}) == bits({"logits": logits})


def test_a_sample_halts_at_the_same_step_alone_and_in_a_batch() -> None:
    program = programs.rtm(1)
    weights = PackedWeights(small_stacks(program.stacks, LENGTH, WIDTH))
    latents, x = random_state(program, BATCH, LENGTH, WIDTH)
    head = make_head("q", "first")
    values, state, logits = run_act_step(program, latents, x, weights, head, act_steps=head.max_steps)
    for i in range(BATCH):
        alone = run_act_step(
            program, {n: t[[i]] for n, t in latents.items()}, x[[i]], weights, head, act_steps=head.max_steps
        )
        assert bits(alone[0]) == bits({n: t[[i]] for n, t in values.items()})
        assert alone[1].steps.item() == state.steps[i].item()
        assert bits({"q": alone[2]}) == bits({"q": logits[[i]]})


def test_a_batch_that_has_halted_keeps_every_bit() -> None:
    program = programs.rtm(1)
    weights = PackedWeights(small_stacks(program.stacks, LENGTH, WIDTH))
    latents, x = random_state(program, BATCH, LENGTH, WIDTH)
    halted = initial_state(BATCH)
    halted.active.fill_(False)
    values, state, logits = run_act_step(program, latents, x, weights, make_head("q", "first"), halted, act_steps=2)
    assert bits(values) == bits(latents) and state_bits(state) == state_bits(halted)
    assert not logits.any()


def test_min_steps_of_each_sample_and_a_head_of_one_row() -> None:
    program = programs.rtm(1)
    weights = PackedWeights(small_stacks(program.stacks, LENGTH, WIDTH))
    latents, x = random_state(program, BATCH, LENGTH, WIDTH)
    always = HaltingHead("q", 4, torch.zeros(1, WIDTH), torch.ones(1), min_steps=torch.tensor([1, 3]))
    _, state, logits = run_act_step(program, latents, x, weights, always, act_steps=9)
    assert state.steps.flatten().tolist() == [1, 3]
    assert torch.equal(logits, torch.tensor([1.0, 0.0]).expand(BATCH, 1, 2))


class TestRefusals:
    def test_a_policy_without_its_head(self) -> None:
        with pytest.raises(InputError, match="the policy q reads a halting head"):
            HaltingHead("q", 4)

    def test_q_continue_needs_two_rows(self) -> None:
        with pytest.raises(InputError, match=r"weight=\(1, 24\) is not allowed"):
            HaltingHead("q_continue", 4, torch.zeros(1, WIDTH))

    def test_unknown_policy(self) -> None:
        with pytest.raises(InputError, match="policy='never'"):
            HaltingHead("never", 4)

    def test_a_head_of_another_width(self) -> None:
        program = programs.rtm(1)
        stacks = small_stacks(program.stacks, LENGTH, WIDTH)
        with pytest.raises(InputError, match=rf"weight=\(2, 7\) is not allowed: \[2, {WIDTH}\]"):
            run_act_step(
                program, *random_state(program, 1, LENGTH, WIDTH), stacks, HaltingHead("q", 4, torch.zeros(2, 7))
            )

    def test_a_state_of_other_units(self) -> None:
        program = programs.rtm(1)
        stacks = small_stacks(program.stacks, LENGTH, WIDTH)
        with pytest.raises(InputError, match=r"state\.steps=\(1, 2\) is not allowed: \[B, U\] = \(1, 1\)"):
            run_act_step(
                program, *random_state(program, 1, LENGTH, WIDTH), stacks, make_head("q", "first"), initial_state(1, 2)
            )

    def test_settle_needs_the_output_of_the_step_before(self) -> None:
        program = programs.rins(1)
        stacks = small_stacks(program.stacks, LENGTH, WIDTH)
        with pytest.raises(InputError, match="h is read and not given"):
            run_act_step(program, *random_state(program, 1, LENGTH, WIDTH), stacks, make_head("settle", "first"))
