"""What the rules refuse: never what has a solution, and as much as singles of an independent solver show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.data import sudoku
from rtm_kernels.data.sudoku.logic import candidates, reduce_candidates
from rtm_kernels.data.task import PAD, get_task
from rtm_kernels.engine.contradictions import Contradictions, counts
from rtm_kernels.engine.guesses import DRAWN, FIRST, RETURN, Guesses, gumbel
from rtm_kernels.engine.samples import Sample
from rtm_kernels.model import RecursiveReasoner

BLANK = sudoku.Sudoku.open_token


def boards_with_pins(size: int, count: int, seed: int) -> np.ndarray:
    """Puzzles with up to three blanks of each filled in at random, rightly or not: uint8 [N, cells]."""
    rng = np.random.default_rng(seed)
    boards = sudoku.generate(count, size=size, seed=seed, clues=None if size == 9 else (5, 6))[0].copy()
    for row in boards:
        blanks = rng.permutation(np.flatnonzero(row == 0))[: rng.integers(0, 4)]
        row[blanks] = rng.integers(1, size + 1, len(blanks))
    return boards


def singles(boards: np.ndarray) -> np.ndarray:
    """The masks [N, cells] that singles of the exact solver leave, bit 0 the digit 1."""
    return reduce_candidates(candidates(boards), 0).reshape(boards.shape[1], -1).T.astype(np.int64)


@pytest.mark.parametrize(("size", "count"), [(4, 200), (9, 60)])
def test_nothing_with_a_solution_is_refused_and_singles_are_those_of_the_solver(size: int, count: int) -> None:
    task = get_task("sudoku" if size == 9 else f"sudoku{size}")
    boards = boards_with_pins(size, count, 3)
    rules = Contradictions(task.groups, task.seq_len, task.vocab_size, torch.device("cpu"))
    given = torch.from_numpy(boards.astype(np.int32))
    masks = torch.where(given == 0, rules.every, 1 << (given + 1)).int()
    before = masks.clone()
    left, sound = rules(masks)
    assert torch.equal(masks, before) and left.dtype == torch.int32
    solvable = sudoku.solve(boards, limit=1)[0] > 0
    assert solvable.any() and not solvable.all()
    assert sound.numpy()[solvable].all()
    assert not sound.numpy()[~solvable].all() and not sound.numpy()[sudoku.rules.contradictory(boards)].any()
    expected = singles(boards)
    weaker = left.numpy()[solvable] >> 2
    assert ((weaker & expected[solvable]) == expected[solvable]).all()  # what more rounds would exclude may be left
    assert (weaker == expected[solvable]).all(1).mean() > 0.5
    assert torch.equal(rules(masks[7:8])[0][0], left[7])


def test_bits_are_counted() -> None:
    values = torch.tensor([0, 1, 0b1011, (1 << 27) - 1, 0x7FFFFFFF], dtype=torch.int32)
    assert counts(values).tolist() == [int(v).bit_count() for v in values.tolist()]


def guessing(tokens: np.ndarray, count: int) -> Guesses:
    config = ModelConfig(vocab_size=6, seq_len=16, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1,
                         layers={"L_level": 1}, halting="settle")  # fmt: skip
    made = Guesses(RecursiveReasoner(config), count, get_task("sudoku4").groups)
    samples = [Sample(i, tokens, seed=i * 7919, open_token=BLANK) for i in range(count)]
    made.rows.copy_(torch.from_numpy(Guesses.fresh(samples)))
    return made


def guess_at(made: Guesses, step: int, logits: torch.Tensor) -> np.ndarray:
    """The tokens that are given after `take` at a step."""
    model, n = made.model, len(made.rows)
    latents = {name: rows.repeat(n, 1, 1) for name, rows in model.initial_latents(1).items()}
    x = model.embed(made.rows[:, -16:], torch.zeros(n, dtype=torch.int32)).detach()
    with torch.no_grad():
        made.take(torch.full((n,), step), logits.expand(n, -1, -1), latents, x)
    return made.rows[:, -16:].numpy().copy()


def test_guesses_that_the_rules_refuse_are_not_made_and_none_is_first_twice() -> None:
    board = sudoku.generate(1, size=4, seed=9, clues=(4, 4))[0][0]
    tokens = board.astype(np.int32) + 1
    logits = torch.full((16, 6), 1.0)
    made, firsts = guessing(tokens, 30), []
    for turn in range(4):
        given = guess_at(made, FIRST + turn * RETURN, logits)
        assert ((given != tokens).sum(1) == 1).all()
        rules = made.rules
        assert rules is not None
        masks = torch.from_numpy(np.where(given == BLANK, rules.every, 1 << given)).int()
        assert rules(masks)[1].all()
        firsts.append(np.stack([(given != tokens).argmax(1), given.max(1, where=given != tokens, initial=0)], 1))
    for sample in np.stack(firsts, 1):
        assert len(np.unique(sample, axis=0)) == 4


def test_of_what_is_drawn_the_guess_is_made_from_which_most_follows() -> None:
    tokens = np.full(16, BLANK, dtype=np.int32)
    tokens[:3] = 2, 3, 4  # 5 has to stand at position 3: a second row that begins so says more than a free place
    made = guessing(tokens, 400)
    rules, logits = made.rules, torch.full((16, 6), 1.0)
    assert rules is not None
    masks = torch.where(torch.from_numpy(tokens) == BLANK, rules.every, 1 << torch.from_numpy(tokens))[None].int()
    left, _ = rules(masks)
    follows = np.zeros((16, 6), dtype=int)
    for place in range(16):
        for token in range(2, 6):
            tried = left.clone()
            tried[0, place] = 1 << token
            after, sound = rules(tried)
            follows[place, token] = int(counts(left).sum() - counts(after).sum()) if sound else -1
    may = (left[0].numpy()[:, None] >> np.arange(6)) & 1 != 0
    seeds = torch.arange(400, dtype=torch.int32) * 7919
    noise = gumbel(seeds, torch.full((400,), FIRST), (16, 6)).numpy()  # all answers are equally likely
    given = guess_at(made, FIRST, logits)
    for sample, row in enumerate(given):
        drawn = np.argsort(np.where(may, -noise[sample], np.inf), axis=None)[:DRAWN]
        best = drawn[follows.ravel()[drawn].argmax()]
        (place,) = np.flatnonzero(row != tokens)
        assert (place, row[place]) == (best // 6, best % 6)


def test_those_that_guess_alone_are_computed_with_to_the_same_bits() -> None:
    board = sudoku.generate(1, size=4, seed=9, clues=(4, 4))[0][0]
    found, steps = [], torch.tensor([1, FIRST - 1, FIRST, FIRST, FIRST + 1, FIRST + RETURN, 9])
    for waits in (False, True):
        torch.manual_seed(0)
        made = guessing(board.astype(np.int32) + 1, len(steps))
        made.waits, made.rows[3, 0] = waits, PAD
        latents = {name: torch.randn(len(steps), 16, 16) for name in made.latents}
        x, logits = (torch.randn(len(steps), 16, width) for width in (16, 6))
        with torch.no_grad():
            for _ in range(3):
                made.take(steps, logits, latents, x)
        found.append([*made.buffers, *latents.values(), x])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
