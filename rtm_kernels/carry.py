"""What one ACT step hands to the next, the batch it reads, and the checks of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import InputError, require

Batch = Mapping[str, Tensor]
"""`inputs` [B, seq_len] token ids, `puzzle_identifiers` [B], and `labels` [B, seq_len] when there are any."""

INDICES = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)
"""Dtypes of tokens and puzzle identifiers."""


@dataclass
class Carry:
    """What one ACT step hands to the next: latents [B, L, D], steps [B] int32, halted [B] bool, the data."""

    latents: dict[str, Tensor]
    steps: Tensor
    halted: Tensor
    current_data: dict[str, Tensor]


def where_rows(rows: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """`chosen` where bool `rows` [B], or [B, S], holds, `other` in the rest; both have these axes first."""
    return torch.where(rows.view(*rows.shape, *[1] * (other.dim() - rows.dim())), chosen, other)


def check_batch(config: ModelConfig, batch: Batch) -> None:
    """Errors: `InputError` for a batch that lacks a tensor of `config`, or has one of another shape or dtype."""
    for name in ("inputs", *(["puzzle_identifiers"] if config.puzzle_emb_ndim else [])):
        if name not in batch:
            raise InputError(f"batch has no {name!r}; it has {sorted(batch)}")
    for name in ("inputs", "puzzle_identifiers") if "puzzle_identifiers" in batch else ("inputs",):
        dtype = getattr(batch[name], "dtype", type(batch[name]))
        require(dtype in INDICES, f"batch[{name!r}].dtype", dtype, f"one of {', '.join(map(str, INDICES))}")
        dense = batch[name].layout == torch.strided and not batch[name].is_nested
        require(dense, f"batch[{name!r}]", batch[name].layout, "a dense tensor")
    shape = tuple(batch["inputs"].shape)
    if len(shape) != 2 or shape[1] != config.seq_len:
        raise InputError(f"batch['inputs'] has shape {shape}; expected [B, seq_len={config.seq_len}]")
    ids = tuple(batch["puzzle_identifiers"].shape) if "puzzle_identifiers" in batch else shape[:1]
    if ids != shape[:1]:
        raise InputError(f"batch['puzzle_identifiers'] has shape {ids}; expected [B] = {shape[:1]}")


def check_carry(carry: Carry, batch: Batch) -> None:
    """Errors: `InputError` for a carry of other data or another size than `batch`."""
    if set(carry.current_data) != set(batch):
        raise InputError(f"the carry holds {sorted(carry.current_data)}, but the batch {sorted(batch)}")
    if len(carry.halted) != len(batch["inputs"]):
        raise InputError(f"the carry is of {len(carry.halted)} samples, but the batch of {len(batch['inputs'])}")
