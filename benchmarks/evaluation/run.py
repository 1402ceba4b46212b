"""Runs a study: every arm and seed trained in a folder of its own, measured, and written down."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.evaluation import report
from benchmarks.evaluation.cost import training_flops
from benchmarks.evaluation.measure import FIXED, Point, joules, points
from benchmarks.evaluation.studies import Scale, Study, recipes
from rtm_kernels.errors import RTMError, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.train.configure import AnyRecipe, to_dict
from rtm_kernels.train.schema import Recipe
from rtm_kernels.train.session import MODEL, RECIPE, open_recipe, run
from rtm_kernels.train.stream import Arrays, build_stream

COMMIT = "commit.txt"


class Interrupted(RTMError):
    """A run was stopped by a signal; its state is saved."""


@dataclass(frozen=True)
class Options:
    """How a study is run: changes of every recipe, seeds, device, energy window, folders of runs and of results."""

    scale: Scale
    changes: tuple[str, ...]
    seeds: int
    device: str
    energy: float
    runs: Path
    folder: Path

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "--seeds", self.seeds, "at least 1")


def run_study(name: str, study: Study, options: Options) -> list[str]:
    """Train, measure, write csv, page and figure; returns the table. Errors: `InputError`, `Interrupted`."""
    found: list[dict[str, Any]] = []
    arrays: Arrays | None = None
    idle = machine.idle_watts(options.device) if options.energy > 0 else None
    for seed in range(options.seeds):
        for arm, recipe in recipes(study, options.scale, options.changes, seed).items():
            if arrays is None:
                arrays = test_puzzles(recipe, options.scale.puzzles)
            begin = time.monotonic()
            saved, commit = trained(recipe, options)
            model = RecursiveReasoner.from_pretrained(saved).to(options.device)
            mine = points(model, recipe, arrays, options.scale.steps)
            deep = deepest(mine)
            energy = joules(model, recipe, arrays, deep.depth, options.energy) if options.energy > 0 else None
            facts = {
                "study": name, "scale": options.scale.name, "changes": " ".join(options.changes), "arm": arm,
                "seed": seed, "puzzles": len(arrays["inputs"]), "training_steps": recipe.total_steps,
                "training_flops": training_flops(recipe), "parameters": sum(p.numel() for p in model.parameters()),
                "idle_watts": idle, "energy_covers": energy and energy["covers"], "device": options.device,
                "machine": machine.device_name(options.device.partition(":")[0]), "commit": commit,
            }  # fmt: skip
            count = len(arrays["inputs"])
            found += [facts | columns(point, count, energy if point is deep else None) for point in mine]
            print(
                f"{name}, {arm}, seed {seed}: {100 * mine[-1].exact:.1f} % ({time.monotonic() - begin:.0f} s)",
                flush=True,
            )
    options.folder.mkdir(parents=True, exist_ok=True)
    report.write_csv(found, options.folder / f"{name}.csv")
    found = report.read_csv(options.folder / f"{name}.csv")
    drawn = report.draw(found, options.folder / f"{name}.png")
    report.rows.replace(options.folder / f"{name}.md", report.page(found, study.question, drawn))
    return report.table(found)


def deepest(found: list[Point]) -> Point:
    """The point at which every puzzle has taken most steps."""
    return max((p for p in found if p.policy == FIXED), key=lambda p: p.depth)


def test_puzzles(recipe: Recipe, limit: int) -> Arrays:
    """The puzzles that every arm is measured on. Errors: `InputError` without a test split."""
    arrays = build_stream(recipe).test_arrays(limit)
    require(arrays is not None, "test", None, "a recipe with test puzzles, or a data set with a test split")
    assert arrays is not None
    return arrays


def trained(recipe: AnyRecipe, options: Options) -> tuple[Path, str]:
    """The saved model of `recipe`, from its folder where it has been trained before, and the commit that finished it.

    Errors: `Interrupted`.
    """
    text = json.dumps([to_dict(recipe), options.device], sort_keys=True)
    folder = options.runs / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (folder / COMMIT).is_file():
        resume = (folder / RECIPE).is_file()
        opened = open_recipe(recipe, folder, resume)
        outcome = run(opened, folder, device=options.device, resume=resume, callbacks=())
        if outcome.interrupted:
            raise Interrupted(f"after step {outcome.summary['steps']} of {folder}")
        report.rows.replace(folder / COMMIT, machine.commit() + "\n")
    return folder / MODEL, (folder / COMMIT).read_text().strip()


def columns(point: Point, puzzles: int, energy: dict[str, Any] | None) -> dict[str, Any]:
    """The columns of one point; `energy` was measured at it."""
    low, high = report.wilson(point.exact, puzzles)
    each, verified = energy["joules_per_call"] / puzzles if energy else None, point.verified
    return {
        "policy": point.policy, "depth": point.depth, "mean_steps": point.steps, "flops_per_puzzle": point.flops,
        "exact_accuracy": point.exact, "exact_low": low, "exact_high": high, "verified": verified,
        "joules_per_puzzle": each, "joules_per_verified": each / verified if each is not None and verified else None,
    }  # fmt: skip
