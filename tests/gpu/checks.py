"""What holds on every device, as functions of device, dtype and sizes: the GPU tests call them at full size, and the
tests on the CPU call the same functions small, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rtm_kernels.block import FusedTRMBlock

BAND = 8
"""Rounding band of one layer in epsilons of the dtype, relative to the largest element or the norm of the truth."""


def make_block(length: int, width: int, mixer: str, norm_axis: str, device: torch.device) -> FusedTRMBlock:
    """A block with float32 weights, always the same."""
    torch.manual_seed(0)
    block = FusedTRMBlock(width, length, mixer=mixer, norm_axis=norm_axis, num_heads=max(1, width // 64), expansion=1)
    return block.to(device)


def draw(batch: int, length: int, width: int, dtype: torch.dtype, device: torch.device, seed: int = 1) -> Tensor:
    """[B, L, D] of standard normal values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, width, generator=generator).to(device, dtype)


def outputs(block: nn.Module, impl: str, x: Tensor, terms: tuple[Tensor, ...], upstream: Tensor) -> list[Tensor]:
    """The block's output and the gradients of input, terms and weights under a random upstream gradient."""
    for module in block.modules():
        if isinstance(module, FusedTRMBlock):
            module.impl = impl
    leaves = [t.detach().requires_grad_() for t in (x, *terms)]
    y = block(leaves[0], tuple(leaves[1:]))
    return [y, *torch.autograd.grad(y, [*leaves, *block.parameters()], upstream)]


def check_budget(block: FusedTRMBlock, batch: int, length: int, width: int, dtype: torch.dtype) -> None:
    """Error of output and gradients against float64: at most twice the reference's in this dtype, plus one band."""
    device = next(block.parameters()).device
    values = [draw(batch, length, width, dtype, device, seed) for seed in range(4)]
    x, terms, upstream = values[0], tuple(values[1:3]), values[3]
    got = outputs(block, "triton", x, terms, upstream)
    base = outputs(block, "reference", x, terms, upstream)
    double = make_block(length, width, block.mixer, block.norm_axis, device).double()
    truth = outputs(double, "reference", x.double(), tuple(t.double() for t in terms), upstream.double())
    eps = torch.finfo(dtype).eps
    for i, (mine, theirs, true) in enumerate(zip(got, base, truth, strict=True)):
        for size in (lambda t: t.abs().max(), torch.linalg.vector_norm):
            error, allowed = size(mine - true), 2 * size(theirs - true) + BAND * eps * size(true)
            assert error <= allowed, f"result {i}: error {error:.3g}, allowed {allowed:.3g}"


def check_repeats(run: Callable[[], list[Tensor]], times: int) -> None:
    """The same bits every time."""
    first = [t.clone() for t in run()]
    for turn in range(times):
        for i, (a, b) in enumerate(zip(first, run(), strict=True)):
            assert torch.equal(a, b), f"result {i} differs in run {turn}"


def check_batch_invariance(run: Callable[[Tensor], Tensor], x: Tensor, sizes: tuple[int, ...]) -> None:
    """A sample has the same bits whatever the batch and its place in it."""
    alone = run(x[:1])
    for size in sizes:
        place = size // 2
        batch = x[1 : size + 1].clone()
        batch[place] = x[0]
        assert torch.equal(run(batch)[place], alone[0]), f"batch {size}"
