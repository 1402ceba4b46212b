"""Recipes as files and typed overrides, whose errors name key, value and what is allowed; and the published numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtm_kernels.data.build import build_sudoku
from rtm_kernels.data.sudoku import generate
from rtm_kernels.errors import InputError
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


TRM = {
    "arch": "trm", "hidden_size": 512, "num_heads": 8, "expansion": 4, "H_cycles": 3, "L_cycles": 6,
    "layers": {"L_level": 2}, "puzzle_emb_ndim": 512, "puzzle_emb_len": 16, "mixer": "attention",
    "pos_encodings": "rope", "halting": "q", "halt_max_steps": 16, "halt_exploration_prob": 0.1,
    "forward_dtype": "bfloat16", "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tied_lm_head": False, "causal": False,
}  # fmt: skip
"""config/arch/trm.yaml of SamsungSAILMontreal/TinyRecursiveModels e7b6871, and the constants of its layers."""
HRM = TRM | {
    "arch": "hrm", "H_cycles": 2, "L_cycles": 2, "layers": {"H_level": 4, "L_level": 4}, "puzzle_emb_len": 0,
    "halting": "q_continue", "q_continue_target": True,
}  # fmt: skip
"""config/arch/hrm_v1.yaml of sapientinc/HRM 42410da; its prefix is ceil(512 / 512) = 1 token."""
RUN = {
    "optimizer": "adam_atan2", "lr": 1e-4, "puzzle_lr": 1e-2, "betas": [0.9, 0.95], "weight_decay": 0.1,
    "puzzle_weight_decay": 0.1, "warmup_steps": 2000, "min_lr_ratio": 1.0, "grad_clip": None, "seed": 0,
    "loss": "stablemax_cross_entropy", "epochs": 100_000, "batch_size": 768,
}  # fmt: skip
"""config/cfg_pretrain.yaml of both."""
EMA = {"ema": 0.999}
"""`ema=True` in every command of TRM's README; HRM has none."""
SMALL = {"puzzle_lr": 1e-4, "weight_decay": 1.0, "puzzle_weight_decay": 1.0}
"""Sudoku and Maze: lr 1e-4 for both, weight decay 1 for both."""
REPO, PAPER = {"epochs": 50_000}, {"epochs": 60_000, "optimizer": "adamw"}
"""TRM: what README and paper (section 5) say differently; the paper also has 6 latent updates everywhere."""
MAZE, ARC = ({"vocab_size": v, "seq_len": 900} for v in (6, 12))
SUDOKU = {"vocab_size": 11, "seq_len": 81}
MLP = {"mixer": "mlp", "pos_encodings": "none"}
HRM_SMALL = SMALL | {"epochs": 20_000, "ema": 0.0}
RSM = TRM | {"arch": "rsm", "tied_lm_head": True, "halting": "settle", "norm_axis": "hidden"}
RSM_RUN = RUN | EMA | {
    "lr": 1e-3, "puzzle_lr": 1e-4, "puzzle_weight_decay": 1.0, "betas": [0.8, 0.9], "min_lr_ratio": 0.02,
    "grad_clip": 1.0,
}  # fmt: skip
"""README and config/cfg_pretrain.yaml of navidivan/rsm 4cc0aaf."""

PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "trm-sudoku-paper": (TRM | SUDOKU | MLP, RUN | EMA | SMALL | PAPER),
    "trm-sudoku-repo": (TRM | SUDOKU | MLP, RUN | EMA | SMALL | REPO),
    "trm-sudoku-attention": (TRM | SUDOKU, RUN | EMA | SMALL | REPO),
    "trm-maze-paper": (TRM | MAZE, RUN | EMA | SMALL | PAPER),
    "trm-maze-repo": (TRM | MAZE | {"L_cycles": 4}, RUN | EMA | SMALL | REPO),
    "trm-arc-paper": (TRM | ARC, RUN | EMA | {"optimizer": "adamw"}),
    "trm-arc-repo": (TRM | ARC | {"L_cycles": 4}, RUN | EMA),
    "trm-arc2-paper": (TRM | ARC, RUN | EMA | {"optimizer": "adamw"}),
    "trm-arc2-repo": (TRM | ARC | {"L_cycles": 4}, RUN | EMA),
    "hrm-sudoku": (HRM | SUDOKU, RUN | HRM_SMALL),
    "hrm-sudoku-laptop": (HRM | SUDOKU, RUN | HRM_SMALL | {"lr": 7e-5, "puzzle_lr": 7e-5, "batch_size": 384}),
    "hrm-sudoku-full": (
        HRM | SUDOKU | {"L_cycles": 8, "halt_max_steps": 8, "pos_encodings": "learned"},
        RUN | {"epochs": 100, "batch_size": 2304, "lr": 3e-4, "puzzle_lr": 3e-4, "min_lr_ratio": 0.1, "ema": 0.0,
               "loss": "softmax_cross_entropy"},
    ),
    "hrm-maze": (HRM | MAZE, RUN | HRM_SMALL),
    "hrm-arc": (HRM | ARC, RUN | {"ema": 0.0}),
    "hrm-arc2": (HRM | ARC, RUN | {"ema": 0.0}),
    "rsm-sudoku": (
        RSM | SUDOKU | MLP | {"layers": {"core": 1}, "H_cycles": 8, "L_cycles": 12},
        RSM_RUN | {"epochs": 2, "batch_size": 512,
                   "objective": {"kind": "final_loss", "prob_detach_prev_H": 0.99}},
    ),
    "rsm-maze": (
        RSM | MAZE | {"layers": {"core": 2}, "H_cycles": 9, "L_cycles": 5},
        RSM_RUN | {"epochs": 500, "batch_size": 128, "weight_decay": 1.0,
                   "objective": {"kind": "final_loss", "prob_detach_prev_H": 1.0}},
    ),
    "transformer-sudoku": (
        TRM | SUDOKU | {"arch": "transformer", "layers": {"H_level": 8}, "H_cycles": 1, "puzzle_emb_len": 0,
                        "halting": "q_continue", "q_continue_target": True, "L_cycles": 1},
        RUN | EMA | SMALL | {"epochs": 20_000},
    ),
}  # fmt: skip
"""Preset -> fields of its model and of its run. The transformer's run is no published one: TRM has only its config."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_numbers(name: str) -> None:
    model, run = PUBLISHED[name]
    found = to_dict(PRESETS[name])
    batches = {stage["batch_size"] for stage in found["stages"]}
    assert {field: found["model"][field] for field in model} == model
    assert {field: found[field] for field in run if field != "batch_size"} | {"batch_size": batches.pop()} == run
    assert not batches and found["data"] == ""


@pytest.mark.parametrize(
    ("name", "outer", "inner", "ramp"),
    [
        ("rsm-sudoku", (20.1, 40.1, 55.1, 65.1, 75.1, 85.1),
         (30.1, 50.1, 70.1, 80.1, 84.1, 86.1, 88.1, 90.1, 92.1, 94.1), 0),
        ("rsm-maze", (20.1, 40.1, 55.1, 65.1, 75.1, 85.1, 95.1), (30.1, 50.1, 70.1), 200),
    ],
)  # fmt: skip
def test_depth_and_rate_of_rsm_follow_its_loop_step_by_step(
    name: str, outer: tuple[float, ...], inner: tuple[float, ...], ramp: int
) -> None:
    recipe, last, before = PRESETS[name], -math.inf, (2, 2)
    for step in range(1, recipe.total_steps + 1):
        percent = step / recipe.total_steps * 100.0
        depth = tuple(2 + sum(percent >= p for p in grown) for grown in (outer, inner))
        last, before = (step, depth) if depth != before else (last, before)
        stage, _ = recipe.stage_at(step - 1)
        assert (stage.H_cycles, stage.L_cycles) == depth, step
        rate = step / 2000
        if step >= 2000:
            done = (step - 2000) / (recipe.total_steps - 2000)
            rate = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        rate *= min(1.0, (step - last) / ramp) if ramp else 1.0
        assert recipe.lr_factor(step - 1) == pytest.approx(rate, abs=1e-9), step
    assert before == (recipe.model.H_cycles, recipe.model.L_cycles)
