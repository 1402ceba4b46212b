"""Rows of a study on disk as csv, and the page and figure that are made from them alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import rows
from benchmarks.evaluation.measure import FIXED
from rtm_kernels.errors import InputError

Row = Mapping[str, Any]
TEXT = ("study", "scale", "changes", "arm", "policy", "device", "machine", "commit")
COLUMNS = (
    "study", "scale", "changes", "arm", "seed", "policy", "depth", "mean_steps", "flops_per_puzzle", "exact_accuracy",
    "exact_low", "exact_high", "verified", "puzzles", "joules_per_puzzle", "joules_per_verified", "idle_watts",
    "energy_covers", "parameters", "training_steps", "training_flops", "device", "machine", "commit",
)  # fmt: skip


def write_csv(found: Sequence[Row], path: Path, columns: Sequence[str] = COLUMNS) -> None:
    """Write the rows of a study; an empty field is what was not measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in found)
    rows.replace(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_csv` wrote. Errors: `InputError`."""
    try:
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
        return [{k: v if k in TEXT else _value(k, v) for k, v in row.items()} for row in found]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not the rows of a study ({type(error).__name__}: {error})") from error


def _value(column: str, text: str) -> float | str | None:
    return None if text == "" else text if column == "energy_covers" else float(text)


def wilson(share: float, count: int) -> tuple[float, float]:
    """95% interval of a share of `count` independent puzzles (Wilson's score interval)."""
    z = 1.96
    centre, spread = share + z * z / (2 * count), z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return (centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count)


def by_arm(found: Sequence[Row]) -> dict[str, list[Row]]:
    """Arm -> its rows, in the order of the file."""
    arms: dict[str, list[Row]] = {}
    for row in found:
        arms.setdefault(row["arm"], []).append(row)
    return arms


def curve(mine: Sequence[Row]) -> list[tuple[float, float]]:
    """(FLOPs per puzzle, exact accuracy) of the fixed depths of an arm, the mean over its seeds."""
    depths = sorted({r["depth"] for r in mine if r["policy"] == FIXED})
    return [
        tuple(fmean(r[key] for r in mine if (r["policy"], r["depth"]) == (FIXED, depth))
              for key in ("flops_per_puzzle", "exact_accuracy"))
        for depth in depths
    ]  # type: ignore[misc]  # fmt: skip


def within(points: Sequence[tuple[float, float]], budget: float) -> float:
    """The best accuracy that `budget` FLOPs per puzzle pay for; 0 when they pay for nothing."""
    return max((exact for flops, exact in points if flops <= budget * (1 + 1e-9)), default=0.0)


def regrets(found: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """Arm -> (budget, accuracy it lacks against the best arm at that budget), at every budget where an arm gains."""
    curves = {arm: curve(mine) for arm, mine in by_arm(found).items()}
    budgets = sorted({flops for points in curves.values() for flops, _ in points})
    best = {b: max(within(points, b) for points in curves.values()) for b in budgets}
    return {arm: [(b, best[b] - within(points, b)) for b in budgets] for arm, points in curves.items()}


def table(found: Sequence[Row]) -> list[str]:
    """One line per arm: what it cost to train, the deepest point, the halting point."""
    lines = [
        "| arm | parameters | steps | training GFLOP | ACT steps | MFLOP per puzzle | exact | over seeds "
        "| solved per GFLOP | J per puzzle | halting: steps | MFLOP | exact |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for arm, mine in by_arm(found).items():
        cap = max(r["depth"] for r in mine)
        deep = [r for r in mine if (r["policy"], r["depth"]) == (FIXED, cap)]
        halting = [r for r in mine if r["policy"] != FIXED]
        exact, flops = (fmean(r[key] for r in deep) for key in ("exact_accuracy", "flops_per_puzzle"))
        energy = [r["joules_per_puzzle"] for r in deep if r["joules_per_puzzle"] is not None]
        shares = [r["exact_accuracy"] for r in deep]
        halt = ["", "", ""]
        if halting:
            steps, cost, right = (
                fmean(r[key] for r in halting) for key in ("mean_steps", "flops_per_puzzle", "exact_accuracy")
            )
            halt = [f"{steps:.2f}", f"{cost / 1e6:.1f}", _percent(right)]
        first = deep[0]
        cells = [
            arm, f"{first['parameters']:,.0f}", f"{first['training_steps']:.0f}",
            f"{first['training_flops'] / 1e9:,.0f}", f"{cap:.0f}", f"{flops / 1e6:.1f}", _percent(exact),
            f"{_percent(min(shares))} to {_percent(max(shares))}", f"{exact / flops * 1e9:.1f}",
            f"{fmean(energy):.3g}" if energy else "", *halt,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def page(found: Sequence[Row], question: str, picture: bool) -> str:
    """The page of a study, from its rows alone."""
    first, name = found[0], found[0]["study"]
    seeds = len({r["seed"] for r in found})
    commits = ", ".join(sorted({r["commit"] for r in found}))
    energy = "" if any(r["joules_per_puzzle"] is not None for r in found) else " Energy: no counter can be read here."
    changed = f" Changed from the scale: `{first['changes']}`." if first["changes"] else ""
    command = f"python -m benchmarks.evaluation {name} --scale {first['scale']}"
    lines = [
        f"# {question}", "",
        f"`{command}` on {first['machine']} at commit {commits}; every figure is from [{name}.csv]({name}.csv)."
        f"{changed} Every arm was trained for the same FLOPs, {seeds} seeds each, and answered the same "
        f"{first['puzzles']:.0f} unseen puzzles. `exact` is the share solved after the largest number of ACT steps, "
        f"the mean over seeds; the columns under halting are those of the arm's own halting head, where it has one, "
        f"and a puzzle that a token still works on costs whole steps. Arms whose ranges over seeds overlap are "
        f"not told apart.{energy}", "",
        *table(found), "",
    ]  # fmt: skip
    if picture:
        lines += [f"![accuracy and regret]({name}.png)", ""]
    return "\n".join(lines).rstrip() + "\n"


def draw(found: Sequence[Row], path: Path) -> bool:
    """Accuracy against FLOPs per puzzle and the regret of each arm; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    except ImportError:
        return False
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    lost = regrets(found)
    for i, (arm, mine) in enumerate(by_arm(found).items()):
        colour, points = f"C{i}", curve(mine)
        left.plot([f / 1e6 for f, _ in points], [e for _, e in points], "o-", color=colour, label=arm, markersize=4)
        for seed in sorted({r["seed"] for r in mine}):
            one = curve([r for r in mine if r["seed"] == seed])
            left.plot([f / 1e6 for f, _ in one], [e for _, e in one], ".-", color=colour, alpha=0.25, markersize=3)
        halting = [(r["flops_per_puzzle"] / 1e6, r["exact_accuracy"]) for r in mine if r["policy"] != FIXED]
        left.plot([f for f, _ in halting], [e for _, e in halting], "*", color=colour, markersize=9)
        right.plot([b / 1e6 for b, _ in lost[arm]], [r for _, r in lost[arm]], "o-", color=colour, markersize=4)
    left.set_ylabel("exact accuracy (star: own halting)")
    left.legend(fontsize=7)
    right.set_ylabel("regret: accuracy below the best arm")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("MFLOP per puzzle")
    figure.savefig(path, dpi=100)
    return True
