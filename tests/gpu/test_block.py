"""The fused block on a GPU at the published sizes: bfloat16 error, bits, batch invariance, graphs, big tensors."""

from __future__ import annotations

import pytest
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


def check_budget(
    block: FusedTRMBlock, batch: int, length: int, width: int, dtype: torch.dtype, reference: str | None = None
) -> None:
    """Error of output and gradients against float64: at most twice the reference's in this dtype, plus one band.

    The reference runs on the block's device, or on `reference`.
    """
    device = next(block.parameters()).device
    values = [draw(batch, length, width, dtype, device, seed) for seed in range(4)]
    got = [t.to(reference or device) for t in outputs(block, "triton", values[0], tuple(values[1:3]), values[3])]
    x, *terms, upstream = (t.to(reference or device) for t in values)
    plain = make_block(length, width, block.mixer, block.norm_axis, x.device)
    base = outputs(plain, "reference", x, tuple(terms), upstream)
    truth = outputs(plain.double(), "reference", x.double(), tuple(t.double() for t in terms), upstream.double())
    eps = torch.finfo(dtype).eps
    for i, (mine, theirs, true) in enumerate(zip(got, base, truth, strict=True)):
        for size in (lambda t: t.abs().max(), torch.linalg.vector_norm):
            error, allowed = size(mine - true), 2 * size(theirs - true) + BAND * eps * size(true)
            assert error <= allowed, f"result {i}: error {error:.3g}, allowed {allowed:.3g}"


SIZES = [("mlp", "sequence", 97), ("mlp", "hidden", 97), ("attention", "sequence", 916)]
WIDTH = 512


def full_block(mixer: str, norm_axis: str, length: int) -> FusedTRMBlock:
    torch.manual_seed(0)
    return FusedTRMBlock(WIDTH, length, mixer=mixer, norm_axis=norm_axis, impl="triton").cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("mixer", "norm_axis", "length"), SIZES)
def test_error_is_within_the_budget(mixer: str, norm_axis: str, length: int, dtype: torch.dtype) -> None:
    check_budget(make_block(length, WIDTH, mixer, norm_axis, torch.device("cuda")), 3, length, WIDTH, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize(("mixer", "norm_axis", "length"), SIZES)
def test_250_runs_have_the_same_bits(mixer: str, norm_axis: str, length: int) -> None:
    block, cuda = full_block(mixer, norm_axis, length), torch.device("cuda")
    x, y, upstream = (draw(64, length, WIDTH, torch.bfloat16, cuda, seed) for seed in range(3))
    first = [t.clone() for t in outputs(block, "triton", x, (y,), upstream)]
    for _ in range(250):
        assert all(map(torch.equal, first, outputs(block, "triton", x, (y,), upstream)))


@pytest.mark.gpu
@pytest.mark.parametrize(("mixer", "norm_axis", "length"), SIZES)
def test_a_sample_does_not_depend_on_its_batch(mixer: str, norm_axis: str, length: int) -> None:
    block = full_block(mixer, norm_axis, length)
    x = draw(301, length, WIDTH, torch.bfloat16, torch.device("cuda"))
    with torch.no_grad():
        alone = block(x[:1])
        for size in (1, 2, 3, 7, 8, 63, 64, 65, 255, 257, 300):
            batch = x[1 : size + 1].clone()
            batch[size // 2] = x[0]
            assert torch.equal(block(batch)[size // 2], alone[0]), f"batch {size}"


@pytest.mark.gpu
def test_tensors_beyond_two_to_the_31_elements() -> None:
    """Attention over 768 samples of length 916: gate and up have 2.2e9 elements, and the last samples are right."""
    block = full_block("attention", "sequence", 916)
    x = draw(8, 916, WIDTH, torch.bfloat16, torch.device("cuda")).repeat(96, 1, 1)
    with torch.no_grad():
        whole, part = block(x), block(x[:8])
    assert torch.equal(whole[-8:], part)
