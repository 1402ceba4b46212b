"""Plots over all puzzles of a trace: depth, halting confidence, accuracy at fixed compute."""

from __future__ import annotations

import csv
import importlib.util
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.trace.reader import Trace, Traced

CSV, DEPTH, CONFIDENCE, NO_REGRET = "steps.csv", "depth.png", "confidence.png", "no_regret.png"


@dataclass(frozen=True)
class AtStep:
    """All puzzles after one number of ACT steps; one that left earlier counts with its last step.

    `taken` took this step and `left` left after it. `p_halt` is the mean over those that took it, between the
    quartiles `p_halt_low` and `p_halt_high` (NaN without a halting head). `accuracy` is the share whose answer after
    this step is right, `accuracy_best` the share that was right at any step so far: their distance is the regret of
    computing on. `compute` is the mean number of steps spent per puzzle.
    """

    step: int
    taken: int
    left: int
    p_halt: float
    p_halt_low: float
    p_halt_high: float
    accuracy: float
    accuracy_best: float
    compute: float


def right(traced: Traced) -> np.ndarray:
    """bool [steps]: the answer equals the solution given with the puzzle or, without one, is verified."""
    solution = traced.puzzle["solution"]
    return np.array(
        [step["verified"] if solution is None else step["answer"] == solution for step in traced.steps], dtype=bool
    )


def by_step(trace: Trace) -> list[AtStep]:
    """One row for each step that any puzzle took."""
    depths = np.array([len(traced.steps) for traced in trace.puzzles])
    correct = [right(traced) for traced in trace.puzzles]
    rows = []
    for step in range(1, int(depths.max()) + 1):
        p = [t.steps[step - 1]["p_halt"] for t in trace.puzzles if len(t.steps) >= step]
        known = [value for value in p if isinstance(value, (int, float))]
        low, high = np.percentile(known, [25, 75]).tolist() if known else (np.nan, np.nan)
        rows.append(
            AtStep(
                step=step,
                taken=len(p),
                left=int((depths == step).sum()),
                p_halt=float(np.mean(known)) if known else np.nan,
                p_halt_low=low,
                p_halt_high=high,
                accuracy=float(np.mean([c[min(step, len(c)) - 1] if len(c) else False for c in correct])),
                accuracy_best=float(np.mean([c[:step].any() for c in correct])),
                compute=float(np.minimum(depths, step).mean()),
            )
        )
    return rows


def write_plots(trace: Trace, folder: str | os.PathLike[str]) -> list[Path]:
    """Write `steps.csv` and three PNG files to `folder`, which is made; returns their paths.

    Errors: `BackendUnavailable` without matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendUnavailable("plots need the package matplotlib, which is not installed: pip install matplotlib")
    rows, target = by_step(trace), Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with (target / CSV).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(AtStep)])
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    for name, draw in ((DEPTH, _depth), (CONFIDENCE, _confidence), (NO_REGRET, _no_regret)):
        _save(target / name, draw, rows, len(trace.puzzles))
    return [target / name for name in (CSV, DEPTH, CONFIDENCE, NO_REGRET)]


def _save(path: Path, draw: Any, rows: list[AtStep], count: int) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    draw(axes, rows, f"{count} puzzle{'s' * (count != 1)}")
    figure.savefig(path)


def _depth(axes: Any, rows: list[AtStep], count: str) -> None:
    axes.bar([row.step for row in rows], [row.left for row in rows], color="#0b56b3")
    axes.set(title=f"Depth of {count}", xlabel="ACT steps taken", ylabel="puzzles")


def _confidence(axes: Any, rows: list[AtStep], count: str) -> None:
    steps = [row.step for row in rows]
    axes.plot(steps, [row.p_halt for row in rows], color="#0b56b3", marker="o", markersize=3, label="mean")
    axes.fill_between(steps, [row.p_halt_low for row in rows], [row.p_halt_high for row in rows],
                      color="#0b56b3", alpha=0.2, label="quartiles")  # fmt: skip
    axes.set(title=f"Halting confidence of {count}", xlabel="ACT step", ylabel="p halt", ylim=(-0.02, 1.02))
    axes.legend(frameon=False)


def _no_regret(axes: Any, rows: list[AtStep], count: str) -> None:
    steps = [row.step for row in rows]
    axes.plot(
        steps, [row.accuracy_best for row in rows], color="#a2480e", linestyle="--", label="right at any step so far"
    )
    axes.plot(
        steps, [row.accuracy for row in rows], color="#0b56b3", marker="o", markersize=3, label="right after this step"
    )
    axes.set(title=f"Accuracy at fixed compute, {count}", xlabel="ACT steps per puzzle, at most",
             ylabel="share of puzzles", ylim=(-0.02, 1.02))  # fmt: skip
    axes.legend(frameon=False)
