"""Words as tensors: every byte once, whole words one after the other in rows; documents are segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.text.config import BOUNDARY, TEXT_END

IGNORED = -100
"""Target of positions that hold nothing."""


class Packed(NamedTuple):
    """B rows of L slots. Slot m, counted over all rows, holds the word m - 1 of its segment, or its start, and predicts
    word m: BOUNDARY and its bytes are inputs in `symbols`, its bytes and BOUNDARY the `targets`. A word without bytes
    is the end of the text (TEXT_END).
    """

    symbols: Tensor  # int64 [R, W], the inputs of the byte encoder and decoder
    words: Tensor  # int32 [R, W], the word that a position belongs to, -1 for none
    targets: Tensor  # int64 [R, W], the next symbol
    starts: Tensor  # int64 [B * L], where each word begins in the flattened rows
    segments: Tensor  # int32 [B, L], the document of a slot
    first: Tensor  # bool [B, L], whether a slot begins a segment

    def to(self, device: torch.device | str) -> Packed:
        """The same on a device."""
        return Packed(*(tensor.to(device) for tensor in self))


def pack(content: bytes, lengths: np.ndarray, first: np.ndarray, row: int) -> Packed:
    """The words of `content`, which have so many bytes [B, L] (0: the end of the text), in byte rows of `row`.

    `first` [B, L] marks the slots that begin a segment; the first of each row does.
    """
    sizes = lengths.reshape(-1).astype(np.int64)
    offsets, count = place(sizes + 1, row)
    within = np.arange(len(content)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.repeat(offsets + 1, sizes) + within
    symbols = np.full(count * row, BOUNDARY, np.int64)
    symbols[places] = np.frombuffer(content, np.uint8)
    words = np.full(count * row, -1, np.int32)
    words[offsets] = np.arange(len(sizes))
    words[places] = np.repeat(np.arange(len(sizes)), sizes)
    targets = np.full(count * row, IGNORED, np.int64)
    targets[offsets + sizes] = np.where(sizes > 0, BOUNDARY, TEXT_END)
    targets[places - 1] = symbols[places]
    segments = np.cumsum(first, axis=1, dtype=np.int32)
    shape = (count, row)
    arrays = (symbols.reshape(shape), words.reshape(shape), targets.reshape(shape), offsets, segments, first)
    return Packed(*map(torch.from_numpy, arrays))


def place(sizes: np.ndarray, row: int) -> tuple[np.ndarray, int]:
    """Where items of these sizes begin in rows of `row` positions, each row filled while the next item fits; and the
    number of rows."""
    ends, offsets, begin, count = np.cumsum(sizes), np.empty(len(sizes), np.int64), 0, 0
    while begin < len(sizes):
        base = ends[begin] - sizes[begin]
        end = int(np.searchsorted(ends, base + row, side="right"))
        offsets[begin:end] = ends[begin:end] - sizes[begin:end] - base + count * row
        begin, count = end, count + 1
    return offsets, count


def pack_documents(documents: Sequence[Sequence[bytes]], length: int, row: int) -> Packed:
    """Whole documents, each a sequence of words (an empty one is the end of the text), one after the other in rows of
    `length` words; a longer document begins again in each row. Slots that are left over are ignored."""
    slots: list[tuple[bytes, bool, bool]] = []
    for document in documents:
        if len(slots) % length + len(document) > length:
            slots += [(b"", True, False)] * (-len(slots) % length)
        slots += [(word, i % length == 0, True) for i, word in enumerate(document)]
    slots += [(b"", True, False)] * (-len(slots) % length)
    lengths = np.array([len(word) for word, _, _ in slots]).reshape(-1, length)
    first = np.array([begins for _, begins, _ in slots], bool).reshape(-1, length)
    first[:, 0] = True
    packed = pack(b"".join(word for word, _, _ in slots), lengths, first, row)
    unused = packed.starts[torch.tensor([not used for _, _, used in slots], dtype=torch.bool)]
    packed.targets.view(-1)[unused] = IGNORED
    return packed
