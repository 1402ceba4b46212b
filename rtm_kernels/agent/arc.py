"""Candidates for an ARC grid: augmented runs that vote, and how an answer differs from the demonstrations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rtm_kernels.data.arc import Augmentation, Example


def augmentations(count: int, seed: int = 0) -> list[Augmentation]:
    """The identity, then random recolourings and turns."""
    rng = np.random.default_rng(seed)
    return [Augmentation(), *(Augmentation.random(rng) for _ in range(count - 1))]


def text_of(grid: np.ndarray) -> str:
    """The grid as the task `arc` reads it."""
    return "/".join("".join(map(str, row)) for row in grid.tolist())


def grid_of(text: str) -> np.ndarray:
    """The grid of an answer of the task `arc`."""
    return np.array([[int(colour) for colour in row] for row in text.split("/")], dtype=np.uint8)


def faults(grid: np.ndarray, test: np.ndarray, pairs: Sequence[Example]) -> list[str]:
    """How `grid`, an answer to `test`, differs in size and colours from what the demonstrations have in common.

    An empty list proves nothing: ARC has no rule that confirms an answer.
    """
    if not pairs:
        return []
    found = []
    sizes = {output.shape for _, output in pairs}
    wanted = None
    if all(output.shape == given.shape for given, output in pairs):
        wanted = test.shape
    elif len(sizes) == 1:
        wanted = next(iter(sizes))
    if wanted is not None and grid.shape != wanted:
        found.append(f"{grid.shape[0]} x {grid.shape[1]}, and by the demonstrations {wanted[0]} x {wanted[1]}")
    known = set(np.unique(test)).union(*(np.unique(output) for _, output in pairs))
    strange = sorted(int(colour) for colour in set(np.unique(grid)) - known)
    if strange:
        found.append(f"colours {', '.join(map(str, strange))} are in no demonstrated output and not in the input")
    return found
