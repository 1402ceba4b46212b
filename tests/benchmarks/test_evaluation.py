"""Compute-aligned evaluation: FLOPs as PyTorch counts them, arms of equal cost, and what is made of their answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.evaluation import run, text
from benchmarks.evaluation.__main__ import main
from benchmarks.evaluation.cost import sample_flops, step_flops, training_flops
from benchmarks.evaluation.measure import points, trajectory
from benchmarks.evaluation.studies import CPU, GPU, STUDIES, Scale, Study, recipes
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.train import corpus
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.recipe import PRESETS
from rtm_kernels.train.schema import Recipe

TINY = ("stages.0.steps=2", "stages.1.steps=1", "stages.*.batch_size=4", "sources.all.count=40", "test.count=12",
        "model.forward_dtype=float32")  # fmt: skip


def arms(study: str) -> dict[str, Recipe]:
    return recipes(STUDIES[study], CPU, TINY)


@pytest.mark.parametrize(
    ("study", "arm"),
    [("mixer", "attention"), ("compute-aligned", "fixed, FLOPs of 1 step"), ("halting", "per token"),
     ("no-regret", "4 rounds, fixed"), ("workspace", "prefix 4")],
)  # fmt: skip
def test_training_flops_are_those_that_pytorch_counts(study: str, arm: str) -> None:
    recipe = replace(arms(study)[arm], optimizer="adam_atan2")
    trainer = Trainer(recipe)
    trainer.step()  # the first one also draws the puzzles
    with FlopCounterMode(display=False) as counter:
        trainer.step()
    expected = recipe.stages[0].batch_size * sample_flops(recipe, recipe.stages[0])
    assert abs(counter.get_total_flops() - expected) < 0.06 * expected


OTHER_DATA = replace(GPU.base, data=None, sources=PRESETS["sudoku-small"].sources,
                     stages=(replace(GPU.base.stages[0], mix={"easy": 1.0}),))  # fmt: skip


@pytest.mark.parametrize("scale", [CPU, replace(GPU, base=OTHER_DATA)], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", STUDIES)
def test_the_arms_of_a_study_cost_the_same_to_train(name: str, scale: Scale) -> None:
    found = recipes(STUDIES[name], scale)
    costs = [training_flops(recipe) for recipe in found.values()]
    assert len(found) >= 2 and max(costs) < 1.05 * min(costs)
    with torch.device("meta"):
        for recipe in found.values():
            RecursiveReasoner(recipe.model)
    told = {(r.model.to_json(), repr(r.objective), repr(r.stages[0]), r.symmetric) for r in found.values()}
    assert len(told) == len(found)


@pytest.mark.parametrize("arm", ["per token", "q head"])
def test_halting_keeps_the_answer_of_the_last_step_a_unit_took(arm: str) -> None:
    recipe, token = arms("halting")[arm], arm == "per token"
    torch.manual_seed(0)
    model, arrays = RecursiveReasoner(recipe.model), run.test_puzzles(recipe, 20)
    torch.nn.init.normal_(model.q_head.weight, std=0.5)
    torch.nn.init.constant_(model.q_head.bias, 3.0 if token else 0.0)
    steps, halted, taken = trajectory(model, arrays, 5, batch_size=7)
    assert halted is not None and len(steps) == 5
    assert len(set(taken.tolist())) > 1, "the head must tell these puzzles apart, or nothing is tested"
    if token:
        own = np.stack([(halted == step) & (t < taken)[:, None] for t, step in enumerate(steps)])
        assert own.any(0).all(), "every token has an answer of a step that its puzzle took"
    else:
        assert (halted == np.stack([steps[t - 1][i] for i, t in enumerate(taken)])).all()
    found = points(model, recipe, arrays, 5)
    assert [p.depth for p in found] == [1, 2, 3, 4, 5, 5] and found[-1].policy == model.config.halting
    assert found[-1].flops == pytest.approx(taken.mean() * step_flops(model.config))


def test_a_study_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, measured, written; the second time nothing is trained again."""
    monkeypatch.setitem(STUDIES, "two", Study("Which?", lambda scale: STUDIES["mixer"].arms(scale)))
    monkeypatch.setattr("benchmarks.evaluation.__main__.SCALES", {"cpu": replace(CPU, puzzles=16, steps=2)})
    out = tmp_path / "out" / "evaluation"
    options = ["--scale", "cpu", "--seeds", "1", "--folder", str(out), "--runs", str(tmp_path / "runs")]
    options += [part for change in TINY for part in ("--set", change)]
    assert main(["two", *options]) == 0
    assert {p.name for p in out.iterdir()} == {"two.csv", "two.md", "two.png"}
    first = (out / "two.csv").read_text()
    monkeypatch.setattr(run, "run", lambda *a, **k: pytest.fail("trained again"))
    assert main(["two", *options]) == 0
    assert (out / "two.csv").read_text() == first
    capsys.readouterr()
    assert main(["nothing", *options]) == 2 and "study='nothing'" in capsys.readouterr().err
    assert main(["--list", "--scale", "cpu"]) == 0 and "fixed, same parameters" in capsys.readouterr().out


def test_the_arms_of_the_text_study_cost_the_same_and_its_page_is_made_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The splitter is a stand-in for hat-splitter; nothing is trained."""
    monkeypatch.setattr(corpus, "splitter", lambda most: lambda text: [word.encode() for word in text.split(" ")])
    for n in range(12):
        (tmp_path / f"{n}.txt").write_text(f"some words of text {n} " * 40)
    options = run.Options(CPU, (f"data={tmp_path}", "steps=40", "held_out=0.3"), 1, "cpu", 0.0, tmp_path, tmp_path)
    arms, positions = text.text_recipes("text", options, seed=0)
    costs = [recipe.steps * text.step_flops(recipe, positions) for recipe in arms.values()]
    assert len(arms) == 6 and max(costs) < 1.06 * min(costs)
    sizes = {name: sum(p.numel() for p in text.TextModel(recipe.model).parameters()) for name, recipe in arms.items()}
    one, more, two, three, *_ = sizes.values()
    assert one == two == three < more
    two, one = arms["RINS r = 2"], arms["fixed, FLOPs of r = 2"]
    assert text.step_flops(two, positions) == pytest.approx(text.step_flops(one, positions))
    changed = text.change("abcdefghij" * 100)
    assert 60 < sum(a != b for a, b in zip("abcdefghij" * 100, changed, strict=True)) < 130
    measured = text.Measured(2.0, 1.5, 7e5, 1000)
    rows = [
        dict.fromkeys(text.COLUMNS) | text.columns(measured, measured, None)
        | {"study": "text", "scale": "cpu", "changes": "", "arm": "RTM", "seed": seed, "depth": 3, "machine": "m",
           "parameters": 10, "training_steps": 4, "training_flops": 1e12, "commit": "c", "bits_per_byte": 2.0 + seed}
        for seed in (0, 1)
    ]  # fmt: skip
    page = text.page(rows, "What?", picture=True)
    assert "| RTM | 10 | 4 | 1.00 | 3 | 1.50 | 700 | 2.5000 ± 6.3550 | 2.0000 ± 0.0000 |  |" in page
    assert "2 seeds" in page and "(text.png)" in page
