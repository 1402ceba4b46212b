"""The fused block on a GPU at the published sizes: bfloat16 error, bits, batch invariance, graphs, big tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rtm_kernels.block import FusedTRMBlock
from tests.gpu.checks import check_batch_invariance, check_budget, check_repeats, draw, make_block, outputs

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
    check_repeats(lambda: outputs(block, "triton", x, (y,), upstream), 250)


@pytest.mark.gpu
@pytest.mark.parametrize(("mixer", "norm_axis", "length"), SIZES)
def test_a_sample_does_not_depend_on_its_batch(mixer: str, norm_axis: str, length: int) -> None:
    block = full_block(mixer, norm_axis, length)
    x = draw(301, length, WIDTH, torch.bfloat16, torch.device("cuda"))
    with torch.no_grad():
        check_batch_invariance(block, x, (1, 2, 3, 7, 8, 63, 64, 65, 255, 257, 300))


@pytest.mark.gpu
def test_1000_replays_of_fresh_inputs_equal_launches() -> None:
    block = full_block("mlp", "sequence", 97)
    static = draw(8, 97, WIDTH, torch.bfloat16, torch.device("cuda"))
    with torch.no_grad():
        block(static)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = block(static)
        for _ in range(1000):
            static.normal_()
            graph.replay()
            assert torch.equal(captured, block(static))


@pytest.mark.gpu
def test_tensors_beyond_two_to_the_31_elements() -> None:
    """Attention over 768 samples of length 916: gate and up have 2.2e9 elements, and the last samples are right."""
    block = full_block("attention", "sequence", 916)
    x = draw(8, 916, WIDTH, torch.bfloat16, torch.device("cuda")).repeat(96, 1, 1)
    with torch.no_grad():
        whole, part = block(x), block(x[:8])
    assert torch.equal(whole[-8:], part)


def test_the_same_checks_on_this_device(device: torch.device) -> None:
    """Small, in float32: repeats and batch invariance, in the interpreter where there is no GPU."""
    block = make_block(9, 32, "mlp", "sequence", device)
    block.impl = "triton"
    x = draw(4, 9, 32, torch.float32, device)
    with torch.no_grad():
        check_repeats(lambda: [block(x[:2])], 1)
        check_batch_invariance(block, x, (3,))


def test_the_checks_bite(device: torch.device) -> None:
    x = draw(4, 9, 32, torch.float32, device)
    count = iter(range(100))

    def drifting() -> list[Tensor]:
        return [x + next(count)]

    with pytest.raises(AssertionError, match="differs in run"):
        check_repeats(drifting, 2)
    with pytest.raises(AssertionError, match="batch 3"):
        check_batch_invariance(lambda t: t - t.mean(0), x, (3,))
