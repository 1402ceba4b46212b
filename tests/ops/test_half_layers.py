"""swiglu_norm, mixer_norm and attention_norm beyond the gates: gradients, bits and dtypes.

`tests/proof` holds every op to opcheck, every layout, poisoned memory and torch.compile.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rtm_kernels.block import FusedTRMBlock
from rtm_kernels.impl import launches
from tests.ops.support import gradients, half_layer, to, within_budget

pytest.importorskip("triton")

EVERY = pytest.mark.parametrize("name", ["channel", "mixer", "mixer hidden", "attention", "attention qk_norm"])
LONG = {"channel": (7, 70), "mixer": (70, 9), "mixer hidden": (70, 9)}
"""L and D at which more than one kernel computes the row."""
WIDE = {"channel": (1, 7, 130), "mixer": (1, 131, 9), "mixer hidden": (1, 131, 9), "attention": (1, 5, 140),
        "attention qk_norm": (1, 5, 132)}  # fmt: skip
"""Shapes with rows wider than any tile."""


@EVERY
def test_float64_gradients_are_the_derivatives(name: str) -> None:
    call, leaves = half_layer(name, (2, 3, 4), terms=2, inner=3)
    assert torch.autograd.gradcheck(call, to(leaves, torch.float64), nondet_tol=0.0, fast_mode=True)


@pytest.mark.parametrize(
    ("name", "shape"),
    [*WIDE.items(), *((name, (2, 6, 12)) for name in (*WIDE, "attention causal", "attention of one head"))],
)
def test_float64_equals_the_reference(name: str, shape: tuple[int, ...]) -> None:
    call, leaves = half_layer(name, shape, terms=3)  # more than the kernels add
    leaves = to(leaves, torch.float64)
    got, wanted = call(*leaves), call(*leaves, impl="reference")
    pairs = [(got, wanted), *zip(gradients(got, leaves), gradients(wanted, leaves), strict=True)]
    for mine, right in pairs:
        assert (mine - right).norm() <= 1e-12 * right.norm()


@EVERY
def test_float16_stays_within_twice_the_reference(name: str) -> None:
    call, leaves = half_layer(name, (2, 9, 64) if "mixer" not in name else (2, 33, 40), terms=2, inner=96)
    half = to(leaves, torch.float16)
    exact = to(half, torch.float64)
    got, base, truth = call(*half), call(*half, impl="reference"), call(*exact, impl="reference")
    found = [(out, *gradients(out, ls)) for out, ls in ((got, half), (base, half), (truth, exact))]
    within_budget(*found, band=1e-3)


@EVERY
def test_float32_weights_give_float32_gradients_to_half_latents(name: str) -> None:
    call, (x, *weights) = half_layer(name, (2, 9, 32))
    (half,) = to((x,), torch.float16)
    found = gradients(call(half, *weights), (half, *weights))
    assert [t.dtype for t in found] == [torch.float16, torch.float32, torch.float32]
    exact = to((half, *(w.half() for w in weights)), torch.float64)
    truth = gradients(call(*exact, impl="reference"), exact)
    for mine, right in zip(found, truth, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=0, atol=3e-3 * right.abs().max().item())


@EVERY
@pytest.mark.parametrize("long", [False, True])
def test_a_sample_does_not_depend_on_its_batch(name: str, long: bool) -> None:
    if long and name not in LONG:
        pytest.skip("every attention takes the same path")
    batch = 66 if name == "channel" else 6  # more than one tile of rows
    call, (x, first, second, term) = half_layer(name, (batch, *(LONG[name] if long else (5, 24))), terms=1)
    whole = call(x, first, second, term)
    upstream = torch.randn(whole.shape, generator=torch.Generator().manual_seed(7))
    (d_whole,) = torch.autograd.grad(whole, x, upstream)
    for part in (slice(3, 4), slice(1, batch // 2), slice(1, batch)):
        out = call(x[part], first, second, term[part])
        assert torch.equal(out, whole[part])
        assert torch.equal(torch.autograd.grad(out, x, upstream[part])[0][part], d_whole[part])


@EVERY
def test_same_bits_on_every_run_and_a_nan_stays_in_its_sample(name: str) -> None:
    call, leaves = half_layer(name, (3, 13, 32))
    first, again = call(*leaves), call(*leaves)
    assert torch.equal(first, again)
    assert all(map(torch.equal, gradients(first, leaves), gradients(again, leaves)))
    poisoned = leaves[0].detach().clone()
    poisoned[1, 3, 5] = float("nan")
    out = call(poisoned, *leaves[1:])
    reached = {"channel": out[1, 3], "mixer": out[1, :, 5]}.get(name, out[1])
    assert reached.isnan().all()
    assert torch.equal(out.isnan().sum(), torch.tensor(reached.numel()))
    assert torch.equal(out[::2], first[::2])


@pytest.mark.parametrize("name", ["channel", "mixer", "mixer hidden"])
@pytest.mark.parametrize("features", [24, 70])
def test_a_transposed_latent_is_read_without_a_copy(name: str, features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    call, (x, *weights) = half_layer(name, (2, 17, features) if name == "channel" else (2, features, 17))
    turned = x.detach().transpose(1, 2).contiguous().transpose(1, 2)
    copied: list[tuple[int, ...]] = []
    for method in ("contiguous", "reshape", "clone"):
        original = getattr(Tensor, method)

        def copying(self: Tensor, *args: Any, original: Any = original, **kwargs: Any) -> Tensor:
            result: Tensor = original(self, *args, **kwargs)
            copied.extend([tuple(self.shape)] * (result.data_ptr() != self.data_ptr()))
            return result

        monkeypatch.setattr(Tensor, method, copying)
    out = call(turned, *weights)
    assert x.shape not in copied
    torch.testing.assert_close(out, call(x, *weights, impl="reference"))


@pytest.mark.parametrize("impl", ["triton", "auto"])
def test_compiles_without_a_graph_break(impl: str) -> None:
    torch._dynamo.reset()
    call, leaves = half_layer("channel", (2, 5, 16), terms=2)

    def twice(*leaves: Tensor) -> Tensor:
        return 2 * call(*leaves, impl=impl)

    got, wanted = torch.compile(twice, fullgraph=True, backend="aot_eager")(*leaves), twice(*leaves)
    assert torch.equal(got, wanted)
    for a, b in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(a, b)


@EVERY
def test_useful_flops_are_counted_forward_and_twice_that_backward(name: str) -> None:
    call, leaves = half_layer(name, (2, 5, 16), inner=24)
    with FlopCounterMode(display=False) as counter:
        call(*leaves).sum().backward()
    batch, length, width = leaves[0].shape
    projections = 8 * batch * length * width**2 + 4 * batch * length**2 * width
    forward = projections if "attention" in name else 2 * 3 * 24 * leaves[0].numel()
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize(
    ("name", "shape", "forward", "backward"),
    [
        ("channel", (2, 5, 16), "fused", "norm_backward fused_input_grad fused_weight_grad"),
        ("channel", (2, 5, 100), "inject gate_up gemm_norm",
         "inject norm_backward hidden_backward gemm weight_grad weight_grad"),
        ("mixer", (2, 100, 16), "inject gate_up gemm norm",
         "inject norm_backward hidden_backward gemm weight_grad weight_grad"),
        ("mixer hidden", (2, 5, 16), "fused norm", "norm_backward fused_input_grad fused_weight_grad"),
        ("attention", (2, 5, 16), "qkv gemm_norm",
         "qkv norm_backward gemm turn_backward turn_backward gemm weight_grad weight_grad"),
    ],
)  # fmt: skip
def test_launches(name: str, shape: tuple[int, ...], forward: str, backward: str) -> None:
    call, leaves = half_layer(name, shape, terms="inject" in forward)
    launches.clear()
    out = call(*leaves)
    assert sorted(launches.elements()) == sorted(forward.split())
    launches.clear()
    out.sum().backward()
    assert sorted(launches.elements()) == sorted(backward.split())


@EVERY
def test_autocast_computes_in_the_autocast_dtype(name: str) -> None:
    call, leaves = half_layer(name, (2, 5, 16), terms=1)
    with torch.autocast("cpu", dtype=torch.float16):
        got, wanted = call(*leaves), call(*leaves, impl="reference")
    assert got.dtype == wanted.dtype == torch.float16
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)
    assert all(g.dtype == torch.float32 for g in gradients(got, leaves))


@EVERY
def test_bfloat16_is_interpreted_and_rounded_as_the_hardware_rounds_it(name: str) -> None:
    call, leaves = half_layer(name, (2, 5, 16), terms=1)
    truth = call(*to(leaves, torch.float64), impl="reference")
    leaves = to(leaves, torch.bfloat16)
    error, base = ((call(*leaves, impl=impl).double() - truth).norm() for impl in ("triton", "reference"))
    assert error <= 2 * base


@EVERY
def test_double_backward_is_refused(name: str) -> None:
    call, leaves = half_layer(name, (1, 3, 8))
    (d_x,) = torch.autograd.grad(call(*leaves).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="norm_backward"):
        d_x.sum().backward()


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_a_latent_reaches_its_kernel_through_few_files(mixer: str) -> None:
    """Files of the package that receive the latent or a view of it, from the block to its first launch."""
    block = FusedTRMBlock(16, 5, mixer=mixer, num_heads=2, impl="triton")
    x, entered = torch.randn(2, 5, 16), dict[str, None]()

    def holds_x(value: object) -> bool:
        if isinstance(value, (list, tuple)):
            return any(map(holds_x, value))
        return isinstance(value, Tensor) and value.untyped_storage().data_ptr() == x.data_ptr()

    def watch(frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and "/rtm_kernels/" in path and holds_x(tuple(frame.f_locals.values())):
            entered[path.split("/rtm_kernels/")[-1]] = None
            if frame.f_code.co_name == "launch":
                sys.setprofile(None)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        with torch.no_grad():
            block(x)
    finally:
        sys.setprofile(before)
    assert "ops/launch.py" in entered and len(entered) <= 8, list(entered)
