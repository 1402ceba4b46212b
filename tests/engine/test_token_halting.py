"""The signal `cumulative_token` against the halting op's reference, step by step."""

from __future__ import annotations

import pytest
import torch

from rtm_kernels.engine import HaltingPolicy, Solver, Step
from rtm_kernels.engine.samples import Sample
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.mixture import halting_update, initial_state
from rtm_kernels.ops.halting.reference import halting_logits
from tests.engine.fakes import TASK, config

PUZZLES = ["0123", "7654", "1111", "2053", "6420"]


def reasoner(**changes: object) -> RecursiveReasoner:
    torch.manual_seed(4)
    model = RecursiveReasoner(config(L_cycles=2, layers={"L_level": 2}, **changes))
    with torch.no_grad():
        model.q_head.weight.normal_(std=1.5)
        model.q_head.bias.fill_(-1.0)
    return model.eval()


def expected(model: RecursiveReasoner, puzzle: str, min_steps: int, max_steps: int) -> tuple[int, list[int]]:
    """Steps of a sample, and its answer: each token as decoded in its last active step."""
    latents = {name: latent.clone() for name, latent in model.initial_latents(1).items()}
    x = model.embed(torch.from_numpy(TASK.encode(puzzle))[None].int(), torch.zeros(1, dtype=torch.int32))
    state = initial_state(1, model.config.latent_len)
    answer = [0] * 4
    while state.active.any():
        active = state.active[0, -4:].tolist()
        with torch.no_grad():
            values, logits, _ = model.act_step(latents, x)
            output = values[model.program.output]
            token = halting_logits(output, model.q_head.weight, model.q_head.bias, True)
        latents = {name: values[name] for name in latents}
        decoded = logits[0].argmax(-1).tolist()
        answer = [new if goes_on else old for new, old, goes_on in zip(decoded, answer, active, strict=True)]
        state = halting_update(state, "cumulative_token", token, max_steps=max_steps, min_steps=min_steps)
    return int(state.sample_steps[0]), answer


@pytest.mark.parametrize("prefix", [0, 16])
@pytest.mark.parametrize("min_steps", [1, 4])
def test_tokens_halt_when_the_reference_lets_them(prefix: int, min_steps: int) -> None:
    model = reasoner(puzzle_emb_ndim=prefix)
    policy = HaltingPolicy(("cumulative_token",), min_steps=min_steps, max_steps=12)
    depths = set()
    for batch_size in (1, 3):
        solver = Solver(model, task=TASK, policy=policy, executor="reference", batch_size=batch_size)
        found = {d.key: d for d in solver.run(Sample(p, TASK.encode(p)) for p in PUZZLES)}
        for puzzle in PUZZLES:
            steps, answer = expected(model, puzzle, min_steps, 12)
            assert (found[puzzle].steps, found[puzzle].answer.tolist()) == (steps, answer)
            depths.add(steps)
    assert len(depths) > 1 and min(depths) >= min_steps


def test_the_observer_sees_halted_tokens_stay_and_the_smallest_sum_grow() -> None:
    model = reasoner()
    seen: list[Step] = []
    solver = Solver(model, task=TASK, policy="cumulative_token", max_steps=12, batch_size=1)
    (done,) = solver.run([Sample(0, TASK.encode(PUZZLES[1]))], seen.append)
    assert [step.number for step in seen] == list(range(1, done.steps + 1))
    assert seen[-1].answer.tolist() == done.answer.tolist()
    sums = [step.accumulated for step in seen]
    assert sums == sorted(sums) and sums[-2] < 1 <= sums[-1]
