"""Predicted depth: how many ACT steps a puzzle will take, and reading ahead so that the deep ones begin first."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from rtm_kernels.engine.slots import Finished, Sample
from rtm_kernels.errors import require

PATIENCE = 4
"""A sample that waits in a look-ahead of n is passed by at most n times this many others."""


def unknown_cells(tokens: np.ndarray) -> int:
    """Cells of the first character of the vocabulary: the blanks of a Sudoku."""
    return int((tokens == 1).sum())


class DepthEstimate:
    """Mean steps, of all rollouts, of the finished puzzles with as many unknown cells, drawn to a prior that grows from
    1 to the cap with the share of unknown cells.

    The prior counts as one puzzle. What is predicted decides when a puzzle begins and with whom it shares a batch, and
    never its answer.
    """

    def __init__(self, max_steps: int, feature: Callable[[np.ndarray], int] = unknown_cells) -> None:
        self._cap, self._feature = max_steps, feature
        self._seen: dict[int, tuple[int, int]] = {}

    def predict(self, tokens: np.ndarray) -> float:
        """Expected ACT steps of the puzzle `tokens` [seq_len]."""
        key = self._feature(tokens)
        count, steps = self._seen.get(key, (0, 0))
        prior = 1 + (self._cap - 1) * min(max(key / len(tokens), 0), 1)
        return (prior + steps) / (1 + count)

    def learn(self, tokens: np.ndarray, steps: int) -> None:
        """Take in a puzzle that finished after `steps`."""
        key = self._feature(tokens)
        count, total = self._seen.get(key, (0, 0))
        self._seen[key] = count + 1, total + steps


class LookAhead:
    """Reads up to `size` samples ahead of a source and hands out those of the deepest bucket first.

    Buckets are powers of two of predicted steps; within one, and with `size` 0, the order is that of the source. The
    batch then stays full to the end, where a deep puzzle that began last would run alone.
    """

    def __init__(self, source: Iterator[Sample], size: int, estimate: DepthEstimate) -> None:
        require(isinstance(size, int) and size >= 0, "lookahead", size, "an integer of at least 0")
        self._source, self._size, self._estimate = source, size, estimate
        self._waiting: OrderedDict[int, tuple[int, Sample]] = OrderedDict()
        self._given: dict[object, np.ndarray] = {}
        self._read = 0

    def take(self, count: int) -> list[Sample]:
        """At most `count` samples; fewer only when the source has ended."""
        taken: list[Sample] = []
        while len(taken) < count and self._fill(count - len(taken)):
            number = self._next()
            sample = self._waiting.pop(number)[1]
            self._given[sample.key] = sample.tokens
            taken.append(sample)
        return taken

    def finished(self, done: Finished) -> None:
        """Learn from a sample that left."""
        tokens = self._given.pop(done.key, None)
        if tokens is not None:
            self._estimate.learn(tokens, done.total_steps)

    def _fill(self, wanted: int) -> bool:
        """Read on, as far as `size` allows beyond the samples wanted now; whether any sample waits."""
        while len(self._waiting) < self._size + wanted and (sample := next(self._source, None)) is not None:
            bucket = math.ceil(math.log2(max(self._estimate.predict(sample.tokens), 1))) if self._size else 0
            self._waiting[self._read] = bucket, sample
            self._read += 1
        return bool(self._waiting)

    def _next(self) -> int:
        oldest = next(iter(self._waiting))
        if not self._size or self._read - oldest > (PATIENCE + 1) * self._size:
            return oldest
        return max(self._waiting, key=lambda number: (self._waiting[number][0], -number))
