"""Captured ACT steps in place: the loop over replays gives the bits of the reference's loop, sample by sample."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.ops.halting.reference import HaltingState, halting_logits, halting_update, initial_state, settled
from rtm_kernels.program import Program
from rtm_kernels.recursion import conditional, reference
from rtm_kernels.recursion.act_graph import ActGraph
from rtm_kernels.recursion.head import HaltingHead
from tests.recursion.support import Recorder, bits, random_state, small_stacks

CASES = [
    ("q", "first"),
    ("q_continue", "mean"),
    ("settle", "first"),
    ("cumulative_sequence", "mean"),
    ("cumulative_token", "token"),
    ("fixed", "first"),
]


def make_head(policy: str, pool: str, max_steps: int = 5) -> HaltingHead:
    weight = torch.randn(2, 24, generator=torch.Generator().manual_seed(3)) * (3 if pool == "mean" else 1) * 24**-0.5
    return HaltingHead(policy, max_steps, weight, torch.tensor([-0.3, 0.1]), pool, tolerance=0.4)


def state_bits(state: HaltingState) -> dict[str, bytes]:
    return bits({f.name: getattr(state, f.name) for f in fields(state)})


def eager(
    program: Program, stacks: Any, head: HaltingHead, latents: dict[str, Tensor], x: Tensor
) -> tuple[dict[str, Tensor], HaltingState, int]:
    """The run until all have halted, by the references; samples that have halted are put back after each step."""
    state, taken = initial_state(len(x), head.units(x.shape[1])), 0
    while state.active.any() and taken < head.max_steps:
        running = state.active_samples
        values = reference.run(program, latents, x, stacks)
        y = values[program.output]
        state = halting_update(
            state,
            head.policy,
            logits=halting_logits(y, head.weight, head.bias, head.pool) if head.reads_head else None,
            quiet=settled(y, latents[program.output], head.tolerance) if head.policy == "settle" else None,
            max_steps=head.max_steps,
        )
        latents = {n: torch.where(running[:, None, None], t, latents[n]) for n, t in values.items()}
        taken += 1
    return latents, state, taken


@pytest.mark.parametrize(("policy", "pool"), CASES)
def test_a_run_has_the_bits_of_the_reference_loop(policy: str, pool: str) -> None:
    program, head = programs.rtm(1), make_head(policy, pool)
    stacks = small_stacks(program.stacks, 9, 24)
    latents, x = random_state(program, 3, 9, 24)
    recorder = Recorder()
    graph = ActGraph(program, stacks, head, latents, x, capture=recorder)
    want, state, taken = eager(program, stacks, head, latents, x)
    assert graph.run() == taken == recorder.runs
    assert bits(graph.latents) == bits(want) and state_bits(graph.state) == state_bits(state)
    if policy != "fixed":
        assert len(set(state.steps.flatten().tolist())) > 1, "the case must halt samples at different steps"


def test_steps_one_by_one_equal_a_run_and_a_capture_leaves_no_trace() -> None:
    program, head = programs.trm(1, 1), make_head("cumulative_sequence", "first")
    stacks = small_stacks(program.stacks, 9, 24)
    latents, x = random_state(program, 2, 9, 24)
    whole = ActGraph(program, stacks, head, latents, x, capture=Recorder())
    single = ActGraph(program, stacks, head, latents, x, capture=Recorder())
    for _ in range(whole.run()):
        single.step()
    assert bits(single.latents) == bits(whole.latents) and state_bits(single.state) == state_bits(whole.state)
    assert bits({"q": single.logits}) == bits({"q": whole.logits})


def test_a_poisoned_neighbour_changes_neither_result_nor_halting_step() -> None:
    program, head = programs.rtm(1), make_head("q", "first")
    stacks = small_stacks(program.stacks, 9, 24)
    latents, x = random_state(program, 3, 9, 24)
    graph = ActGraph(program, stacks, head, latents, x, capture=Recorder())
    graph.run()
    clean = {name: t.clone() for name, t in graph.latents.items()}, graph.state.steps.clone()
    poisoned = x.clone()
    poisoned[1] = torch.nan
    graph.load(latents, poisoned)
    graph.run()
    for sample in (0, 2):
        assert bits({n: t[sample] for n, t in graph.latents.items()}) == bits(
            {n: t[sample] for n, t in clean[0].items()}
        )
        assert graph.state.steps[sample] == clean[1][sample]
    assert graph.state.steps[1] == head.max_steps, "a sample that is not finite never asks to halt"


def test_a_batch_that_has_halted_is_not_replayed() -> None:
    program, head = programs.rtm(1), make_head("q", "first")
    latents, x = random_state(program, 2, 9, 24)
    graph = ActGraph(program, small_stacks(program.stacks, 9, 24), head, latents, x, capture=Recorder())
    halted = initial_state(2)
    halted.active.fill_(False)
    graph.load(latents, x, halted)
    assert graph.run() == 0
    assert bits(graph.latents) == bits(latents)


class TestRefusals:
    program = programs.rtm(1)

    def make(self, **changes: Any) -> ActGraph:
        latents, x = random_state(self.program, 2, 9, 24)
        arguments = {"latents": latents, "capture": Recorder(), "head": make_head("q", "first"), **changes}
        stacks = small_stacks(self.program.stacks, 9, 24)
        return ActGraph(self.program, stacks, arguments.pop("head"), arguments.pop("latents"), x, **arguments)

    def test_a_missing_latent(self) -> None:
        with pytest.raises(InputError, match="z_H is read and not given"):
            self.make(latents={})

    def test_an_unknown_loop(self) -> None:
        with pytest.raises(InputError, match="loop='for' is not allowed: expected one of poll, while"):
            self.make(loop="for")

    def test_while_with_another_recorder(self) -> None:
        with pytest.raises(InputError, match="it nests CUDA graphs"):
            self.make(loop="while").run()

    def test_a_state_of_other_samples(self) -> None:
        graph = self.make()
        with pytest.raises(InputError, match=r"state\.steps=\(3, 1\)"):
            graph.load(*random_state(self.program, 2, 9, 24), initial_state(3))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
    def test_no_gpu(self) -> None:
        with pytest.raises(BackendUnavailable, match="no CUDA device is available"):
            self.make(capture=None)


@pytest.mark.gpu
@pytest.mark.parametrize(("policy", "pool"), CASES)
def test_both_loops_on_a_gpu_give_the_same_bits(policy: str, pool: str) -> None:
    reason = conditional.why_not()
    if reason is not None:
        pytest.skip(reason)
    program = programs.trm(1, 2)
    stacks = {name: stack.cuda() for name, stack in small_stacks(program.stacks, 9, 24).items()}
    latents, x = random_state(program, 8, 9, 24)
    latents, x = {name: t.cuda() for name, t in latents.items()}, x.cuda()
    cpu_head = make_head(policy, pool, max_steps=16)
    assert cpu_head.weight is not None and cpu_head.bias is not None
    head = HaltingHead(policy, 16, cpu_head.weight.cuda(), cpu_head.bias.cuda(), pool, tolerance=0.2)
    results = []
    for loop in ("poll", "while"):
        graph = ActGraph(program, stacks, head, latents, x, loop=loop)
        for _ in range(3):
            graph.load(latents, x)
            taken = graph.run()
        results.append((taken, bits(graph.latents), state_bits(graph.state)))
    assert results[0] == results[1]
