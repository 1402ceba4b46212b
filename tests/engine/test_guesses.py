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
from rtm_kernels.engine import HaltingPolicy, Rollouts, Solver
from rtm_kernels.engine.executor import Act, ActStep
from rtm_kernels.engine.guesses import EVERY, FIRST, RETURN, SHARPNESS, Guesses, gumbel
from rtm_kernels.engine.samples import Sample
from rtm_kernels.errors import InputError
from rtm_kernels.model import RecursiveReasoner
from tests.engine import fakes

BLANK = sudoku.Sudoku.open_token
CONFIG = ModelConfig(vocab_size=6, seq_len=16, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1,
                     layers={"L_level": 1}, halt_max_steps=9, halting="settle")  # fmt: skip
PUZZLES = [sudoku.to_text(board) for board in sudoku.generate(8, size=4, seed=9, clues=(5, 5))[0]]

SPARSE = sudoku.to_text(sudoku.generate(1, size=4, seed=9, clues=(4, 4))[0][0])
"""Four clues: with two guesses `Unsure` does not know the answer."""


def reasoner() -> RecursiveReasoner:
    """A model whose embedding of token t is t in every feature."""
    made = RecursiveReasoner(CONFIG)
    with torch.no_grad():
        made.embed_tokens.embedding_weight.copy_(torch.arange(6.0)[:, None].expand(-1, CONFIG.hidden_size))
    return made


class Unsure:
    """Prefers the right digits, some more than others, and one in four wrong; knows them all with 7 cells given.

    It does so for as many steps as its latents count, which a run exceeds that does not come back.
    """

    name, batch_invariant, check = "unsure", True, staticmethod(lambda: None)

    def __init__(self, model: RecursiveReasoner) -> None:
        self.new = model.initial_latents(1)["z_H"][0, 0, 0]

    @property
    def recorded(self) -> Act:
        return self.step

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        tokens = (x[..., 0] / CONFIG.hidden_size**0.5).round().long().numpy()
        steps = (latents["z_H"][:, 0, 0] - self.new).round() + 1
        rows = [self.logits(*row) for row in zip(tokens, (steps <= FIRST + RETURN).tolist(), strict=True)]
        logits = torch.stack(rows) if rows else torch.zeros(0, 16, 6)
        return ActStep({name: latent + 1 for name, latent in latents.items()}, logits, None)

    @staticmethod
    def logits(tokens: np.ndarray, awake: bool) -> Tensor:
        count, answer = sudoku.solve((tokens - 1).clip(0).astype(np.uint8)[None])
        hot = torch.nn.functional.one_hot(torch.from_numpy(answer[0].astype(np.int64)) + 1, 6).double()
        if awake and count[0] == 1 and (tokens > BLANK).sum() >= 5 + 2:
            return hot.float() * 9
        places = torch.arange(16)[:, None]
        return torch.where(places % 4 == 3, 2 * hot.roll(1, 0), hot * (1 + places % 3)).float()


def solver(count: int, **options: Any) -> Solver:
    made = Solver(reasoner(), task="sudoku4", rollouts=Rollouts(count, kind="guesses"), **options)
    made.executor = Unsure(made.model)
    return made


def test_guesses_find_what_one_run_does_not() -> None:
    assert {text.count(".") for text in PUZZLES} == {11}
    assert {s.status for s in solver(1).solve(PUZZLES)} == {"unverified"}
    for text, solution in zip(PUZZLES, solver(24).solve(PUZZLES), strict=True):
        assert solution.status == "verified" and solution.answer is not None
        assert get_task("sudoku4").verify(text, solution.answer).verified and solution.input == text
        assert solution.steps > FIRST + EVERY  # two guesses have to be made first
        assert (solution.steps - FIRST - 1) % RETURN >= EVERY
        assert solution.total_steps == solution.steps <= 24 * CONFIG.halt_max_steps


def rows_of(model: RecursiveReasoner, samples: list[Sample]) -> Guesses:
    made = Guesses(model, len(samples))
    made.rows.copy_(torch.from_numpy(Guesses.fresh(samples)))
    return made


def embedded(model: RecursiveReasoner, tokens: Tensor) -> Tensor:
    return model.embed(tokens, torch.zeros(len(tokens), dtype=torch.int32)).detach()


def latents_of(model: RecursiveReasoner, count: int) -> dict[str, Tensor]:
    return {name: torch.randn(count, *rows.shape[1:]) for name, rows in model.initial_latents(1).items()}


def test_open_positions_alone_take_tokens_and_every_few_steps_all_is_as_it_was() -> None:
    model, rng = reasoner(), np.random.default_rng(0)
    tokens = rng.integers(1, 6, (40, 16)).astype(np.int32)
    tokens[0] = 3  # nothing is open
    samples = [Sample(i, row, seed=i, open_token=PAD if i % 2 else BLANK) for i, row in enumerate(tokens)]
    made, puzzle, kept = rows_of(model, samples), torch.from_numpy(tokens), dict[str, Tensor]()
    x, opened = embedded(model, puzzle), (puzzle == BLANK).sum(1)
    guesses = torch.arange(40) % 2 == 0
    for step in range(1, 3 * RETURN):
        latents = latents_of(model, 40)
        after = {name: rows.clone() for name, rows in latents.items()}
        made.take(torch.full((40,), step), torch.randn(40, 16, 6), latents, x)
        if step == FIRST:
            kept = after
        since = (step - FIRST) % RETURN
        expected = {k: torch.where(guesses[:, None, None], kept[k], v) if kept and since == 0 else v
                    for k, v in after.items()}  # fmt: skip
        assert all(torch.equal(latents[name], rows) for name, rows in expected.items())
        now = made.rows[:, -16:]
        count = 0 if step < FIRST else 1 + since // EVERY
        assert torch.equal((now != puzzle).sum(1), torch.where(guesses, opened.clamp(max=count), 0))
        assert (puzzle[now != puzzle] == BLANK).all() and (now[now != puzzle] > BLANK).all()
        assert torch.equal(x, embedded(model, now))


@pytest.mark.parametrize("step", [FIRST, FIRST + EVERY, FIRST + RETURN])
def test_answers_are_drawn_by_a_power_of_their_probability(step: int) -> None:
    model, n = reasoner(), 20_000
    tokens = np.full(16, 2, dtype=np.int32)
    tokens[[3, 7]] = BLANK
    logits = torch.zeros(16, 6)
    logits[3] = torch.tensor([5.0, 5.0, 3.0, 2.0, -1.0, -3.0])  # padding and blank are the likeliest, and no guesses
    logits[7] = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, -1.0])
    made = rows_of(model, [Sample(i, tokens, seed=i * 7919, open_token=BLANK) for i in range(n)])
    latents, x = latents_of(model, n), embedded(model, made.rows[:, -16:])
    if step > FIRST + EVERY:  # it draws from what was said after FIRST
        made.take(torch.full((n,), FIRST), logits.expand(n, -1, -1), latents, x)
    said = logits.roll(1, 1) if step > FIRST + EVERY else logits
    made.take(torch.full((n,), step), said.expand(n, -1, -1), latents, x)
    now = made.rows[:, -16:].numpy()
    found = Counter((3, int(row[3])) if row[3] != BLANK else (7, int(row[7])) for row in now)
    weights = {}
    for place in (3, 7):
        z = logits[place].double()
        s = torch.where(z < 0, 1 / (1 - z), z + 1)
        weights |= {(place, token): float((s / s.sum())[token] ** SHARPNESS) for token in range(2, 6)}
    total = sum(weights.values())
    for key, weight in weights.items():
        expected = n * weight / total
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
    made, back = Rollouts(3, noise=0.5).rollout(fakes.TASK, Sample("key", fakes.TASK.encode("1234")), 2, 7)
    assert (made.key, made.noise, made.max_steps, back) == (("key", 2), 0.5, 7, None)
    assert Rollouts(4, kind="twins").of(get_task("sudoku")) == "twins"
    with pytest.raises(InputError, match="kind='guesses' is not allowed: reverse has no blanks"):
        Solver(fakes.model(), task=fakes.TASK, rollouts=Rollouts(4, kind="guesses"))


def test_one_run_takes_the_steps_of_all_where_only_a_confirmed_answer_ends_it() -> None:
    task = get_task("sudoku")
    assert Rollouts(4).in_one(task, HaltingPolicy())
    for policy in (HaltingPolicy(on=()), HaltingPolicy(on=("q", "verified"))):
        assert not Rollouts(4).in_one(task, policy)
    assert not Rollouts(4, kind="twins").in_one(task, HaltingPolicy())
    assert not Rollouts(1).in_one(task, HaltingPolicy())
    found = solver(24, policy="verified+settle=99").solve(PUZZLES[:4])
    assert all(s.steps <= CONFIG.halt_max_steps < s.total_steps for s in found if s.status == "unverified")
