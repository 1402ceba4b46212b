"""ARC answers by voting: predictions of augmented twins are turned back and counted, as the official evaluator does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rtm_kernels.data.arc import Augmentation, decode_grid
from rtm_kernels.errors import require

PASS_AT = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2
"""Answers per test input that an ARC submission holds."""

Key = tuple[str, bytes]


def _key(grid: np.ndarray) -> bytes:
    return bytes(grid.shape) + grid.tobytes()


def _grid(key: bytes) -> np.ndarray:
    return np.frombuffer(key[2:], dtype=np.uint8).reshape(key[0], key[1])


class Tally:
    """Counts the grids uint8 [h, w] that augmented runs of one test input ended in, turned back."""

    def __init__(self) -> None:
        self._found: dict[bytes, tuple[int, float]] = {}

    def add(self, grid: np.ndarray, confidence: float) -> None:
        """One run's answer and its halting probability."""
        count, total = self._found.get(_key(grid), (0, 0.0))
        self._found[_key(grid)] = count + 1, total + confidence

    def ranked(self) -> list[tuple[np.ndarray, int, float]]:
        """(grid, votes, mean halting probability): most votes first, then the higher mean, then the earlier."""
        found = [(_grid(key), count, total / count) for key, (count, total) in self._found.items()]
        return sorted(found, key=lambda answer: answer[1:], reverse=True)


class Votes:
    """Counts predictions per test input; answers rank by how many twins gave them, then by mean halting probability.

    `names[i]` is the name of puzzle identifier i, as `identifiers.json` holds it; identifier 0 is blank. Test inputs
    are told apart by puzzle and grid, both without their augmentation.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._truth: dict[Key, bytes] = {}
        self._tried: set[Key] = set()
        self._answers: dict[Key, Tally] = {}

    def expect(self, identifier: int, tokens: np.ndarray, labels: np.ndarray) -> None:
        """Make a test pair known: tokens and labels [900] of any twin of it."""
        key, augmentation = self._place(identifier, tokens)
        self._truth[key] = _key(augmentation.invert(decode_grid(labels)))
        self._answers.setdefault(key, Tally())

    def add(self, identifier: int, tokens: np.ndarray, answer: np.ndarray | None, confidence: float) -> None:
        """Count the answer [900] to the twin `tokens` [900], with its halting probability; None where it has none."""
        key, augmentation = self._place(identifier, tokens)
        self._tried.add(key)
        tally = self._answers.setdefault(key, Tally())
        if answer is not None:
            tally.add(augmentation.invert(decode_grid(answer)), confidence)

    def _place(self, identifier: int, tokens: np.ndarray) -> tuple[Key, Augmentation]:
        require(0 < identifier < len(self.names), "identifier", identifier, f"1 to {len(self.names) - 1}")
        puzzle, augmentation = Augmentation.from_name(self.names[identifier])
        return (puzzle, _key(augmentation.invert(decode_grid(tokens)))), augmentation

    def pass_at(self, ks: Sequence[int] = PASS_AT, *, tried: bool = False) -> dict[int, float]:
        """For each k the mean over puzzles of the share of test inputs whose solution is among the first k answers;
        with `tried` only over test inputs of which a twin was run."""
        shares: dict[str, list[list[bool]]] = {}
        for key, truth in self._truth.items():
            if tried and key not in self._tried:
                continue
            ranked = [_key(grid) for grid, _, _ in self._answers[key].ranked()]
            place = ranked.index(truth) if truth in ranked else len(ranked)
            shares.setdefault(key[0], []).append([place < min(k, len(ranked)) for k in ks])
        means = [np.mean(tests, axis=0) for tests in shares.values()]
        return dict(zip(ks, np.mean(means, axis=0).tolist() if means else [0.0] * len(ks), strict=True))

    def submission(self) -> dict[str, list[dict[str, list[list[int]]]]]:
        """Per puzzle and test input the best two answers, in the format of the ARC prize; `[[0]]` where none is."""
        found: dict[str, list[dict[str, list[list[int]]]]] = {}
        for key, tally in self._answers.items():
            best: list[list[list[int]]] = [grid.tolist() for grid, _, _ in tally.ranked()[:ATTEMPTS]]
            best += [best[-1] if best else [[0]]] * (ATTEMPTS - len(best))
            found.setdefault(key[0], []).append({f"attempt_{i}": grid for i, grid in enumerate(best, start=1)})
        return found
