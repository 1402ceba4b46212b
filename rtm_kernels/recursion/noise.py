"""Random numbers by a hash: the same for a sample in any batch, and pure tensor operations, so a graph records them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


def hashed(seed: Tensor, step: Tensor, shape: Sequence[int], draw: int = 0) -> Tensor:
    """Uniform numbers [n, *shape] of 32 bits in int64, each a hash of its seed [n], step [n], place and draw."""
    place = torch.arange(math.prod(shape), device=seed.device)
    h = _hash(seed.long() ^ (step.long() << 20))
    h = _hash(h + draw) if draw else h
    return _hash(h[:, None] ^ (place * 2 + 1)).reshape(-1, *shape)


def _hash(h: Tensor) -> Tensor:
    """A 32-bit integer hash (Wellons' lowbias32), computed in int64."""
    h = (h ^ (h >> 16)) * 0x7FEB352D & WORD
    h = (h ^ (h >> 15)) * 0x846CA68B & WORD
    return h ^ (h >> 16)


def truncated_normal(seed: Tensor, draw: int, shape: Sequence[int]) -> Tensor:
    """Numbers [n, *shape] of a normal truncated at two deviations and rescaled to deviation 1, float32.

    Each is a hash of its seed [n], `draw` and its place.
    """
    low = math.erf(-2 / math.sqrt(2))
    uniform = (hashed(seed, torch.zeros_like(seed), shape, 1 + draw).double() + 0.5) / 2**32
    scale = 1 / math.sqrt(1 - 4 * math.exp(-2.0) / math.sqrt(2 * math.pi) / -low)
    return (torch.erfinv(low * (1 - 2 * uniform)) * math.sqrt(2) * scale).float()


@torch.no_grad()
def normal_like(latent: Tensor, step: int) -> Tensor:
    """Normal numbers of the shape of `latent` [B, L, D], each a hash of its row's bits, `step` and its place.

    A row of other bits (another puzzle, first latent or ACT step) gets other numbers.
    """
    bits = latent.float().view(torch.int32).flatten(1).long() & WORD
    place = torch.arange(bits.shape[1], device=bits.device) * 2 + 1
    seed = _hash((bits * place & WORD).sum(1) & WORD)
    steps = torch.full_like(seed, step)
    first, second = (hashed(seed, steps, latent.shape[1:], draw).double() + 0.5 for draw in (1, 2))
    radius = torch.sqrt(-2 * torch.log(first / 2**32))
    return (radius * torch.cos(2 * math.pi * second / 2**32)).to(latent.dtype)
