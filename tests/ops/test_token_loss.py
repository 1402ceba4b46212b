"""Token losses beyond the interpreter gate: the formula, accuracy of every element, counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rtm_kernels.ops.token_loss import reference
from rtm_kernels.ops.token_loss.api import LOSSES, token_loss

pytest.importorskip("triton")

EPS = torch.finfo(torch.float32).eps


def inputs(batch: int, length: int, vocabulary: int, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits as a leaf, and labels of which about a fifth are ignored."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, length, vocabulary, generator=g) * scale
    labels = torch.randint(0, vocabulary, (batch, length), generator=g)
    labels[torch.rand(batch, length, generator=g) < 0.2] = -100
    return logits.requires_grad_(), labels


def test_stablemax_is_the_formula_of_the_paper() -> None:
    logits, labels = torch.tensor([[[2.0, -1.0, 0.0]]]), torch.tensor([[1]])
    shares = (3.0, 0.5, 1.0)
    wanted = math.log(sum(shares) / shares[1])
    for impl in ("reference", "triton"):
        assert token_loss(logits, labels, impl=impl).loss.item() == pytest.approx(wanted, rel=1e-6)


def test_official_losses_are_float64_and_float32() -> None:
    logits, labels = inputs(2, 5, 7)
    assert reference.stablemax_cross_entropy(logits, labels).dtype == torch.float64
    assert reference.softmax_cross_entropy(logits, labels).dtype == torch.float32
    found = {impl: token_loss(logits, labels, impl=impl) for impl in ("reference", "triton")}
    assert (found["reference"].loss.dtype, found["triton"].loss.dtype) == (torch.float64, torch.float32)
    assert {f.total(dtype=torch.float64).dtype for f in found.values()} == {torch.float64}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("confidence", [1e-3, 1.0, 30.0, 1e3, 1e6, 1e20])
def test_every_loss_and_gradient_is_as_good_as_float64(loss: str, confidence: float) -> None:
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 40, 11, generator=g)
    labels = torch.randint(0, 11, (2, 40), generator=g)
    logits.scatter_add_(2, labels.unsqueeze(-1), torch.full((2, 40, 1), confidence) * torch.sign(logits[..., :1]))
    logits.requires_grad_()
    exact = logits.detach().double().requires_grad_()
    got, truth = (token_loss(t, labels, loss=loss, impl=i).loss for t, i in ((logits, "triton"), (exact, "reference")))
    (d_got,), (d_truth,) = torch.autograd.grad(got.sum(), logits), torch.autograd.grad(truth.sum(), exact)
    allowed = 8 * EPS * truth.abs()
    if loss == "softmax_cross_entropy":
        allowed += 4 * EPS * logits.detach().abs().amax(-1)  # exp(x - max) knows x to one rounding
        assert (got - truth).abs().le(allowed + 1e-38).all()
        return
    reached = truth > 1e-15  # below, log(s / sum s) of the float64 formula itself rounds to 0
    assert (got - truth).abs()[reached].le(allowed[reached]).all()
    assert (got[~reached] < 2e-15).all()
    scale = d_truth.abs().amax(-1, keepdim=True)
    assert (d_got - d_truth).abs().le(16 * EPS * (d_truth.abs() + 1e-9 * scale) + 1e-37).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_float16_logits_with_official_slicing(loss: str) -> None:
    full, labels = inputs(2, 9, 13)
    half = full.detach().half().requires_grad_()
    sliced = half[:, 4:]  # as the official head drops the puzzle prefix
    got = token_loss(sliced, labels[:, 4:], loss=loss, impl="triton")
    wanted = token_loss(sliced.double(), labels[:, 4:], loss=loss, impl="reference")
    torch.testing.assert_close(got.loss.double(), wanted.loss, rtol=1e-6, atol=1e-6)
    assert all(map(torch.equal, got[1:], wanted[1:]))
    (d_half,) = torch.autograd.grad(got.loss.sum(), half)
    assert d_half.dtype == torch.float16 and d_half.shape == half.shape and (d_half[:, :4] == 0).all()


@pytest.mark.parametrize("vocabulary", [9, 200])
def test_the_first_of_equal_logits_is_predicted(vocabulary: int) -> None:
    logits = torch.zeros(1, 3, vocabulary)
    logits[0, 1, [4, 8]] = 1.0
    logits[0, 2] = -2.0
    labels = torch.zeros(1, 3, dtype=torch.int32)
    for loss in LOSSES:
        assert token_loss(logits, labels, loss=loss, impl="triton").predictions.tolist() == [[0, 4, 0]]


def test_a_label_out_of_range_gives_nan_and_reads_nothing() -> None:
    logits, _ = inputs(1, 4, 5)
    labels = torch.tensor([[1, 5, -1, 1 << 40]])
    loss = token_loss(logits, labels, impl="triton").loss
    assert loss.isnan().tolist() == [[False, True, True, True]]
    (d_logits,) = torch.autograd.grad(loss.sum(), logits)
    assert d_logits[0, 0].isfinite().all()
