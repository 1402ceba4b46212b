"""Weights shared by the calls of a recursion: the gradients of separate calls, from one product for each weight."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import InputError
from rtm_kernels.impl import launches
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.ops.shared import STACK_BYTES, recursion, shared_weights
from rtm_kernels.ops.swiglu import registration
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm
from tests.ops.support import swiglu_inputs, to
from tests.small_models import ARCHS, SMALL, batch_of

pytest.importorskip("triton")

Call = Callable[..., Tensor]
CALLS = 3


def _attention_inputs(shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    width = shape[2]
    x, term = (torch.randn(shape, generator=generator).requires_grad_() for _ in range(2))
    weights = (torch.randn(n * width, width, generator=generator) * width**-0.5 for n in (3, 1))
    return x, *(w.requires_grad_() for w in weights), term


def _case(name: str) -> tuple[Call, tuple[Tensor, ...], str]:
    """An op as call(x, first weight, second weight, injection=, impl=), its leaves, and its weight-gradient kernel."""
    if name == "channel, long path":
        x, *weights, (term,) = swiglu_inputs((3, 7, 72), -1, inner=48, terms=1)
        return swiglu_norm, (x, *weights, term), "weight_grad"
    if name == "channel, fused":
        x, *weights, (term,) = swiglu_inputs((3, 7, 24), -1, inner=33, terms=1)
        return swiglu_norm, (x, *weights, term), "fused_weight_grad"
    if name.startswith("mixer"):
        length = 129 if "long" in name else 9
        x, *weights, (term,) = swiglu_inputs((3, length, 10), 1, inner=32, terms=1)
        axis = "hidden" if "hidden" in name else "sequence"
        kernel = "weight_grad" if "long" in name else "fused_weight_grad"
        return partial(mixer_norm, norm_axis=axis), (x, *weights, term), kernel
    tables = rope_tables(6, 8, 10000.0)
    return (
        partial(attention_norm, num_heads=2, cos_sin=tables),
        _attention_inputs((3, 6, 16)),
        ("attention_norm.weight_grad"),
    )


CASES = (
    "channel, long path", "channel, fused", "mixer", "mixer, hidden", "mixer, long path", "attention",
)  # fmt: skip


def recur(call: Call, leaves: tuple[Tensor, ...], impl: str = "triton") -> Tensor:
    """`CALLS` applications with the same weights, every other one with the injection, after one without gradient."""
    x, first, second, term = leaves
    with torch.no_grad():
        call(x, first, second, impl=impl)
    for i in range(CALLS):
        x = call(x, first, second, injection=(term,) if i % 2 == 0 else (), impl=impl)
    return x


def gradients(out: Tensor, leaves: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, ...]:
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    return torch.autograd.grad(out, leaves, upstream, **options)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stack_bytes", [STACK_BYTES, 0])
def test_gradients_stay_within_the_budget_of_separate_calls(name: str, stack_bytes: int) -> None:
    call, leaves, kernel = _case(name)
    exact = to(leaves, torch.float64)
    truth = gradients(recur(call, exact, "reference"), exact)
    base_out = recur(call, leaves)
    base = gradients(base_out, leaves)
    with shared_weights(stack_bytes):
        out = recur(call, leaves)
    assert torch.equal(out, base_out)
    launches.clear()
    got = gradients(out, leaves)
    products = 2 if kernel != "fused_weight_grad" else 1
    assert launches[kernel] == products * (1 if stack_bytes else CALLS)
    for mine, theirs, right in zip(got, base, truth, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape
        error, budget = (mine.double() - right).norm(), 2 * (theirs.double() - right).norm()
        assert error <= budget + 4 * torch.finfo(torch.float32).eps * right.norm()
    with shared_weights(stack_bytes):
        again = gradients(recur(call, leaves), leaves)
    assert all(map(torch.equal, got, again))


@pytest.mark.parametrize("name", ["long path", "mixer", "attention"])
def test_float64_gradients_are_the_derivatives(name: str) -> None:
    if name == "attention":
        call, leaves, _ = _case(name)
    else:
        call: Call = swiglu_norm if name == "long path" else mixer_norm
        shape, axis = ((1, 2, 66), -1) if name == "long path" else ((1, 3, 2), 1)
        x, *weights, (term,) = swiglu_inputs(shape, axis, inner=3, terms=1)
        leaves = (x, *weights, term)

    def shared(*leaves: Tensor) -> Tensor:
        with shared_weights():
            return recur(call, leaves)

    assert torch.autograd.gradcheck(shared, to(leaves, torch.float64), nondet_tol=0.0, fast_mode=True)


def test_weights_are_packed_once_for_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    original = registration.pack
    monkeypatch.setattr(registration, "pack", lambda *args: packed.append(args) or original(*args))
    call, leaves, _ = _case("mixer")
    with shared_weights():
        recur(call, leaves)
        assert len(packed) == 1
        with torch.no_grad():
            leaves[1].mul_(2.0)
        changed = call(*leaves[:3], impl="triton")
        assert len(packed) == 2
    assert torch.equal(changed, call(*leaves[:3], impl="triton"))


def test_a_graph_gives_the_same_gradients_as_often_and_in_whatever_part_they_are_asked_for() -> None:
    call, leaves, _ = _case("channel, long path")
    with shared_weights():
        out = recur(call, leaves)
    whole = gradients(out, leaves, retain_graph=True)
    (d_x,) = gradients(out, leaves[:1], retain_graph=True)
    (d_down,) = gradients(out, leaves[2:3], retain_graph=True)
    again = gradients(out, leaves)
    assert torch.equal(d_x, whole[0]) and torch.equal(d_down, whole[2])
    assert all(map(torch.equal, whole, again))


def test_calls_of_several_shapes_share_their_weights() -> None:
    call, (x, *weights, _), _ = _case("mixer")
    out = [call(part, *weights, impl="triton") for part in (x, x[:1], x)]
    wanted = gradients(torch.cat(out), tuple(weights))
    with shared_weights():
        out = [call(part, *weights, impl="triton") for part in (x, x[:1], x)]
    for mine, theirs in zip(gradients(torch.cat(out), tuple(weights)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["channel, long path", "mixer", "attention"])
def test_an_empty_batch_has_zero_gradients(name: str) -> None:
    call, (x, first, second, term), _ = _case(name)
    with shared_weights():
        out = call(x[:0], first, second, injection=(term[:0],), impl="triton")
    d_first, d_second = torch.autograd.grad(out.sum(), (first, second))
    assert not d_first.any() and not d_second.any()


@pytest.mark.parametrize("name", ["channel, long path", "mixer", "attention"])
def test_autocast_gives_float32_gradients_of_float16_rows(name: str) -> None:
    call, leaves, _ = _case(name)
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
    call, (x, first, second, term), kernel = _case("channel, long path")
    frozen = (x, first.detach(), second.detach(), term)
    wanted = gradients(recur(call, frozen), (x, term))
    with shared_weights():
        out = recur(call, frozen)
    launches.clear()
    assert all(map(torch.equal, gradients(out, (x, term)), wanted))
    assert launches[kernel] == 0


@pytest.mark.parametrize("name", ["channel, long path", "mixer", "attention"])
def test_useful_flops_are_those_of_separate_calls(name: str) -> None:
    call, leaves, _ = _case(name)
    counts = []
    for scope in (nullcontext(), shared_weights()):
        with FlopCounterMode(display=False) as counter:
            with scope:
                out = recur(call, leaves)
            gradients(out, leaves)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


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
            names = ("weight_grad", "fused_weight_grad", "attention_norm.weight_grad")
            assert 0 < sum(launches[n] for n in names) <= 4 * layers
    assert grads[0].keys() == grads[1].keys()
    for name, mine in grads[0].items():
        theirs = grads[1][name]
        assert (mine - theirs).norm() <= 2e-3 * theirs.norm() + 1e-7, name
    assert recursion() is None


def test_contexts_nest_and_check_their_limit() -> None:
    with shared_weights():
        outer = recursion()
        with shared_weights():
            assert recursion() is outer
        assert recursion() is outer
    assert recursion() is None
    with pytest.raises(InputError, match="stack_bytes=-1"):
        shared_weights(-1)


def test_compiled_code_calls_the_ops_separately() -> None:
    call, leaves, _ = _case("channel, fused")

    def shared(*leaves: Tensor) -> Tensor:
        with shared_weights():
            return recur(call, leaves)

    compiled = torch.compile(shared, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*leaves), recur(call, leaves))


@pytest.mark.parametrize("op", ["swiglu_norm", "mixer_norm"])
def test_opcheck_of_the_split_backward(op: str) -> None:
    x, gate_up, down, injection = (
        t.detach() if isinstance(t, Tensor) else tuple(i.detach() for i in t)
        for t in swiglu_inputs((2, 6, 6), -1, inner=16, terms=1)
    )
    ops, options = torch.ops.rtm_kernels, (("sequence",) if op == "mixer_norm" else ()) + (1e-5,)
    packed = registration.pack(gate_up, down, x.dtype)
    weights = (packed.gate_up, packed.down)
    y, rstd = getattr(ops, op)(x, *weights, list(injection), *options)
    shape = (2, 6, 6) if op == "mixer_norm" else (12, 6)
    slots = [torch.zeros(shape), torch.zeros(shape)]
    saved = (torch.ones_like(y), y, rstd, x, *weights, list(injection), *options, slots)
    torch.library.opcheck(getattr(ops, f"{op}_input_grad"), saved)
    torch.library.opcheck(getattr(ops, f"{op}_weight_grad"), (slots, *weights))


def test_opcheck_of_the_split_backward_of_attention() -> None:
    x, qkv, o, _ = (t.detach() for t in _attention_inputs((2, 6, 16)))
    ops = torch.ops.rtm_kernels
    y, rstd, _ = ops.attention_norm(x, [], qkv, o, None, None, 2, False, False, 1e-5, False)
    slots = [torch.zeros(12, width) for width in (16, 48, 16, 16)]
    saved = (torch.ones_like(y), y, rstd, x, qkv, o, None, None, 2, False, False, 1e-5, slots)
    torch.library.opcheck(ops.attention_norm_input_grad, saved)
    torch.library.opcheck(ops.attention_norm_weight_grad, (slots,))
