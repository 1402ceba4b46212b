"""What symmetric weights of a block are made of, for the C++ kernels: picked from the matrices, and put back.

Weights that commute with the symmetries of Sudoku of side n hold each number many times (`train.symmetry`). Channel
`copy * n + digit` is moved by the digits, what is left over is not; hidden units come in copies likewise, those of the
token mix in copies of the 3n rows, columns and boxes. Every function here is differentiable: the gradient of a number
that is picked lies on the entry it was picked from, and the mean over its orbit spreads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig, inner_width
from rtm_kernels.recursion.native import CHANNEL, MLP_MIXER

SIDES = (4, 9, 16, 25)
TOLERANCE = 1e-6
"""How far an entry may be from those of its orbit, in units of the largest entry: rounding, no more."""


class Sizes(NamedTuple):
    """Side n; copies of the digits among the channels and how many are left over, the same of the hidden units of the
    channel mix, and copies of rows, columns and boxes, and the rest, of those of the token mix."""

    side: int
    channels: int
    other_channels: int
    hidden: int
    other_hidden: int
    copies: int
    still: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the ten weights of a layer."""
        F, all_hidden = self.hidden, self.hidden + self.other_hidden
        C, all_channels = self.channels, self.channels + self.other_channels
        kinds, still = (self.copies, 2, 3), (self.still,)
        wide = (2 * F, C), (2 * all_hidden, all_channels), (F, C), (all_hidden, all_channels)
        return [kinds, kinds, kinds, still, still, still, *wide]


def sizes_of(config: ModelConfig) -> Sizes:
    """The sizes of a model for boards of `seq_len` cells."""
    n = math.isqrt(config.seq_len)
    hidden, mixer = inner_width(config.hidden_size, config.expansion), inner_width(n * n, config.expansion)
    return Sizes(n, *divmod(config.hidden_size, n), *divmod(hidden, n), *divmod(mixer, 3 * n))


def layer_weights(layer: Mapping[str, Tensor], z: Sizes) -> list[Tensor]:
    """The ten weights of a layer that `SymmetricProgram.set_weights` takes, contiguous float32."""
    gates, ups = layer[MLP_MIXER[0]].chunk(2)
    parts = [_units(weight, z) for weight in (gates, ups, layer[MLP_MIXER[1]].t())]
    rows = [blocks(weight, z.side, z.hidden, z.channels) for weight in layer[CHANNEL[0]].chunk(2)]
    down = blocks(layer[CHANNEL[1]].t(), z.side, z.hidden, z.channels)
    both = [torch.cat(pair) for pair in zip(*rows, strict=True)]
    return [t.contiguous() for t in (*(p[0] for p in parts), *(p[1] for p in parts), *both, *down)]


def why_not_symmetric(layer: Mapping[str, Tensor], z: Sizes) -> str | None:
    """Which matrix of a layer is not made of these numbers alone, or None."""
    mixer = [_expanded_units(*_units(w, z), z) for w in (*layer[MLP_MIXER[0]].chunk(2), layer[MLP_MIXER[1]].t())]
    channel = [
        expanded(*blocks(w, z.side, z.hidden, z.channels), z.side)
        for w in (*layer[CHANNEL[0]].chunk(2), layer[CHANNEL[1]].t())
    ]
    found = (torch.cat(mixer[:2]), mixer[2].t(), torch.cat(channel[:2]), channel[2].t())
    for name, weight in zip((*MLP_MIXER, *CHANNEL), found, strict=True):
        if (layer[name] - weight).abs().max() > TOLERANCE * layer[name].abs().max():
            return name
    return None


def _units(weight: Tensor, z: Sizes) -> tuple[Tensor, Tensor]:
    """Of hidden units over positions [units, L]: coefficients [copies, line | box, own | near | all] and [still].

    A row weighs its own cells, those of its band and all cells; a box also those of its band and of its stack.
    """
    n, m = z.side, math.isqrt(z.side)
    unit = torch.arange(z.copies, device=weight.device) * 3 * n
    own, near, far = (weight[unit, cell] for cell in (0, n, m * n))  # seen from the first row
    line = torch.stack((own - near, near - far, far), -1)
    own, near, far = (weight[unit + 2 * n, cell] for cell in (0, m, m * n + m))  # from the first box
    box = torch.stack((own - 2 * near + far, near - far, far), -1)
    return torch.stack((line, box), 1), weight[z.copies * 3 * n :, 0]


def _expanded_units(coefficients: Tensor, still: Tensor, z: Sizes) -> Tensor:
    """[units, L] from what `_units` found."""
    n, m = z.side, math.isqrt(z.side)
    cell = torch.arange(n * n, device=still.device)
    row, column, line = cell // n, cell % n, cell[:n, None]
    own = torch.cat((row == line, column == line, row // m * m + column // m == line)).float()
    band, stack = (row // m == line // m).float(), (column // m == line // m).float()
    near = torch.cat((band, stack, (row // m == line // m).float() + (column // m == line % m).float()))
    kinds = torch.cat((coefficients[:, :1].expand(-1, 2 * n, -1), coefficients[:, 1:].expand(-1, n, -1)), 1)
    units = kinds[..., :1] * own + kinds[..., 1:2] * near + kinds[..., 2:]
    return torch.cat((units.reshape(-1, n * n), still[:, None].expand(-1, n * n)))


def blocks(weight: Tensor, n: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Of [out, in] over copies of n digits: what a digit adds to its own copy alone [rows, columns], and a matrix
    [rows + r, columns + c] on the sum over the digits, and on and to what they do not move."""
    out, into = (torch.arange(count, device=weight.device) * n for count in (rows, columns))
    same, other = weight[out][:, into], weight[out][:, into + 1]
    top = torch.cat((other, weight[out][:, columns * n :]), 1)
    rest = torch.cat((weight[rows * n :][:, into], weight[rows * n :, columns * n :]), 1)
    return same - other, torch.cat((top, rest))


def mean_blocks(weight: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """`blocks` of the nearest matrix that commutes with the digits: of the means over orbits, in float32."""
    weight = weight.float()
    rows, columns = (size // n for size in weight.shape)
    copies = weight[: rows * n, : columns * n].reshape(rows, n, columns, n)
    same = copies.diagonal(dim1=1, dim2=3).sum(-1)
    other = (copies.sum((1, 3)) - same) / (n * (n - 1))
    into = weight[rows * n :, : columns * n].reshape(-1, columns, n).mean(-1)
    top = torch.cat((other, weight[: rows * n, columns * n :].reshape(rows, n, -1).mean(1)), 1)
    rest = torch.cat((into, weight[rows * n :, columns * n :]), 1)
    return same / n - other, torch.cat((top, rest))


def expanded(own: Tensor, shared: Tensor, n: int) -> Tensor:
    """The matrix that `blocks` found these of."""
    rows, columns = own.shape
    same = torch.eye(n, device=own.device, dtype=own.dtype)
    copies = torch.kron(own, same) + torch.kron(shared[:rows, :columns], torch.ones_like(same))
    top = torch.cat((copies, shared[:rows, columns:].repeat_interleave(n, 0)), 1)
    rest = torch.cat((shared[rows:, :columns].repeat_interleave(n, 1), shared[rows:, columns:]), 1)
    return torch.cat((top, rest))
