"""The step of Muon on whole symmetric matrices, taken on their blocks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from rtm_kernels.data.sudoku import Sudoku
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion import symmetric
from rtm_kernels.recursion.symmetric_weights import expanded, mean_blocks
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.symmetric_muon import SymmetricMuon
from rtm_kernels.train.symmetry import Symmetry
from tests.train.test_symmetry import NINE, RECIPE


def polar(grad: Tensor, *_: object) -> Tensor:
    """What Newton-Schulz approximates: all singular values that are not zero become 1."""
    u, values, v = torch.linalg.svd(grad.double(), full_matrices=False)
    return ((u * (values > 1e-5 * values[0])) @ v).to(grad.dtype)


def test_the_step_is_that_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", polar)
    torch.manual_seed(0)
    model = RecursiveReasoner(NINE)
    symmetry = Symmetry(model, Sudoku(9))
    symmetry.fresh_(model)
    weights = symmetry.channel_mixes(model)
    whole = {name: torch.nn.Parameter(w.detach().clone()) for name, w in weights.items()}
    ours = SymmetricMuon(weights, symmetry.values, lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon(whole.values(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = {name: w.detach().clone() for name, w in weights.items()}
    for _ in range(3):
        for weight in weights.values():
            weight.grad = torch.randn_like(weight)
        symmetry.gradients_(model)
        for name, weight in whole.items():
            weight.grad = weights[name].grad
        ours.step()
        theirs.step()
    assert len(whole) == 4
    for name, weight in whole.items():
        moved = torch.linalg.vector_norm(weight - before[name])
        assert torch.linalg.vector_norm(weight - weights[name]) < 1e-3 * moved and moved > 0.1, name


def test_blocks_stay_on_the_device_of_their_weight() -> None:
    """On the meta device, where mixing devices fails as it does on a GPU."""
    weights = {"L_level.layers.0.mlp.gate_up_proj.weight": torch.nn.Parameter(torch.empty(40, 20, device="meta"))}
    (weight,) = weights.values()
    weight.grad = torch.empty_like(weight)
    optimizer = SymmetricMuon(weights, 9, lr=0.02, weight_decay=0.1)
    optimizer.step()
    assert {p.device.type for group in optimizer.param_groups for p in group["params"]} == {"meta"}
    assert weight.device.type == "meta" and expanded(*mean_blocks(weight, 9), 9).device.type == "meta"


def test_training_in_cpp_follows_that_of_whole_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(RECIPE, optimizer="muon")
    own = Trainer(recipe)
    assert isinstance(own.model.run, symmetric.TrainingRun)
    found = [own.step() for _ in range(3)]
    monkeypatch.setattr(symmetric, "why_not_structure", lambda model: "it is not asked to")
    other = Trainer(recipe)
    assert other.model.run is None
    expected = [other.step() for _ in range(3)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)
