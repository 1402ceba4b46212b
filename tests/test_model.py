"""RecursiveReasoner: the ACT step, its carry, heads and embeddings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import InputError
from rtm_kernels.model import Carry, RecursiveReasoner
from tests.small_models import ARCHS, batch_of, make


def tensors(carry: Carry, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**outputs, **carry.latents, **carry.current_data, "steps": carry.steps, "halted": carry.halted}


def row(values: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {key: value[index : index + 1] for key, value in values.items()}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("size", [0, 1, 4])
def test_shapes_and_gradients_of_an_act_step(arch: str, size: int) -> None:
    model, batch = make(arch), batch_of(size)
    carry, outputs = model(carry=model.initial_carry(batch), batch=batch)
    sum(value.double().square().sum() for value in outputs.values()).backward()
    # the lm_head always takes part; so do the blocks, whose gradient is zero for no samples
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if "q_head" not in n)
    assert outputs["logits"].shape == (size, 6, 7) and outputs["logits"].isfinite().all()
    assert set(carry.latents) == set(model.program.carried)
    assert all(z.shape == (size, 7, 16) and not z.requires_grad for z in carry.latents.values())
    assert carry.steps.tolist() == [1] * size and carry.steps.dtype == torch.int32
    heads = {"q_halt_logits", "q_continue_logits"} if model.config.has_q_head else set()
    assert set(outputs) == {"logits"} | heads
    assert all(outputs[name].shape == (size,) and outputs[name].dtype == torch.float32 for name in heads)
    assert all(torch.equal(carry.current_data[key], value) for key, value in batch.items())


@pytest.mark.parametrize("arch", ["trm", "hrm", "rsm"])
@torch.no_grad()
def test_a_fresh_carry_is_reset_whatever_it_holds(arch: str) -> None:
    model, batch = make(arch), batch_of()
    carry = model.initial_carry(batch)
    assert carry.halted.all() and (carry.steps == 0).all()
    expected = tensors(*model(carry, batch))
    poisoned = Carry(
        {key: torch.full_like(value, math.nan) for key, value in carry.latents.items()},
        torch.full_like(carry.steps, 99),
        carry.halted,
        {key: torch.full_like(value, 12345) for key, value in batch.items()},
    )
    got = tensors(*model(poisoned, batch))
    assert all(torch.equal(got[key], value) for key, value in expected.items())


@pytest.mark.parametrize("arch", ["trm", "trm_singlez", "hrm"])
@torch.no_grad()
def test_halted_samples_restart_and_others_go_on(arch: str) -> None:
    model, first, second = make(arch), batch_of(seed=0), batch_of(seed=1)
    carry, _ = model(model.initial_carry(first), first)
    goes_on = tensors(*model(carry, first))
    restarts = tensors(*model(model.initial_carry(second), second))
    carry.halted = torch.tensor([True, False, True, False])
    got = tensors(*model(carry, second))
    assert got["steps"].tolist() == [1, 2, 1, 2]
    for index in range(4):
        expected = row(goes_on if index % 2 else restarts, index)
        assert all(torch.equal(value, expected[key]) for key, value in row(got, index).items())


def test_gradient_reaches_what_the_contract_says() -> None:
    model, batch = make().train(), batch_of()
    carry = model.initial_carry(batch)
    carry, _ = model(carry, batch)
    assert not any(z.requires_grad for z in carry.latents.values())
    _, outputs = model(carry, batch)
    outputs["logits"].square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "q_head" not in name)
    local = model.puzzle_emb
    assert torch.equal(local.local_ids, carry.current_data["puzzle_identifiers"])
    assert local.local_weights.grad.shape == (4, 16) and local.local_weights.grad.abs().sum() > 0
    assert not local.weights.requires_grad


def test_embedding_layout() -> None:
    model, batch = make(puzzle_emb_ndim=40, pos_encodings="learned"), batch_of()
    x = model.embed(batch["inputs"], batch["puzzle_identifiers"])
    assert model.config.prefix_len == 3 and x.shape == (4, 9, 16)
    rows = model.puzzle_emb.weights[batch["puzzle_identifiers"]]
    prefix = torch.cat((rows, torch.zeros(4, 8)), 1).view(4, 3, 16)
    tokens = model.embed_tokens.embedding_weight[batch["inputs"]]
    expected = 4.0 * 0.707106781 * (torch.cat((prefix, tokens), 1) + model.embed_pos.embedding_weight)
    torch.testing.assert_close(x, expected)


@torch.no_grad()
def test_prefix_without_puzzle_embedding_is_a_workspace_of_zeros() -> None:
    plain = make(puzzle_emb_ndim=0, puzzle_emb_len=2)
    assert not hasattr(plain, "puzzle_emb") and plain.config.latent_len == 8
    puzzle = make(puzzle_emb_ndim=16, puzzle_emb_len=2)
    puzzle.puzzle_emb.weights.zero_()
    puzzle.load_state_dict({**plain.state_dict(), "puzzle_emb.weights": puzzle.puzzle_emb.weights})
    batch = batch_of()
    got, expected = (tensors(*model(model.initial_carry(batch), batch)) for model in (plain, puzzle))
    assert all(torch.equal(got[key], value) for key, value in expected.items())


@torch.no_grad()
def test_dtypes() -> None:
    batch = batch_of()
    model = make(forward_dtype="float64")
    assert all(p.dtype == torch.float32 for p in model.parameters()) and model.H_init.dtype == torch.float64
    carry, outputs = model(model.initial_carry(batch), batch)
    assert outputs["logits"].dtype == torch.float64 and carry.latents["z_H"].dtype == torch.float64
    single = make()
    single.load_state_dict(model.state_dict())
    low = single(single.initial_carry(batch), batch)[1]["logits"]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), outputs["logits"], rtol=0, atol=1e-3)
    half = make(forward_dtype="bfloat16")
    carry, outputs = half(half.initial_carry(batch), batch)
    assert outputs["logits"].dtype == torch.bfloat16 and outputs["q_halt_logits"].dtype == torch.float32


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = RecursiveReasoner(ModelConfig(vocab_size=11, seq_len=9, hidden_size=64, puzzle_emb_ndim=64))
    assert model.q_head.weight.abs().sum() == 0 and model.q_head.bias.tolist() == [-5.0, -5.0]
    assert model.puzzle_emb.weights.abs().sum() == 0
    assert {"H_init", "L_init"} <= set(dict(model.named_buffers()))
    assert 0.7 < model.H_init.std() < 1.3


INPUTS, IDS = batch_of()["inputs"], batch_of()["puzzle_identifiers"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inputs": INPUTS}, "batch has no 'puzzle_identifiers'; it has .'inputs'."),
        ({"puzzle_identifiers": IDS}, "batch has no 'inputs'"),
        ({"inputs": INPUTS[:, 1:], "puzzle_identifiers": IDS}, r"has shape \(4, 5\); expected \[B, seq_len=6\]"),
        ({"inputs": INPUTS, "puzzle_identifiers": IDS[:, None]}, r"has shape \(4, 1\); expected .B. = \(4,\)"),
        (batch_of(2), "the carry is of 4 samples, but the batch of 2"),
        (batch_of() | {"labels": INPUTS}, r"the carry holds .*, but the batch \['inputs', 'labels', "),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(wrong: dict[str, Tensor], message: str) -> None:
    model = make()
    with pytest.raises(InputError, match=message):
        model(model.initial_carry(batch_of()), wrong)


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
