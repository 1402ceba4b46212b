"""Candidates for an ARC grid: augmented runs that vote, and what speaks against each by the demonstrations alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rtm_kernels.data.arc import Augmentation, Example


@dataclass
class Candidate:
    """A grid, how many augmented runs ended in it, their mean halting probability, and what speaks against it."""

    grid: np.ndarray
    votes: int = 0
    halt_probability: float = 0.0
    faults: list[str] = field(default_factory=list)


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


def vote(answers: Sequence[tuple[np.ndarray, float]]) -> list[Candidate]:
    """The different grids among (grid, halting probability), most votes first, then the higher probability."""
    found: dict[str, Candidate] = {}
    for grid, probability in answers:
        candidate = found.setdefault(text_of(grid), Candidate(grid))
        candidate.votes += 1
        candidate.halt_probability += (probability - candidate.halt_probability) / candidate.votes
    return sorted(found.values(), key=lambda c: (-c.votes, -c.halt_probability))


def faults(grid: np.ndarray, test: np.ndarray, pairs: Sequence[Example]) -> list[str]:
    """What the demonstrations have in common and `grid`, the answer to `test`, has not: its size and its colours.

    None speaks for an answer: ARC has no rule that confirms one.
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
