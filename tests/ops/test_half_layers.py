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
from tests.ops.support import LAYOUTS, gradients, half_layer, laid_out, to

pytest.importorskip("triton")

EVERY = pytest.mark.parametrize("name", ["channel", "mixer", "mixer hidden", "attention", "attention qk_norm"])


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


def test_auto_compiles_without_a_graph_break() -> None:
    torch._dynamo.reset()
    call, leaves = half_layer("channel", (2, 5, 16), terms=2)

    def twice(*leaves: Tensor) -> Tensor:
        return 2 * call(*leaves, impl="auto")

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
        ("channel", (2, 5, 16), "fused", "norm_backward fused_input_grad weight_grad weight_grad"),
        ("channel", (2, 5, 100), "inject gate_up gemm_norm",
         "inject norm_backward hidden_backward gemm weight_grad weight_grad"),
        ("mixer", (2, 100, 16), "inject gate_up gemm norm",
         "inject norm_backward hidden_backward gemm weight_grad weight_grad"),
        ("mixer hidden", (2, 5, 16), "fused norm", "norm_backward fused_input_grad weight_grad weight_grad"),
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
def test_bfloat16_is_interpreted_and_rounded_as_the_hardware_rounds_it(name: str) -> None:
    call, leaves = half_layer(name, (2, 5, 16), terms=1)
    truth = call(*to(leaves, torch.float64), impl="reference")
    leaves = to(leaves, torch.bfloat16)
    error, base = ((call(*leaves, impl=impl).double() - truth).norm() for impl in ("triton", "reference"))
    assert error <= 2 * base


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("name", ["channel", "mixer", "attention"])
def test_the_strides_of_an_injection_change_no_bit(name: str, layout: str) -> None:
    shape = (2, 5, 16)
    call, leaves = half_layer(name, shape, terms=2)
    x, *weights, first, _ = to(leaves, torch.bfloat16)
    wide = laid_out(shape, layout, torch.Generator().manual_seed(1)).detach()
    memory = torch.empty(0).set_(wide.untyped_storage()).bfloat16()
    second = memory.as_strided(shape, wide.stride(), wide.storage_offset())
    dense = second.clone(memory_format=torch.contiguous_format)
    assert layout == "offset" or second.stride() != dense.stride()
    found = [(*gradients(y, (x, *weights)), y) for y in (call(x, *weights, first, t) for t in (second, dense))]
    assert all(map(torch.equal, *found))


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
