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


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_samples_must_run_two_steps_to_the_maximum(share: float) -> None:
    model, batch = make(halt_exploration_prob=share).train(), batch_of(400)
    torch.nn.init.zeros_(model.q_head.weight)
    torch.nn.init.constant_(model.q_head.bias, 5.0)  # every sample wants to halt at once
    torch.manual_seed(7)
    carry, halted = model.initial_carry(batch), []
    for step in range(1, 5):
        with torch.no_grad():
            carry, _ = model(carry, batch)
        halted.append(carry.halted.float().mean().item())
        carry.halted = torch.zeros_like(carry.halted)  # keep every sample going
        assert carry.steps.tolist() == [step] * 400
    # of those that explore, whose minimum is drawn anew in each step, 0, 1/3, 2/3 and all may halt
    expected = [1 - share * (1 - passed) for passed in (0, 1 / 3, 2 / 3, 1)]
    assert halted == pytest.approx(expected, abs=0.08)


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
