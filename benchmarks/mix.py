"""python -m benchmarks.mix FEW_CLUES.csv HARD.csv HARDEST.csv --out MIX.csv: puzzles in the shape of Sudoku-Extreme.

Sudoku-Extreme itself is 26 % easy puzzles, in the shares 23 : 2 : 1 of random minimal ones, of ones with many clues and
of ones with 17, and 74 % of lists of hard puzzles. Its rating is the number of guesses of the solver tdoku, 22 in the
mean (arXiv 2506.21734, section 3.1). Here the easy puzzles have the same shares; the hard ones are of two lists, shared
so that the mean is 22 as well. The guesses counted are those of a classical solver, in units of tdoku's: both are known
for the list of the hardest puzzles. The output has the public columns: source, question, answer, rating.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rtm_kernels.data.sudoku import generate, random_grids, read_boards, to_text
from rtm_kernels.data.sudoku.generate import dig
from rtm_kernels.data.sudoku.logic import TECHNIQUES, candidates, reduce_candidates, solved
from rtm_kernels.data.sudoku.search import branch, consistent, solve_missing
from rtm_kernels.data.task import Pair
from rtm_kernels.errors import require

EASY = {"minimal": 0.23, "many_clues": 0.02, "few_clues": 0.01}
"""Shares of the easy puzzles, counted in the first 200,000 rows of the published training set."""
MEAN = 22.0
"""Mean rating of Sudoku-Extreme."""
TDOKU = 64.95
"""Mean guesses of tdoku on puzzles rated 11 and above (its README; all solutions are searched for)."""
LOCKED = 1
"""The solver propagates singles and locked candidates, as tdoku does."""
PART = 256


def guesses(puzzles: np.ndarray) -> np.ndarray:
    """How often a search through all of puzzles [N, 81] has to choose for each, int [N].

    It propagates singles and locked candidates, then splits on the cell with the fewest candidates.
    """
    counts = np.zeros(len(puzzles), dtype=np.int64)
    for start in range(0, len(puzzles), PART):
        part = puzzles[start : start + PART]
        masks, owner = candidates(part), np.arange(start, start + len(part))
        while owner.size:
            masks = reduce_candidates(masks, LOCKED)
            going = consistent(masks) & ~solved(masks).all(axis=(0, 1))
            masks, owner = masks[:, :, going], owner[going]
            np.add.at(counts, owner, 1)
            halves = branch(masks, owner)
            masks = np.concatenate([half for half, _ in halves], axis=2) if halves else masks
            owner = np.concatenate([whose for _, whose in halves]) if halves else owner
    return counts


def pools(lists: Sequence[Path], count: int, rng: np.random.Generator) -> dict[str, Pair]:
    """Puzzles and solutions [N, 81] of each source."""
    grids = random_grids(round(count * EASY["minimal"]), 9, rng)
    minimal = dig(grids, len(TECHNIQUES), np.zeros(len(grids), dtype=np.int64), rng)
    many = generate(round(count * EASY["many_clues"]), seed=int(rng.integers(1 << 31)), clues=(30, 36))
    read = [solve_missing(*read_boards(path), str(path)) for path in lists]
    return {
        "minimal": (minimal, grids),
        "many_clues": many,
        **dict(zip(("few_clues", "hard", "hardest"), read, strict=True)),
    }


def share_of_hardest(means: dict[str, float]) -> float:
    """The share of the hardest list with which the mean number of guesses, in units of tdoku's, is `MEAN`."""
    easy = sum(share * means[name] for name, share in EASY.items())
    rest = 1 - sum(EASY.values())
    share = (MEAN * means["hardest"] / TDOKU - easy - rest * means["hard"]) / (means["hardest"] - means["hard"])
    require(0 <= share <= rest, "share of the hardest", round(share, 3), f"0 to {rest:.2f}: other lists are needed")
    return share


def mix(lists: Sequence[Path], count: int, seed: int) -> list[str]:
    """The rows of the mix, shuffled, without the header."""
    rng = np.random.default_rng(seed)
    found = pools(lists, count, rng)
    rated = {name: guesses(puzzles) for name, (puzzles, _) in found.items()}
    means = {name: float(own.mean()) for name, own in rated.items()}
    shares = dict(EASY, hardest=share_of_hardest(means))
    shares["hard"] = 1 - sum(shares.values())
    scale, rows = TDOKU / means["hardest"], []
    for name, (puzzles, solutions) in found.items():
        taken = rng.permutation(len(puzzles))[: round(count * shares[name])]
        print(
            f"{name}: {len(taken)} of {len(puzzles)}, {means[name]:.2f} guesses, {scale * means[name]:.2f} of tdoku's"
        )
        for i in taken:
            rows.append(f"{name},{to_text(puzzles[i])},{to_text(solutions[i])},{scale * rated[name][i]:.1f}")
    return [rows[i] for i in rng.permutation(len(rows))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("lists", nargs=3, type=Path, help="csv files of 17-clue, hard and hardest puzzles")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    rows = mix(given.lists, given.count, given.seed)
    given.out.write_text("\n".join(["source,question,answer,rating", *rows]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
