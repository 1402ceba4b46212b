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
def normal(seed: Tensor, step: Tensor, shape: Sequence[int], number: int) -> Tensor:
    """Normal numbers [n, *shape] in float64, each a hash of its seed [n], `step` [n] taken, place and `number`.

    A draw is the sum of twelve uniform numbers, less their mean: a normal one but for its tails beyond 6, by exact
    operations alone, so that its bits depend neither on the batch nor on the device.
    """
    total = torch.zeros((), dtype=torch.int64, device=seed.device)
    for draw in range(6):
        h = hashed(seed, step, shape, 1 + 6 * number + draw)
        total = total + (h >> 16) + (h & 0xFFFF)
    return (total - 6 * 0xFFFF).double() * 2.0**-16
