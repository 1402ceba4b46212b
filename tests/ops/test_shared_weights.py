"""Weights shared by the calls of a recursion: the gradients of separate calls, from one product for each weight."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rtm_kernels.config import ModelConfig
from rtm_kernels.impl import launches
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops import shared as shared_ops
from rtm_kernels.ops.shared import STACK_BYTES, Recursion, recursion, shared_weights
from rtm_kernels.ops.swiglu import weights
from tests.ops.support import Call, Leaves, gradients, half_layer, to, within_budget
from tests.small_models import ARCHS, SMALL, batch_of

pytest.importorskip("triton")

CALLS = 3
CASES = {
    "channel, long path": (3, 7, 72),
    "channel": (3, 7, 24),
    "mixer": (3, 9, 10),
    "mixer hidden": (3, 9, 10),
    "mixer, long path": (2, 66, 6),
    "attention": (3, 6, 16),
}
"""Case -> shape of x."""
EACH = pytest.mark.parametrize("name", ["channel, long path", "mixer", "attention"])


def _case(name: str) -> tuple[Call, Leaves]:
    return half_layer(name.split(",")[0], CASES[name], terms=1, inner=33 if name == "channel" else 32)


def recur(call: Call, leaves: Leaves, impl: str = "triton") -> Tensor:
    """`CALLS` applications with the same weights, every other one with the injection, after one without gradient."""
    x, first, second, term = leaves
    with torch.no_grad():
        call(x, first, second, impl=impl)
    for i in range(CALLS):
        x = call(x, first, second, *(term,) * (i % 2 == 0), impl=impl)
    return x


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stack_bytes", [STACK_BYTES, 0])
def test_gradients_stay_within_the_budget_of_separate_calls(
    name: str, stack_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_ops, "STACK_BYTES", stack_bytes)
    call, leaves = _case(name)
    exact = to(leaves, torch.float64)
    truth = gradients(recur(call, exact, "reference"), exact)
    base_out = recur(call, leaves)
    base = gradients(base_out, leaves)
    with shared_weights():
        out = recur(call, leaves)
    assert torch.equal(out, base_out)
    launches.clear()
    got = gradients(out, leaves)
    assert launches["weight_grad"] == 2 * (1 if stack_bytes else CALLS)
    within_budget(got, base, truth)
    with shared_weights():
        again = gradients(recur(call, leaves), leaves)
    assert all(map(torch.equal, got, again))


def test_weights_are_packed_once_for_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    original = weights.pad_rows
    call, leaves = _case("mixer")

    def pad_rows(weight: Tensor, dtype: torch.dtype) -> Tensor:
        packed.extend([weight] * (weight.shape == leaves[1].shape))  # a packed one is longer
        return original(weight, dtype)

    monkeypatch.setattr(weights, "pad_rows", pad_rows)
    with shared_weights():
        recur(call, leaves)
        assert len(packed) == 1
        with torch.no_grad():
            leaves[1].mul_(2.0)
        changed = call(*leaves[:3])
        assert len(packed) == 2
    assert torch.equal(changed, call(*leaves[:3]))
    packed.clear()
    kept = Recursion()
    for _ in range(2):
        with shared_weights(kept), torch.no_grad():
            assert torch.equal(changed, call(*leaves[:3]))
    assert len(packed) == 1


def test_a_graph_gives_the_same_gradients_as_often_and_in_whatever_part_they_are_asked_for() -> None:
    call, leaves = _case("channel, long path")
    with shared_weights():
        out = recur(call, leaves)
    whole = gradients(out, leaves, retain_graph=True)
    (d_x,) = gradients(out, leaves[:1], retain_graph=True)
    (d_down,) = gradients(out, leaves[2:3], retain_graph=True)
    again = gradients(out, leaves)
    assert torch.equal(d_x, whole[0]) and torch.equal(d_down, whole[2])
    assert all(map(torch.equal, whole, again))


def test_calls_of_several_shapes_share_their_weights() -> None:
    call, (x, *weights, _) = _case("mixer")
    out = [call(part, *weights) for part in (x, x[:1], x)]
    wanted = gradients(torch.cat(out), tuple(weights))
    with shared_weights():
        out = [call(part, *weights) for part in (x, x[:1], x)]
    for mine, theirs in zip(gradients(torch.cat(out), tuple(weights)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@EACH
def test_an_empty_batch_has_zero_gradients(name: str) -> None:
    call, (x, first, second, term) = _case(name)
    with shared_weights():
        out = call(x[:0], first, second, term[:0])
    d_first, d_second = torch.autograd.grad(out.sum(), (first, second))
    assert not d_first.any() and not d_second.any()


@EACH
def test_autocast_gives_float32_gradients_of_float16_rows(name: str) -> None:
    call, leaves = _case(name)
    results = []
    for scope in (nullcontext(), shared_weights()):
        with scope, torch.autocast("cpu", dtype=torch.float16):
            out = recur(call, leaves)
        assert out.dtype == torch.float16
        results.append(gradients(out, leaves))
    for mine, theirs in zip(results[1], results[0], strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() <= 1e-2 * theirs.norm()


def test_frozen_weights_get_no_gradient_and_the_input_does() -> None:
    call, (x, first, second, term) = _case("channel, long path")
    frozen = (x, first.detach(), second.detach(), term)
    wanted = gradients(recur(call, frozen), (x, term))
    with shared_weights():
        out = recur(call, frozen)
    launches.clear()
    assert all(map(torch.equal, gradients(out, (x, term)), wanted))
    assert launches["weight_grad"] == 0


@pytest.mark.parametrize("arch", ["trm", "hrm", "rtm"])
def test_a_model_shares_by_default_and_keeps_its_gradients(arch: str) -> None:
    config = ModelConfig(**SMALL | ARCHS[arch] | {"forward_dtype": "float32"})
    torch.manual_seed(0)
    model = RecursiveReasoner(config, impl="triton")
    plain = RecursiveReasoner(config, impl="reference")
    plain.load_state_dict(model.state_dict())
    batch = batch_of(3)
    grads = []
    for each in (model, plain):
        x = each.embed(batch["inputs"], batch["puzzle_identifiers"])
        launches.clear()
        _, logits, _ = each.act_step(each.initial_latents(3), x)
        (logits.square().mean()).backward()
        grads.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
        if each is model:
            layers = sum(config.layers.values())
            assert 0 < launches["weight_grad"] <= 4 * layers
    assert grads[0].keys() == grads[1].keys()
    for name, mine in grads[0].items():
        theirs = grads[1][name]
        assert (mine - theirs).norm() <= 2e-3 * theirs.norm() + 1e-7, name
    assert recursion() is None


def test_contexts_nest() -> None:
    with shared_weights():
        outer = recursion()
        with shared_weights():
            assert recursion() is outer
        assert recursion() is outer
    assert recursion() is None


def test_compiled_code_calls_the_ops_separately() -> None:
    call, leaves = _case("channel")

    def shared(*leaves: Tensor) -> Tensor:
        with shared_weights():
            return recur(call, leaves)

    compiled = torch.compile(shared, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*leaves), recur(call, leaves))


@EACH
def test_checkpoints_whose_backward_runs_outside(name: str) -> None:
    call, leaves = _case(name)
    base = gradients(recur(call, leaves), leaves)
    with shared_weights():
        out = checkpoint(lambda *given: recur(call, given), *leaves, use_reentrant=False)
    assert all(torch.equal(a, b) for a, b in zip(gradients(out, leaves), base, strict=True))
