"""Halting in the training contract: the head's rule, exploration, the last step, and HRM's bootstrapped target."""

from __future__ import annotations

import pytest
import torch

from tests.small_models import batch_of, make


@torch.no_grad()
def test_evaluation_halts_at_the_last_step_only() -> None:
    model, batch = make(), batch_of()
    model.q_head.bias.fill_(100.0)
    carry = model.initial_carry(batch)
    halted = []
    for _ in range(5):
        carry, _ = model(carry, batch)
        halted.append(carry.halted.tolist())
    assert halted == [[False] * 4] * 3 + [[True] * 4, [False] * 4]
    assert carry.steps.tolist() == [1] * 4


@pytest.mark.parametrize(
    ("arch", "bias", "halts"),
    [("trm", (3.0, 0.0), True), ("trm", (-3.0, -5.0), False), ("transformer", (-3.0, -5.0), True),
     ("transformer", (3.0, 5.0), False), ("transformer", (3.0, 3.0), False)],
)  # fmt: skip
def test_training_halts_when_q_halt_is_positive_or_exceeds_q_continue(
    arch: str, bias: tuple[float, float], halts: bool
) -> None:
    model, batch = make(arch).train(), batch_of()
    with torch.no_grad():
        model.q_head.weight.zero_()
        model.q_head.bias.copy_(torch.tensor(bias))
    carry, outputs = model(model.initial_carry(batch), batch)
    assert outputs["q_halt_logits"].tolist() == [bias[0]] * 4 and outputs["q_continue_logits"].tolist() == [bias[1]] * 4
    assert carry.halted.tolist() == [halts] * 4


def test_exploration_makes_samples_run_two_steps_to_the_maximum() -> None:
    model, batch = make(halt_exploration_prob=1.0).train(), batch_of(64)
    with torch.no_grad():
        model.q_head.weight.zero_()
        model.q_head.bias.fill_(5.0)  # every sample wants to halt at once
    torch.manual_seed(7)
    carry = model.initial_carry(batch)
    halted = []
    for step in range(1, 5):
        state = torch.get_rng_state()
        carry, outputs = model(carry, batch)
        torch.set_rng_state(state)
        torch.rand_like(outputs["q_halt_logits"])
        minimum = torch.randint_like(carry.steps, low=2, high=5)
        assert torch.equal(carry.halted, carry.steps >= minimum)
        halted.append(carry.halted.float().mean().item())
        carry.halted = torch.zeros_like(carry.halted)  # keep every sample going
        assert carry.steps.tolist() == [step] * 64
    assert halted[0] == 0 and 0.1 < halted[1] < 0.6 < halted[2] < 0.9 and halted[3] == 1


def test_exploration_is_a_share_of_the_samples() -> None:
    model, batch = make(halt_exploration_prob=0.25).train(), batch_of(400)
    with torch.no_grad():
        model.q_head.weight.zero_()
        model.q_head.bias.fill_(5.0)
        carry, _ = model(model.initial_carry(batch), batch)
    assert 0.65 < carry.halted.float().mean() < 0.85  # three quarters do not explore and halt at step 1


@pytest.mark.parametrize("arch", ["trm", "hrm", "rsm"])
def test_a_single_step_model_always_halts(arch: str) -> None:
    model, batch = make(arch, halt_max_steps=1, halt_exploration_prob=1.0).train(), batch_of()
    carry, outputs = model(model.initial_carry(batch), batch)
    assert carry.halted.all() and "target_q_continue" not in outputs


def test_target_q_continue_looks_one_step_ahead() -> None:
    model, batch = make("hrm").train(), batch_of()
    carry = model.initial_carry(batch)
    for step in range(1, 5):
        before = carry
        carry, outputs = model(carry, batch)
        with torch.no_grad():
            x = model.embed(carry.current_data["inputs"], carry.current_data["puzzle_identifiers"])
            q = model.act_step(carry.latents, x)[2]
        value = q[:, 0] if step == 4 else torch.maximum(q[:, 0], q[:, 1])
        assert torch.equal(outputs["target_q_continue"], torch.sigmoid(value))
        assert not outputs["target_q_continue"].requires_grad and before is not carry
        carry.halted = torch.zeros_like(carry.halted)
    _, outputs = model.eval()(carry, batch)
    assert "target_q_continue" not in outputs
