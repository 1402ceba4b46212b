"""The mix in the shape of Sudoku-Extreme: guesses are counted, and the shares give the mean that they are made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import mix
from rtm_kernels.data.sudoku import augment, from_text, generate, read_boards, read_puzzles, solve, to_text
from rtm_kernels.errors import InputError

EASY = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
HARD = "4...3.......6..8..........1....5..9..8....6...7.2........1.27..5.3....4.9........"


def test_guesses_are_the_choices_of_a_whole_search() -> None:
    easy, _ = generate(3, seed=1)
    assert mix.guesses(easy).tolist() == [0, 0, 0]
    two = generate(1, seed=2)[1]
    rows = two.reshape(9, 9)
    first, second = next(
        (a, b) for a in range(81) for b in range(a + 1, 81)
        if a // 9 // 3 == b // 9 // 3 and a // 9 != b // 9 and a % 9 // 3 != b % 9 // 3
        and rows[a // 9, a % 9] == rows[b // 9, b % 9] and rows[a // 9, b % 9] == rows[b // 9, a % 9]
    )  # fmt: skip
    corners = [first, second, first // 9 * 9 + second % 9, second // 9 * 9 + first % 9]
    two[0, corners] = 0  # two answers: one choice tells them apart
    assert solve(two)[0].tolist() == [2] and mix.guesses(two).tolist() == [1]


def test_shares_give_the_published_mean() -> None:
    means = {"minimal": 0.4, "many_clues": 0.0, "few_clues": 2.0, "hard": 30.0, "hardest": 150.0}
    share = mix.share_of_hardest(means)
    total = sum(part * means[name] for name, part in mix.EASY.items()) + share * 150 + (0.74 - share) * 30
    assert total * mix.TDOKU / 150 == pytest.approx(mix.MEAN)
    with pytest.raises(InputError, match="share of the hardest"):
        mix.share_of_hardest(means | {"hard": 100.0})


def test_a_mix_has_the_public_columns(tmp_path: Path) -> None:
    lists, rng = [], np.random.default_rng(0)
    for name, text in (("few", EASY), ("hard", HARD), ("hardest", HARD)):
        board = from_text(text)[None].repeat(30, 0)
        boards, solutions = augment(board, solve(board)[1], rng)
        lists.append(tmp_path / f"{name}.csv")
        pairs = zip(boards, solutions, strict=True)
        lists[-1].write_text("puzzle,solution\n" + "\n".join(f"{to_text(p)},{to_text(s)}" for p, s in pairs) + "\n")
    out = tmp_path / "mix.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix, "share_of_hardest", lambda means: 0.5)
        patch.setattr(mix, "EASY", dict.fromkeys(mix.EASY, 0.1))
        mix.main([*map(str, lists), "--count", "20", "--out", str(out)])
    puzzles = list(read_puzzles(out.read_text(), size=9))
    assert sorted({p.origin for p in puzzles}) == ["few_clues", "hard", "hardest", "many_clues", "minimal"]
    assert sum(p.origin == "hardest" for p in puzzles) == 10
    boards, solutions = read_boards(out)
    counts, found = solve(boards)
    assert (counts == 1).all() and (found == solutions).all()
    assert all(p.rating is not None and p.rating >= 0 for p in puzzles)
