"""The picture of a run: loss and accuracy over steps, as a png file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.train.evaluate import Curves


def plot_run(rows: list[dict[str, Any]], measured: Curves, path: Path) -> None:
    """Draw rows of a `CsvLog`, and accuracy, confidence and movement after each ACT step, into `path`.

    Errors: `BackendUnavailable` when matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendUnavailable("no picture: the package matplotlib is not installed")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, depth = figure.subplots(1, 3)
    steps = [row["step"] for row in rows]
    loss.plot(steps, [row["loss"] for row in rows], lw=0.8)
    loss.set(title="training loss", xlabel="step", yscale="log")
    seen = [(row["step"], row["exact_accuracy"]) for row in rows if row["count"]]
    accuracy.plot(*zip(*smooth(seen), strict=True), lw=0.8, label="training, running mean") if seen else None
    unseen = [(row["step"], row["test_exact_accuracy"]) for row in rows if row["test_exact_accuracy"] is not None]
    if unseen:
        accuracy.plot(*zip(*unseen, strict=True), "o-", ms=4, label="unseen, moving average")
    accuracy.set(title="exact accuracy", xlabel="step", ylim=(-0.02, 1.02))
    if seen or unseen:
        accuracy.legend()
    for values, label in ((measured.exact, "exact"), (measured.halt, "halting probability"),
                          (measured.change, "|dy| / |y|")):  # fmt: skip
        if values:
            depth.plot(range(1, len(values) + 1), values, "o-", ms=4, label=label)
    depth.set(title="unseen, at the end", xlabel="ACT steps", ylim=(-0.02, 1.02))
    if measured.exact:
        depth.legend()
    figure.savefig(path, dpi=110)


def smooth(points: list[tuple[float, float]], width: int = 20) -> list[tuple[float, float]]:
    """Mean of the last `width` values at each point."""
    return [
        (step, sum(v for _, v in points[max(0, i - width + 1) : i + 1]) / min(i + 1, width))
        for i, (step, _) in enumerate(points)
    ]
