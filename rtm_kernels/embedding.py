"""Embedding tables of a recursive reasoner: dense ones for tokens and positions, a sparse one for puzzles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtm_kernels.block import trunc_normal


class Embedding(nn.Module):
    """A table [num, dim] cast to the compute dtype on use (official name `embedding_weight`)."""

    def __init__(self, num: int, dim: int, std: float) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(trunc_normal(num, dim, std=std))


class SparseEmbedding(nn.Module):
    """Puzzle embeddings [num, dim], zero-initialised, trained row by row outside the dense optimiser.

    In training the rows of the batch are copied to `local_weights` [B, dim], which receives the gradient, and
    their ids to `local_ids` [B]; the sign-SGD optimiser writes the touched rows back (HRM `sparse_embedding.py`).
    """

    weights: Tensor
    local_weights: Tensor
    local_ids: Tensor

    def __init__(self, num: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(num, dim))
        self.register_buffer("local_weights", torch.zeros(0, dim), persistent=False)
        self.register_buffer("local_ids", torch.zeros(0, dtype=torch.int32), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [B, dim] of `ids` [B]."""
        rows = self.weights[ids]
        if self.training and torch.is_grad_enabled():
            self.local_weights = rows.detach().requires_grad_()
            self.local_ids = ids.detach()
            return self.local_weights
        return rows
