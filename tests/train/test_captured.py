"""Captured training steps: the same losses and weights as eager ones, with a recorder here and CUDA graphs on a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import Recipe
from tests.recursion.support import Recorder
from tests.train.support import MODEL, TINY, same, weights
from tests.train.test_contracts import ARCHS

NAMES = [name for name in ARCHS if name != "rtm-token"]


def recipe_of(name: str) -> Recipe:
    model, contract = ARCHS[name]
    stages = tuple(dataclasses.replace(stage, batch_size=4) for stage in TINY.stages)
    return dataclasses.replace(
        TINY, model=dataclasses.replace(MODEL, **model), contract=contract, graph=True, stages=stages, accumulate=2
    )


@pytest.mark.parametrize("name", NAMES)
def test_replayed_steps_train_as_eager_ones(name: str) -> None:
    recipe = recipe_of(name)
    eager = Trainer(dataclasses.replace(recipe, graph=False))
    expected = [eager.step() for _ in range(recipe.total_steps)]
    recorder = Recorder()
    captured = Trainer(recipe, capture=recorder)
    found = [captured.step() for _ in range(recipe.total_steps)]
    assert recorder.runs > 4
    assert [step["loss"] for step in found] == pytest.approx([step["loss"] for step in expected], rel=1e-5)
    assert found[-1].keys() == expected[-1].keys()
    for (key, value), other in zip(weights(eager).items(), weights(captured).values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=key)


def test_deep_supervision_has_the_bits_of_eager_steps() -> None:
    recipe = dataclasses.replace(recipe_of("trm"), accumulate=1)
    eager, captured = Trainer(dataclasses.replace(recipe, graph=False)), Trainer(recipe, capture=Recorder())
    for _ in range(recipe.total_steps):
        assert eager.step() == captured.step()
    assert same(weights(eager), weights(captured))


def test_what_cannot_be_captured_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="graph=True is not allowed"):
        dataclasses.replace(TINY, graph=True, model=dataclasses.replace(MODEL, puzzle_emb_ndim=16))
    with pytest.raises(BackendUnavailable, match="graph=True cannot run"):
        Trainer(dataclasses.replace(TINY, graph=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_cuda_graphs_train_as_eager_steps(name: str) -> None:
    recipe = recipe_of(name)
    eager, captured = (Trainer(dataclasses.replace(recipe, graph=graph), "cuda") for graph in (False, True))
    for _ in range(recipe.total_steps):
        assert captured.step()["loss"] == pytest.approx(eager.step()["loss"], rel=1e-3)
