"""The backbone word by word: what attention reads of earlier words is kept, and a word that has halted is skipped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.block import CosSin, FusedTRMBlock
from rtm_kernels.ops.attention_norm.reference import apply_rope
from rtm_kernels.ops.primitives import rms_norm
from rtm_kernels.ops.swiglu_norm.api import swiglu_norm
from rtm_kernels.recursion import reference
from rtm_kernels.text.model import Latents, TextModel, Thought

GROWTH = 256
"""Words by which the memory of a state grows."""


@dataclass(frozen=True)
class Rows:
    """Which positions m are computed now: each is position `place` of row `row`, and the `rank`-th of its row.

    mask [B, 1, ranks, capacity]: the keys that it sees.
    """

    row: Tensor  # int64 [m]
    place: Tensor  # int64 [m]
    rank: Tensor  # int64 [m]
    mask: Tensor


class Memory:
    """Keys and values of one layer in one step: `kept` [2, B, heads, capacity, head_dim]."""

    def __init__(self) -> None:
        self.kept = torch.empty(0)

    def write(self, rows: Rows, key: Tensor, value: Tensor) -> None:
        """Take in key and value [m, heads, head_dim] of positions."""
        capacity = rows.mask.shape[-1]
        if not self.kept.numel():
            self.kept = key.new_zeros(2, len(rows.mask), key.shape[1], capacity, key.shape[2])
        self.fit(capacity)
        self.kept[:, rows.row, :, rows.place] = torch.stack((key, value), 1)

    def fit(self, capacity: int) -> None:
        """Make room for so many positions."""
        self.kept = F.pad(self.kept, (0, 0, 0, capacity - self.kept.shape[3]))

    def copy(self, other: Memory, begin: int, end: int) -> None:
        """Take the positions from `begin` to `end` from another memory."""
        if not self.kept.numel():
            self.kept = torch.zeros_like(other.kept)
        self.fit(other.kept.shape[3])
        self.kept[..., begin:end, :] = other.kept[..., begin:end, :]


def attend(layer: FusedTRMBlock, h: Tensor, rows: Rows, memory: Memory, cos_sin: CosSin) -> Tensor:
    """The layer on h [m, D] of the positions `rows`, which see what `memory` holds and themselves; `cos_sin` [m, D]."""
    width, heads = h.shape[1], layer.num_heads
    qkv = F.linear(h, layer.self_attn.qkv_proj.weight.to(h.dtype)).view(len(h), 3 * heads, width // heads)
    query, key, value = qkv.split(heads, dim=1)  # [m, heads, head_dim] each
    if layer.qk_norm:
        query, key = rms_norm(query, layer.eps), rms_norm(key, layer.eps)
    query, key = (apply_rope(t[None], *cos_sin)[0] for t in (query, key))
    memory.write(rows, key, value)
    asked = query.new_zeros(rows.mask.shape[0], rows.mask.shape[2], heads, width // heads)
    asked[rows.row, rows.rank] = query
    keys, values = memory.kept.unbind()
    mixed = F.scaled_dot_product_attention(asked.transpose(1, 2), keys, values, rows.mask)
    mixed = mixed.transpose(1, 2)[rows.row, rows.rank].flatten(1)
    h = rms_norm(h + F.linear(mixed, layer.self_attn.o_proj.weight.to(h.dtype)), layer.eps)
    weights = layer.mlp.gate_up_proj.weight, layer.mlp.down_proj.weight
    return swiglu_norm(h[None], *weights, eps=layer.eps, impl=layer.impl)[0]


class WordState:
    """The backbone's memory of the words so far, in `batch` rows: of each round and layer, keys and values.

    Fed with any parts of a text it gives what `TextModel.think` gives of the whole, up to rounding; fed with the same
    parts, the same bits. `rounds` as there; there is room for `capacity` words at first.
    """

    def __init__(self, model: TextModel, batch: int = 1, rounds: int | None = None, capacity: int = GROWTH) -> None:
        self.model, self.rounds, self.length = model, model.rounds(rounds), 0
        self.program = model.config.program(self.rounds)
        self.segments = torch.full((batch, capacity), -1, dtype=torch.int32, device=model.device)
        self.memories: dict[tuple[int, int], Memory] = {}

    @torch.no_grad()
    def extend(self, x: Tensor, segments: Tensor) -> Thought:
        """The next n words of each row, their inputs x [B, n, D], as `TextModel.think`; what has halted is skipped."""
        begin, self.length = self.length, self.length + x.shape[1]
        while self.segments.shape[1] < self.length:
            self.segments = F.pad(self.segments, (0, GROWTH), value=-1)
        self.segments[:, begin : self.length] = segments

        def step(turn: int, active: Tensor, latents: Latents) -> Latents:
            for (number, place), memory in list(self.memories.items()):
                if number == turn - 1:  # words that have halted keep what they were read by
                    self._memory(turn, place).copy(memory, begin, self.length)
            if not active.any():
                return latents
            rows, where = self._rows(active, begin), active.nonzero(as_tuple=True)
            tables = self.model.rope(self.segments.shape[1], self.model.config.backbone)
            cos_sin = (tables[0][rows.place], tables[1][rows.place])

            def call(place: int, layer: FusedTRMBlock, h: Tensor) -> Tensor:
                return attend(layer, h, rows, self._memory(turn, place), cos_sin)

            given = {name: latent[where] for name, latent in latents.items()}
            apply = self.model.layer_by_layer(self.program, call)
            found = reference.run(self.program, given, x[where], apply)
            return {name: latents.get(name, x).index_put(where, value) for name, value in found.items()}

        return self.model.ponder(x, self.rounds, step)

    def _memory(self, turn: int, place: int) -> Memory:
        return self.memories.setdefault((turn, place), Memory())

    def _rows(self, active: Tensor, begin: int) -> Rows:
        row, column = active.nonzero(as_tuple=True)
        rank = (active.cumsum(1) - 1)[row, column]
        place, everything = column + begin, torch.arange(self.segments.shape[1], device=active.device)
        sees = (self.segments[row, place, None] == self.segments[row]) & (everything <= place[:, None])
        mask = sees.new_zeros(len(active), 1, int(rank.max()) + 1, len(everything))
        mask[row, 0, rank] = sees
        return Rows(row, place, rank, mask)


class ByteState:
    """The decoder's memory of the word that is being written."""

    def __init__(self, model: TextModel) -> None:
        self.model, self.count = model, 0
        self.memories = [Memory() for _ in range(model.config.decoder_layers)]
        self.capacity = model.config.max_bytes + 1

    @torch.no_grad()
    def extend(self, x: Tensor) -> Tensor:
        """Logits [SYMBOLS] after one more input x [byte_size] of the word."""
        config, place = self.model.config, torch.tensor([self.count], device=x.device)
        zero = torch.zeros_like(place)
        mask = (torch.arange(self.capacity, device=x.device) <= place).view(1, 1, 1, -1)
        tables = self.model.rope(config.byte_row, self.model.narrow)
        h, rows = x[None], Rows(zero, place, zero, mask)
        for layer, memory in zip(self.model.decoder.layers, self.memories, strict=True):
            h = attend(layer, h, rows, memory, (tables[0][place], tables[1][place]))
        self.count += 1
        return F.linear(h[0], self.model.lm_head.weight.to(h.dtype))
