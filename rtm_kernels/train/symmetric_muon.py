"""Muon for matrices that commute with permutations of a task's values, computed on their small blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rtm_kernels.recursion.symmetric_weights import expanded, mean_blocks
from rtm_kernels.train.symmetry import parts_of


class SymmetricMuon(torch.optim.Muon):
    """`torch.optim.Muon` for the matrices of channel mixes, whose gradients are symmetric as they are.

    In an orthonormal basis of what the n values move, such a matrix is block diagonal: n - 1 times one block, and one
    of the sums over the values with what they do not move. Orthogonalising the matrix orthogonalises each block, so
    the step is that of the whole matrix (`adjust_lr_fn="match_rms_adamw"` with its shape) for a fraction of the work.
    The blocks are read from the weights at every step, so the state is the momentum alone.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], values: int, lr: float, weight_decay: float) -> None:
        self._weights, self._values, self._blocks = dict(weights), values, dict[str, list[nn.Parameter]]()
        groups = []
        for name, weight in self._weights.items():
            self._blocks[name] = [nn.Parameter(block) for block in self._split(name, weight.detach())]
            for block in self._blocks[name]:
                factor = math.sqrt(max(weight.shape) / max(block.shape))
                groups.append({"params": [block], "lr": lr * factor, "weight_decay": weight_decay / factor})
        super().__init__(groups, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on every weight that has a gradient."""
        used = {name: w for name, w in self._weights.items() if w.grad is not None}
        for name, weight in used.items():
            assert weight.grad is not None
            for block, value, grad in zip(
                self._blocks[name], self._split(name, weight), self._split(name, weight.grad), strict=True
            ):
                block.copy_(value)
                block.grad = grad
        super().step(closure)
        for name, weight in used.items():
            weight.copy_(self._joined(name))
            for block in self._blocks[name]:
                block.grad = None

    def _split(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks of a weight, those of its parts below one another."""
        n, found = self._values, []
        for part in weight.chunk(parts_of(name)):
            own, shared = mean_blocks(part, n)
            rows, columns = own.shape
            sums = self._scaled(shared, rows, columns, math.sqrt(n))
            sums[:rows, :columns] += own
            found.append((own, sums))
        return torch.cat([own for own, _ in found]), torch.cat([sums for _, sums in found])

    def _joined(self, name: str) -> Tensor:
        n, parts = self._values, parts_of(name)
        weights = []
        for own, sums in zip(*(block.chunk(parts) for block in self._blocks[name]), strict=True):
            rows, columns = own.shape
            shared = sums.clone()
            shared[:rows, :columns] -= own
            weights.append(expanded(own, self._scaled(shared, rows, columns, 1 / math.sqrt(n)), n))
        return torch.cat(weights)

    @staticmethod
    def _scaled(shared: Tensor, rows: int, columns: int, factor: float) -> Tensor:
        """`shared` with its rows and columns of copies times `factor` each."""
        scaled = shared.clone()
        scaled[:rows] *= factor
        scaled[:, :columns] *= factor
        return scaled
