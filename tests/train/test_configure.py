"""Recipes as files, and typed overrides whose errors name key, value and what is allowed."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from rtm_kernels import train
from rtm_kernels.data.build import build_sudoku
from rtm_kernels.data.sudoku import generate
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.train.configure import fit_to_data, load_recipe, override, save_recipe, to_dict
from rtm_kernels.train.recipe import PRESETS
from rtm_kernels.train.schema import CumulativeHalting
from tests.train.support import TINY


@pytest.mark.parametrize("name", PRESETS)
def test_every_recipe_survives_its_file(name: str, tmp_path: Path) -> None:
    save_recipe(PRESETS[name], tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == PRESETS[name]


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("model", {"hiden": 1}, "model.hiden=1 is not allowed: Unexpected keyword"),
        ("objective", {"ponder": 1}, "objective.deep_supervision.ponder=1"),
        ("model", {"seq_len": None}, "expected a value for seq_len"),
    ],
)
def test_a_file_with_an_unknown_or_missing_field_is_refused_by_name(
    part: str, change: dict[str, int | None], named: str, tmp_path: Path
) -> None:
    values, path = to_dict(TINY), tmp_path / "recipe.json"
    values[part] = {key: value for key, value in (values[part] | change).items() if value is not None}
    path.write_text(json.dumps(values))
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert f"{path}: " in str(caught.value) and named in str(caught.value)


def test_without_pydantic_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"training needs the package pydantic: pip install .*\[cli\]"):
        runpy.run_path(str(train.__file__))


def test_overrides_reach_every_kind_of_field() -> None:
    changed = override(
        TINY,
        ["lr=3e-4", "model.hidden_size=24", "stages.1.steps=9", "stages.*.batch_size=8", "compile=true",
         "betas=[0.8,0.9]", "grad_clip=none", "sources.all.clues=[7, 9]",
         "optimizer=muon", "stages.0.lr=[1, 0.5]", "sources.all.count=5", "threads=none", "init=None"],
    )  # fmt: skip
    assert changed.threads is None and changed.init is None
    for word in ("none", "rope"):
        assert override(changed, [f"model.pos_encodings={word}"]).model.pos_encodings == word
    assert (changed.lr, changed.model.hidden_size, changed.stages[1].steps) == (3e-4, 24, 9)
    assert [stage.batch_size for stage in changed.stages] == [8, 8]
    assert (changed.compile, changed.betas, changed.grad_clip) == (True, (0.8, 0.9), None)
    assert changed.sources is not None and changed.sources["all"].clues == (7, 9) and changed.sources["all"].count == 5
    assert changed.stages[0].lr == (1.0, 0.5) and isinstance(changed.stages[0].lr[0], float)
    rtm = override(PRESETS["rtm-sudoku"], ["objective.ponder=0.5"])
    assert rtm.objective == CumulativeHalting(ponder=0.5, entropy=0.001, min_steps=2, anneal=0.3)


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("lr", "'lr' is not allowed: expected key=value"),
        ("lrr=1", "'lrr' is not one of model, stages"),
        ("model.hiden=1", "'hiden' is not one of vocab_size"),
        ("stages.7.steps=1", "'7' is not one of 0, 1"),
        ("lr.x=1", "leads into a value"),
        ("lr=fast", "lr='fast' is not allowed: expected a valid number"),
        ("model.hidden_size=1.5", "model.hidden_size=1.5 is not allowed: expected a valid integer"),
        ("betas=[0.9]", "betas=[0.9] is not allowed: expected a value for 1"),
        ("optimizer=sgd", "optimizer='sgd' is not allowed: expected one of adamw"),
        ("objective=fast", "objective={'kind': 'fast'} is not allowed: Input tag 'fast' found using 'kind'"),
        ("objective=final_loss", "arch='trm'"),
        ("model.pos_encodings=null", "model.pos_encodings=None is not allowed: expected a valid string"),
        ("sources.all.size=5", "size=5 is not allowed: a side of a sudoku"),
        ("accumulate=3", "a divisor of batch_size=4"),
    ],
)
def test_bad_overrides_are_refused_by_name(assignment: str, named: str) -> None:
    with pytest.raises(InputError) as caught:
        override(TINY, [assignment])
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_takes_sizes_and_steps_from_its_data(tmp_path: Path) -> None:
    build_sudoku(tmp_path / "data", generate(60, seed=1, size=4, clues=(5, 9)), test=8, size=4, augmentations=2)
    recipe = override(PRESETS["trm-sudoku-repo"], [f"data={tmp_path / 'data'}", "epochs=100", "stages.0.batch_size=10"])
    fitted = fit_to_data(recipe)
    assert (fitted.model.vocab_size, fitted.model.seq_len, fitted.model.num_puzzle_identifiers) == (6, 16, 1)
    inputs = np.load(tmp_path / "data" / "train" / "all__inputs.npy")
    assert fitted.total_steps == 100 * len(inputs) // 3 // 10
    every = recipe.eval_every / recipe.total_steps * fitted.total_steps
    assert fitted.eval_every == pytest.approx(every, abs=1)
    grown = fit_to_data(override(PRESETS["rsm-sudoku"], [f"data={tmp_path / 'data'}", "epochs=3000"]))
    assert grown.total_steps == 3000 * len(inputs) // 3 // 512, "stages of growing depth sum up to the published length"
    with pytest.raises(InputError, match="data=''"):
        fit_to_data(PRESETS["trm-sudoku-repo"])
