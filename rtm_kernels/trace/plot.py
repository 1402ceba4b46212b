"""Plots over all puzzles of a trace: depth, halting confidence, accuracy at fixed compute."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.trace.reader import Trace, Traced

FILES = ("steps.csv", "depth.png", "confidence.png", "no_regret.png")
BLUE, ORANGE = "#0b56b3", "#a2480e"


class AtStep(NamedTuple):
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
    table, *pictures = (target / name for name in FILES)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(AtStep._fields)
        writer.writerows(rows)
    step, _, left, p_halt, low, high, accuracy, best, _ = zip(*rows, strict=True)
    count = f"{len(trace.puzzles)} puzzle{'s' * (len(trace.puzzles) != 1)}"
    dots = {"color": BLUE, "marker": "o", "markersize": 3}

    depth = _axes(f"Depth of {count}", "ACT steps taken", "puzzles")
    depth.bar(step, left, color=BLUE)
    confidence = _axes(f"Halting confidence of {count}", "ACT step", "p halt", ylim=(-0.02, 1.02))
    confidence.plot(step, p_halt, label="mean", **dots)
    confidence.fill_between(step, low, high, color=BLUE, alpha=0.2, label="quartiles")
    regret = _axes(f"Accuracy at fixed compute, {count}", "ACT steps per puzzle, at most", "share of puzzles",
                   ylim=(-0.02, 1.02))  # fmt: skip
    regret.plot(step, best, color=ORANGE, linestyle="--", label="right at any step so far")
    regret.plot(step, accuracy, label="right after this step", **dots)
    for path, axes in zip(pictures, (depth, confidence, regret), strict=True):
        if axes is not depth:
            axes.legend(frameon=False)
        axes.figure.savefig(path)
    return [table, *pictures]


def _axes(title: str, xlabel: str, ylabel: str, **limits: Any) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    axes = Figure(figsize=(7, 4.2), dpi=150, layout="constrained").subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, **limits)
    return axes
