"""Captured training steps: the same bits as eager ones, with a recorder here and CUDA graphs on a GPU."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.impl import launches
from rtm_kernels.recursion.graph import CudaGraphs
from rtm_kernels.train.checkpoint import load_checkpoint, save_checkpoint
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import Recipe, Stage
from rtm_kernels.train.steps import Diverged
from tests.recursion.simulated_cuda import Graph, simulate
from tests.recursion.support import Recorder
from tests.train.support import MODEL, TINY, same, weights
from tests.train.test_objectives import ARCHS
from tests.train.test_symmetry import RECIPE as SYMMETRIC

NAMES = [name for name in ARCHS if name != "rtm-token"]
EMBEDDED = dataclasses.replace(MODEL, puzzle_emb_ndim=16, num_puzzle_identifiers=3)
CAPTURED = ("adam_atan2", "adamw")
"""Optimisers whose step is captured with everything around it."""


def recipe_of(name: str, **changes: Any) -> Recipe:
    if name == "symmetric":
        return dataclasses.replace(SYMMETRIC, graph=True, **changes)
    model, objective = ARCHS[name]
    stages = tuple(dataclasses.replace(stage, batch_size=4) for stage in TINY.stages)
    made = dataclasses.replace(
        TINY, model=dataclasses.replace(MODEL, **model), objective=objective, graph=True, stages=stages, accumulate=2
    )
    return dataclasses.replace(made, **changes)


def embedded(optimizer: str, **changes: Any) -> Recipe:
    """Puzzle embeddings with ids that repeat, two stages of other batch sizes and depths, parts that are added up."""
    return dataclasses.replace(TINY, model=EMBEDDED, optimizer=optimizer, graph=True, accumulate=2, **changes)


def trainer_of(recipe: Recipe, capture: CudaGraphs | None = None, device: str = "cpu") -> Trainer:
    """A trainer whose puzzles have identifiers 0, 1, 2, 0, ..."""
    made = Trainer(recipe, device, capture)
    batch = made.stream.batch

    def identified(size: int, mix: Any) -> dict[str, torch.Tensor]:
        return {**batch(size, mix), "puzzle_identifiers": torch.arange(size, dtype=torch.int32) % 3}

    made.stream.batch = identified  # type: ignore[method-assign]
    return made


def states(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights, moving average, and all that the optimisers keep of parameters that were ever updated."""
    slots = [o.state_dict()["state"] for o in trainer.optimizers]
    kept = {f"{i}.{k}.{n}": t for i, s in enumerate(slots) for k, v in s.items() for n, t in v.items() if v["step"] > 0}
    return weights(trainer) | {name: t.clone() for name, t in kept.items()}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", [*NAMES, "symmetric"])
def test_replayed_steps_train_as_eager_ones(name: str, device: str) -> None:
    recipe = recipe_of(name, optimizer="adam_atan2")
    eager = Trainer(dataclasses.replace(recipe, graph=False), device)
    expected = [eager.step() for _ in range(recipe.total_steps)]
    recorder = Recorder()
    captured = Trainer(recipe, device, recorder if device == "cpu" else None)
    found = [captured.step() for _ in range(recipe.total_steps)]
    losses, rel = [step["loss"] for step in expected], 1e-5 if device == "cpu" else 1e-3
    assert [step["loss"] for step in found] == pytest.approx(losses, rel=rel)
    if device == "cuda":
        return
    assert recorder.runs > 2
    assert found[-1].keys() == expected[-1].keys()
    for (key, value), other in zip(weights(eager).items(), weights(captured).values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=key)


def test_a_state_loaded_between_replays_is_the_one_that_is_trained_on(tmp_path: Path) -> None:
    captured = trainer_of(embedded("adam_atan2"), Recorder())
    save_checkpoint(captured, tmp_path)
    kept = []
    for _ in range(2):
        load_checkpoint(captured, tmp_path)
        for _ in range(4):
            captured.step()
        kept.append(states(captured))
    assert same(*kept)


def poisoned(trainer: Trainer, at: set[int]) -> None:
    """From now on the gradients of the steps in `at` hold an infinite number."""
    gradients = trainer._gradients

    def gradients_of(stage: Any) -> Any:
        sums, rows = gradients(stage)
        if trainer.step_count in at:
            next(p for p in trainer.model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf
        return sums, rows

    trainer._gradients = gradients_of  # type: ignore[method-assign]


@pytest.mark.parametrize("optimizer", (*CAPTURED, "muon"))
def test_a_gradient_that_is_not_finite_leaves_every_bit_and_three_end_the_run(optimizer: str) -> None:
    recipe = embedded(optimizer)
    eager, captured = trainer_of(dataclasses.replace(recipe, graph=False)), trainer_of(recipe, Recorder())
    for one in (eager, captured):
        poisoned(one, {0, 3, 5, 6, 7})
        for step in range(7):
            before = weights(one)
            metrics = one.step()
            assert same(before, weights(one)) == (step in {0, 3, 5, 6})
        assert metrics["skipped"] == 4 and one.in_a_row == 2
        with pytest.raises(Diverged, match="in 3 steps in a row"):
            one.step()


def test_what_cannot_be_captured_is_told_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = Trainer(embedded("muon"), capture=Recorder())
    assert made.gradients.capture is not None and made.captured_update is None
    assert "step is not captured: torch.optim.Muon computes its learning rate on the host" in caplog.text
    with pytest.raises(BackendUnavailable, match="graph=True cannot run"):
        Trainer(dataclasses.replace(TINY, graph=True))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replays, and what makes the host wait for its results, in order, over a simulated device."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("there is a real device")
    simulate(monkeypatch)
    heard: list[str] = []

    def listen(owner: type, name: str) -> None:
        plain = getattr(owner, name)

        def noted(self: Any, *args: Any) -> Any:
            heard.append(name)
            return plain(self, *args)

        monkeypatch.setattr(owner, name, noted)

    listen(torch.Tensor, "tolist"), listen(torch.Tensor, "item"), listen(Graph, "replay")
    return heard


@pytest.mark.parametrize("optimizer", CAPTURED)
@pytest.mark.parametrize("cut", [None, 1, 5])
def test_on_a_device_a_step_is_two_graphs_and_one_wait_at_its_end(
    optimizer: str, cut: int | None, waits: list[str], tmp_path: Path
) -> None:
    """What a capture forbids would raise here; every step, resumed or not, has the bits of an eager one."""
    recipe = dataclasses.replace(embedded(optimizer), accumulate=1)
    eager = trainer_of(dataclasses.replace(recipe, graph=False))
    captured = trainer_of(recipe, CudaGraphs(torch.device("cpu")))
    for step in range(recipe.total_steps):
        if step == cut:
            save_checkpoint(captured, tmp_path)
            captured = trainer_of(recipe, CudaGraphs(torch.device("cpu")))
            load_checkpoint(captured, tmp_path)
        generator = torch.get_rng_state()  # both explore alike
        expected = eager.step()
        torch.set_rng_state(generator)
        waits.clear()
        assert captured.step() == expected
        assert same(states(eager), states(captured)), f"step {step}"
        if cut is None and step in (2, 5, 6, 7):  # 0 and 3 see which gradients their stage has, 1 and 4 capture
            assert waits == ["replay", "replay", "tolist"], f"step {step}"
    assert not torch.equal(eager.model.puzzle_emb.weights, torch.zeros_like(eager.model.puzzle_emb.weights))


@pytest.mark.parametrize("name", ["trm", "rtm"])
def test_on_a_device_captured_steps_take_the_loss_from_its_kernel(name: str, waits: list[str]) -> None:
    stages = (Stage(steps=4, batch_size=2, mix={"all": 1.0}, halt_max_steps=2),)
    recipe = recipe_of(name, optimizer="adam_atan2", accumulate=1, stages=stages)
    eager = Trainer(dataclasses.replace(recipe, graph=False))
    captured = Trainer(recipe, capture=CudaGraphs(torch.device("cpu")))
    captured.model.impl = "triton"
    replayed = 0
    for _ in range(recipe.total_steps):
        generator = torch.get_rng_state()
        expected = eager.step()
        torch.set_rng_state(generator)
        waits.clear(), launches.clear()
        assert captured.step() == pytest.approx(expected, rel=2e-4)
        assert launches["token_loss.forward"] == launches["token_loss.backward"] > 0
        replayed += waits[-3:] == ["replay", "replay", "tolist"]
    assert replayed > 1


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", CAPTURED)
def test_cuda_graphs_have_the_bits_of_eager_steps(optimizer: str) -> None:
    recipe = embedded(optimizer)
    eager, captured = (trainer_of(dataclasses.replace(recipe, graph=g), device="cuda") for g in (False, True))
    for one in (eager, captured):
        poisoned(one, {3})
    for step in range(recipe.total_steps):
        generator = torch.cuda.get_rng_state()
        expected = eager.step()
        torch.cuda.set_rng_state(generator)
        assert captured.step() == expected
        assert same(states(eager), states(captured)), f"step {step}"
