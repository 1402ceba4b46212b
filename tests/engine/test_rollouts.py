from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from rtm_kernels.engine import Rollouts, Service, Solution, Solver
from rtm_kernels.engine.executor import Act, ActStep
from rtm_kernels.engine.rollouts import preference
from rtm_kernels.engine.samples import Finished
from rtm_kernels.errors import InputError
from tests.engine import fakes, test_guesses, test_twins
from tests.engine.fakes import TASK, ScriptedExecutor, model


class NoisyExecutor(ScriptedExecutor):
    """Plays the script of a puzzle, but only while the noise has carried a fixed coordinate above 0.5.

    Without noise no puzzle that starts with 5 is ever answered, whatever the depth.
    """

    @property
    def recorded(self) -> Act:
        return self.step

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        clean = {name: torch.zeros_like(latent) for name, latent in latents.items()}
        _, right, q, *_ = super().step({name: latent + 9 for name, latent in clean.items()}, x)
        stuck = (x[:, 0, 0] / x.shape[-1] ** 0.5).round() == 6
        lucky = latents["z_H"][:, 0, 0] > 0.5
        wrong = torch.nn.functional.one_hot(torch.full(right.shape[:2], 2), right.shape[-1]).float()
        logits = torch.where((stuck & ~lucky)[:, None, None], wrong, right)
        new = {name: latent.clone() for name, latent in latents.items()}
        return ActStep(new, logits, q)


def solver(count: int, batch_size: int = 4, noise: float = 0.25, seed: int = 0, max_steps: int = 8) -> Solver:
    result = Solver(
        model(), task=TASK, rollouts=Rollouts(count, noise, seed), batch_size=batch_size, max_steps=max_steps
    )
    result.executor = NoisyExecutor(result.model)
    return result


def chosen(solution: Solution) -> tuple[object, ...]:
    return solution.answer, solution.status, solution.steps, solution.rollout, solution.residual


def test_noise_finds_what_one_run_does_not() -> None:
    (alone,) = solver(1).solve(["5012"])
    assert (alone.status, alone.steps, alone.rollout, alone.total_steps) == ("unverified", 8, 0, 8)
    (wide,) = solver(16).solve(["5012"])
    assert wide.status == "verified" and wide.rollout > 0
    assert wide.total_steps > 8 + wide.steps


def test_a_puzzle_that_one_run_solves_gets_no_further_rollouts() -> None:
    solutions = solver(16).solve(["1012", "2012"])
    assert [(s.status, s.rollout, s.total_steps) for s in solutions] == [("verified", 0, 1)] * 2


def test_the_seed_changes_the_rollouts() -> None:
    puzzles = [f"50{i}{j}" for i in range(4) for j in range(4)]
    runs = [[chosen(s) for s in solver(4, seed=seed, batch_size=32).solve(puzzles)] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_once_confirmed_the_others_stop_at_its_depth() -> None:
    (wide,) = solver(16, batch_size=64).solve(["5012"])
    assert wide.status == "verified"
    assert wide.total_steps <= 8 + 15 * (wide.steps + 1)


def finished(rollout: int, **changes: object) -> Finished:
    values: dict[str, object] = {
        "key": 0, "answer": TASK.encode("1111"), "verified": False, "reason": "max_steps", "steps": 8,
        "answer_step": 8, "halt_probability": 0.5, "residual": 0.1, "seconds": 0.0, "rollout": rollout,
    }  # fmt: skip
    return Finished(**(values | changes))  # type: ignore[arg-type]


def test_preference_verifier_then_head_then_residual() -> None:
    broken = finished(0, answer=None, halt_probability=None, residual=None)
    unsure = finished(1, halt_probability=0.2)
    moving = finished(2, halt_probability=0.9, residual=0.3)
    settled = finished(3, halt_probability=0.9, residual=0.01)
    late = finished(4, verified=True, steps=5, halt_probability=0.1)
    early = finished(5, verified=True, steps=4, halt_probability=0.0)
    ranked = sorted([broken, unsure, moving, settled, late, early], key=preference)
    assert [d.rollout for d in ranked] == [5, 4, 3, 2, 1, 0]
    headless = [finished(i, halt_probability=None, residual=r) for i, r in enumerate((0.3, 0.1))]
    assert min(headless, key=preference).rollout == 1


@pytest.mark.parametrize(
    ("field", "value"), [("rollouts", 0), ("rollouts", 10**6), ("noise", -1.0), ("seed", 0.5), ("agree", 2)]
)
def test_bad_rollouts_are_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        Rollouts(**{"count" if field == "rollouts" else field: value})  # type: ignore[arg-type]


def test_twins_of_a_task_without_symmetries_are_refused() -> None:
    with pytest.raises(InputError, match="kind='twins' is not allowed: reverse has no symmetries"):
        Solver(model(), task=TASK, rollouts=Rollouts(4, kind="twins"))
    with pytest.raises(InputError, match="kind='luck' is not allowed: expected one of auto, guesses, twins, noise"):
        Rollouts(4, kind="luck")


@pytest.mark.parametrize("kind", ["noise", "twins", "guesses"])
def test_the_choice_does_not_depend_on_batch_size_order_capture_or_service(kind: str) -> None:
    guessed = [*test_guesses.PUZZLES[:4], test_guesses.SPARSE]
    texts = {"twins": test_twins.puzzles(), "guesses": guessed}.get(kind, ["5012", "1000", "2345", "5021"])

    def made(batch_size: int) -> Solver:
        torch.manual_seed(0)
        if kind == "noise":
            return solver(9, batch_size=batch_size)
        return (
            test_twins.solver(9, batch_size=batch_size)
            if kind == "twins"
            else test_guesses.solver(3, batch_size=batch_size)
        )

    def choices(found: list[Solution]) -> dict[str, tuple[object, ...]]:
        return {s.input: chosen(s) for s in found}

    expected = {text: choices(made(1).solve([text]))[text] for text in texts}
    assert len({values[3 if kind != "guesses" else 2] for values in expected.values()}) > 1
    for size, order, place in (
        (2, texts, fakes.captured),
        (5, texts[::-1], lambda solver: solver),
        (64, texts, fakes.captured),
    ):
        assert choices(place(made(size)).solve(order)) == {**expected}
    with Service(fakes.captured(made(3))) as service:
        assert choices([future.result(60) for future in service.submit_all(texts)]) == expected
