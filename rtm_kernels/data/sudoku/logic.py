"""Solving techniques over a batch of boards, as candidate bit masks [size, size, N] with the batch innermost."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import combinations

import numpy as np

from rtm_kernels.data.sudoku.rules import as_boards, side, verify

LEVELS = ("singles", "locked", "subsets", "fish", "search")
CHUNK = 4096


def candidates(boards: np.ndarray) -> np.ndarray:
    """Masks [size, size, N] of boards [N, cells]: bit d - 1 is digit d; a blank cell holds every bit."""
    size = side(boards)
    bits = np.zeros(size + 1, dtype=np.uint16 if size <= 16 else np.uint32)
    bits[0] = (1 << size) - 1
    bits[1:] = 1 << np.arange(size)
    return np.ascontiguousarray(bits[boards].T).reshape(size, size, len(boards))


def boards_of(masks: np.ndarray) -> np.ndarray:
    """Boards uint8 [N, cells] of masks [size, size, N]; a cell with other than one candidate is blank."""
    size = len(masks)
    digit = np.bitwise_count(masks - 1 & ~masks) + 1
    return np.where(solved(masks), digit, 0).astype(np.uint8).reshape(size * size, -1).T.copy()


def solved(masks: np.ndarray) -> np.ndarray:
    return np.bitwise_count(masks) == 1


def boxes(masks: np.ndarray) -> np.ndarray:
    """Masks [size, size, N] as [cell in box, box row, box column, N]."""
    size, box = len(masks), math.isqrt(len(masks))
    split = masks.reshape(box, box, box, box, -1).transpose(1, 3, 0, 2, 4)
    return split.reshape(size, box, box, -1)


def _spread(of_box: np.ndarray) -> np.ndarray:
    """Box values [box, box, N] at every cell, [size, size, N]."""
    box = len(of_box)
    return of_box.repeat(box, axis=0).repeat(box, axis=1)


def _once_and_repeated(items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bits that are in at least one, and in at least two, of items [k, ..., N]."""
    once = np.zeros_like(items[0])
    repeated = np.zeros_like(items[0])
    for item in items:
        repeated |= once & item
        once |= item
    return once, repeated


def _seen(masks: np.ndarray) -> tuple[np.ndarray, ...]:
    """For the units of each cell: `_once_and_repeated`, as row, column and box values that broadcast over cells."""
    row, rows = _once_and_repeated(masks.swapaxes(0, 1))
    column, columns = _once_and_repeated(masks)
    box, boxed = _once_and_repeated(boxes(masks))
    return row[:, None], rows[:, None], column[None], columns[None], _spread(box), _spread(boxed)


def singles(masks: np.ndarray) -> np.ndarray:
    """One round of naked and hidden singles. A contradiction shows as a cell with no candidate left."""
    single = solved(masks)
    row, rows, column, columns, box, boxed = _seen(np.where(single, masks, masks.dtype.type(0)))
    left = masks & ~np.where(single, rows | columns | boxed, row | column | box)
    row, rows, column, columns, box, boxed = _seen(left)
    hidden = left & (row & ~rows | column & ~columns | box & ~boxed)
    return np.where(hidden != 0, hidden & (~hidden + 1), left)


def locked(masks: np.ndarray) -> np.ndarray:
    """One round of locked candidates, over rows and columns: pointing and claiming."""
    for transposed in (False, True):
        view = masks.swapaxes(0, 1) if transposed else masks
        size, box = len(view), math.isqrt(len(view))
        segment = np.bitwise_or.reduce(view.reshape(box, box, box, box, -1), axis=3)
        in_row, in_rows = _once_and_repeated(segment.transpose(2, 0, 1, 3))
        in_box, in_boxes = _once_and_repeated(segment.swapaxes(0, 1))
        only_row = segment & (in_row & ~in_rows)[:, :, None]
        only_box = segment & (in_box & ~in_boxes)[:, None]
        claimed = _of_others(only_row.swapaxes(0, 1)).swapaxes(0, 1)
        pointed = _of_others(only_box.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3)
        view = view & ~(claimed | pointed).reshape(size, box, -1).repeat(box, axis=1)
        masks = view.swapaxes(0, 1) if transposed else view
    return masks


def _of_others(items: np.ndarray) -> np.ndarray:
    """For each of items [k, ...], the union of the other k - 1."""
    return np.stack([np.bitwise_or.reduce(np.delete(items, i, axis=0), axis=0) for i in range(len(items))])


@cache
def _combinations(size: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For subsets of 2, 3 and 4 of `size` items: members [T, k] and the others [T, size - k]."""
    tables = []
    for k in range(2, min(4, size // 2) + 1):
        members = np.array(list(combinations(range(size), k)))
        inside = (members[:, :, None] == np.arange(size)).any(axis=1)
        tables.append((members, np.nonzero(~inside)[1].reshape(len(members), size - k)))
    return tuple(tables)


def _confine(masks: np.ndarray) -> np.ndarray:
    """k items of masks [M, size] whose union has k bits own these bits: remove them from the other items."""
    masks = masks.copy()
    for members, others in _combinations(masks.shape[1]):
        chosen = masks[:, members]
        union = np.bitwise_or.reduce(chosen, axis=2)
        open_items = (np.bitwise_count(chosen) > 1).all(axis=2)
        unit, subset = np.nonzero(open_items & (np.bitwise_count(union) == members.shape[1]))
        np.bitwise_and.at(masks, (unit[:, None], others[subset]), ~union[unit, subset][:, None])
    return masks


def _exchange(masks: np.ndarray) -> np.ndarray:
    """Masks [M, items] over bits, as masks [M, bits] over items."""
    size = masks.shape[1]
    shift = np.arange(size, dtype=masks.dtype)
    bit = masks[:, :, None] >> shift & 1
    return (bit << shift[:, None]).sum(axis=1, dtype=masks.dtype)


def subsets(masks: np.ndarray) -> np.ndarray:
    """One round of naked and hidden subsets of 2 to 4 cells in rows, columns and boxes."""
    size, box = len(masks), math.isqrt(len(masks))

    def per_unit(view: np.ndarray) -> np.ndarray:
        flat = np.moveaxis(view, 0, -1)
        reduced = _confine(flat.reshape(-1, size))
        reduced = _exchange(_confine(_exchange(reduced)))
        return np.moveaxis(reduced.reshape(flat.shape), -1, 0)

    masks = per_unit(masks)
    masks = per_unit(masks.swapaxes(0, 1)).swapaxes(0, 1)
    split = per_unit(boxes(masks)).reshape(box, box, box, box, -1)
    return split.transpose(2, 0, 3, 1, 4).reshape(masks.shape)


def fish(masks: np.ndarray) -> np.ndarray:
    """One round of X-wing, swordfish, jellyfish: k rows whose places for a digit lie in k columns, and transposed."""
    size = len(masks)
    for transposed in (False, True):
        view = masks.swapaxes(0, 1) if transposed else masks
        places = _exchange(np.moveaxis(view, 2, 0).reshape(-1, size)).reshape(-1, size, size)
        per_digit = places.swapaxes(1, 2).reshape(-1, size)
        places = _confine(per_digit).reshape(-1, size, size).swapaxes(1, 2)
        view = np.moveaxis(_exchange(places.reshape(-1, size)).reshape(-1, size, size), 0, 2)
        masks = view.swapaxes(0, 1) if transposed else view
    return masks


TECHNIQUES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (singles, locked, subsets, fish)


def reduce_candidates(masks: np.ndarray, level: int, target: np.ndarray | None = None) -> np.ndarray:
    """Apply techniques up to `level` until nothing changes; the cheapest that makes progress goes first.

    `target`: a cell index per board [N]; a board is left as soon as this cell has one candidate.
    """
    masks = masks.copy()
    live = np.arange(masks.shape[2])
    flat = masks.reshape(len(masks) ** 2, live.size)
    for index, technique in enumerate(TECHNIQUES[: level + 1]):
        stalled = [live[:0]]
        while live.size:
            before = masks[:, :, live]
            after = technique(before)
            changed = (after != before).any(axis=(0, 1))
            masks[:, :, live[changed]] = after[:, :, changed]
            stalled.append(live[~changed])
            live = live[changed]
            if index and live.size:
                masks[:, :, live] = reduce_candidates(masks[:, :, live], index - 1)
            if target is not None and live.size:
                live = live[~solved(flat[target[live], live])]
        live = np.concatenate(stalled)
        live = live[~solved(masks[:, :, live]).all(axis=(0, 1))]
    return masks


def rate(puzzles: np.ndarray) -> np.ndarray:
    """The cheapest level of `LEVELS` whose techniques solve each puzzle [N, cells], as indices int8 [N].

    `search` (the last) means that none of the techniques suffices, which includes puzzles without exactly one solution.
    """
    puzzles = as_boards("puzzles", puzzles)
    levels = np.full(len(puzzles), len(LEVELS) - 1, dtype=np.int8)
    for start in range(0, len(puzzles), CHUNK):
        part = puzzles[start : start + CHUNK]
        masks, left = candidates(part), np.arange(len(part))
        for level in range(len(TECHNIQUES)):
            masks = reduce_candidates(masks, level)
            done = verify(part[left], boards_of(masks))
            levels[start + left[done]] = level
            masks, left = masks[:, :, ~done], left[~done]
    return levels
