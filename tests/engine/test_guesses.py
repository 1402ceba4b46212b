"""Guesses: which answers are taken as given, when, and that they find what a plain run does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.data import sudoku
from rtm_kernels.data.task import PAD, get_task
from rtm_kernels.engine import Rollouts, Service, Solver
from rtm_kernels.engine.executor import Act, Latents
from rtm_kernels.engine.guesses import EVERY, FIRST, SHARPNESS, Guesses, gumbel
from rtm_kernels.engine.slots import Sample
from rtm_kernels.errors import InputError
from rtm_kernels.model import RecursiveReasoner
from tests.engine import fakes
from tests.engine.test_device_slots import on_device

BLANK = sudoku.Sudoku.open_token
CONFIG = ModelConfig(vocab_size=6, seq_len=16, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1,
                     layers={"L_level": 1}, halt_max_steps=9, halting="settle")  # fmt: skip
PUZZLES = [sudoku.to_text(board) for board in sudoku.generate(8, size=4, seed=9, clues=(5, 5))[0]]


def reasoner() -> RecursiveReasoner:
    """A model whose embedding of token t is t in every feature."""
    made = RecursiveReasoner(CONFIG)
    with torch.no_grad():
        made.embed_tokens.embedding_weight.copy_(torch.arange(6.0)[:, None].expand(-1, CONFIG.hidden_size))
    return made


class Unsure:
    """Prefers the right digits, some more than others, and one in four wrong; knows them all with 7 cells given."""

    name, batch_invariant = "unsure", True

    @property
    def recorded(self) -> Act:
        return self.step

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> tuple[Latents, Tensor, Tensor | None]:
        tokens = (x[..., 0] / CONFIG.hidden_size**0.5).round().long().numpy()
        logits = torch.stack([self.logits(row) for row in tokens]) if len(tokens) else torch.zeros(0, 16, 6)
        return dict(latents), logits, None

    @staticmethod
    def logits(tokens: np.ndarray) -> Tensor:
        count, answer = sudoku.solve((tokens - 1).clip(0).astype(np.uint8)[None])
        hot = torch.nn.functional.one_hot(torch.from_numpy(answer[0].astype(np.int64)) + 1, 6).double()
        if count[0] == 1 and (tokens > BLANK).sum() >= 5 + 2:
            return hot.float() * 9
        places = torch.arange(16)[:, None]
        return torch.where(places % 4 == 3, 2 * hot.roll(1, 0), hot * (1 + places % 3)).float()


def solver(count: int, **options: Any) -> Solver:
    made = Solver(reasoner(), task="sudoku4", rollouts=Rollouts(count, kind="guesses"), **options)
    made.executor = Unsure()
    return made


def test_guesses_find_what_one_run_does_not() -> None:
    assert {text.count(".") for text in PUZZLES} == {11}
    assert {s.status for s in solver(1).solve(PUZZLES)} == {"unverified"}
    for text, solution in zip(PUZZLES, solver(24).solve(PUZZLES), strict=True):
        assert solution.status == "verified" and solution.rollout > 0 and solution.answer is not None
        assert get_task("sudoku4").verify(text, solution.answer).verified and solution.input == text
        assert solution.steps > FIRST + EVERY  # two guesses have to be made first


def test_the_choice_does_not_depend_on_batch_size_order_place_or_service() -> None:
    expected = {s.input: (s.answer, s.status, s.rollout, s.steps) for s in solver(9, batch_size=1).solve(PUZZLES)}
    assert len({s.rollout for s in solver(9).solve(PUZZLES)}) > 1
    for size in (2, 5, 64):
        for order in (PUZZLES, PUZZLES[::-1]):
            for made in (solver(9, batch_size=size), on_device(solver(9, batch_size=size))):
                found = made.solve(order)
                assert {s.input: (s.answer, s.status, s.rollout, s.steps) for s in found} == expected
    with Service(solver(9, batch_size=3)) as service:
        futures = [service.submit(text) for text in PUZZLES]
        found = [f.result(60) for f in futures]
        assert {s.input: (s.answer, s.status, s.rollout, s.steps) for s in found} == expected


def rows_of(model: RecursiveReasoner, samples: list[Sample]) -> Guesses:
    made = Guesses(model, len(samples))
    made.rows.copy_(torch.from_numpy(Guesses.fresh(samples)))
    return made


def embedded(model: RecursiveReasoner, tokens: Tensor) -> Tensor:
    return model.embed(tokens, torch.zeros(len(tokens), dtype=torch.int32)).detach()


def test_open_positions_alone_take_tokens_and_only_when_a_guess_is_due() -> None:
    model, rng = reasoner(), np.random.default_rng(0)
    tokens = rng.integers(1, 6, (40, 16)).astype(np.int32)
    tokens[0] = 3  # nothing is open
    samples = [Sample(i, row, seed=i, open_token=PAD if i % 2 else BLANK) for i, row in enumerate(tokens)]
    for step in range(1, 12):
        made, given = rows_of(model, samples), torch.from_numpy(tokens)
        x = embedded(model, given)
        made.take(torch.full((40,), step), torch.randn(40, 16, 6), x)
        now = made.rows[:, 3:]
        due = step >= FIRST and (step - FIRST) % EVERY == 0
        changed = (now != given).sum(1).tolist()
        assert changed == [int(due and i % 2 == 0 and 1 in tokens[i]) for i in range(40)]
        assert (given[now != given] == BLANK).all() and (now[now != given] > BLANK).all()
        assert torch.equal(x, embedded(model, now))


def test_answers_are_drawn_by_the_fourth_power_of_their_probability() -> None:
    model = reasoner()
    tokens = np.full(16, 2, dtype=np.int32)
    tokens[[3, 7]] = BLANK
    logits = torch.zeros(16, 6)
    logits[3] = torch.tensor([5.0, 5.0, 3.0, 2.0, -1.0, -3.0])  # padding and blank are the likeliest, and no guesses
    logits[7] = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, -1.0])
    made = rows_of(model, [Sample(i, tokens, seed=i * 7919, open_token=BLANK) for i in range(20_000)])
    x = embedded(model, made.rows[:, 3:])
    made.take(torch.full((20_000,), FIRST), logits.expand(20_000, -1, -1), x)
    now = made.rows[:, 3:].numpy()
    found = Counter((3, int(row[3])) if row[3] != BLANK else (7, int(row[7])) for row in now)
    weights = {}
    for place in (3, 7):
        z = logits[place].double()
        s = torch.where(z < 0, 1 / (1 - z), z + 1)
        weights |= {(place, token): float((s / s.sum())[token] ** SHARPNESS) for token in range(2, 6)}
    total = sum(weights.values())
    for key, weight in weights.items():
        expected = 20_000 * weight / total
        assert abs(found[key] - expected) < 5 * max(1.0, expected**0.5), key


def test_the_noise_is_gumbels_and_depends_on_seed_step_and_place() -> None:
    seeds, steps = torch.arange(500, dtype=torch.int32), torch.full((500,), 3)
    noise = gumbel(seeds, steps, (16, 6))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, rel=0.03)
    assert len(noise.unique()) > 0.999 * noise.numel()
    assert torch.equal(gumbel(seeds[7:8], steps[:1], (16, 6))[0], noise[7])
    assert not torch.equal(gumbel(seeds, steps + 2, (16, 6)), noise)
    assert abs(np.corrcoef(noise[:-1].flatten(), noise[1:].flatten())[0, 1]) < 0.02


def test_kinds_are_what_a_task_has() -> None:
    assert Rollouts(4).of(get_task("sudoku")) == "guesses"
    assert Rollouts(4).of(fakes.TASK) == "noise"
    assert Rollouts(4, kind="twins").of(get_task("sudoku")) == "twins"
    with pytest.raises(InputError, match="kind='guesses' is not allowed: reverse has no blanks"):
        Solver(fakes.model(), task=fakes.TASK, rollouts=Rollouts(4, kind="guesses"))
