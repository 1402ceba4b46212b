"""The drawings of a report: ratios with their intervals, and how far each case is from the measured limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def draw(rows: Rows, facts: Rows, folder: Path) -> None:
    """Write `ratios.png` and `roofline.png`; nothing where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    _ratios([r for r in rows if r["metric"] == "latency" and r["impl"] != r["baseline"]], folder / "ratios.png")
    _roofline(facts, folder / "roofline.png")


def _colours(names: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    return {name: colormaps["tab10"](i % 10) for i, name in enumerate(sorted(set(names)))}


def _ratios(rows: Rows, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.28 * len(rows)), layout="constrained")
    colours = _colours([r["impl"] for r in rows])
    for i, row in enumerate(rows):
        below, above = max(0.0, row["ratio"] - row["ratio_low"]), max(0.0, row["ratio_high"] - row["ratio"])
        axes.errorbar(row["ratio"], i, xerr=[[below], [above]], fmt="o", color=colours[row["impl"]], capsize=3)
    axes.set_yticks(range(len(rows)), [f"{r['case']}  {r['impl']}" for r in rows], fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("time of the baseline / time, with its 95% interval")
    _save(figure, path)


def _roofline(facts: Rows, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    colours = _colours([f["impl"] for f in facts])
    for name, colour in colours.items():
        mine = [f for f in facts if f["impl"] == name]
        x = [f["useful_flops"] / f["useful_bytes"] for f in mine]
        axes.scatter(x, [1e3 * f["tflops"] for f in mine], s=18, color=colour, label=name)
    if facts:
        compute, copy = (max(f[key] for f in facts) for key in ("limit_tflops", "limit_gbs"))
        x = sorted(f["useful_flops"] / f["useful_bytes"] for f in facts)
        edge = 1e3 * compute / copy
        line = sorted({min(x[0], edge) / 2, edge, max(x[-1], edge) * 2})
        axes.plot(line, [min(1e3 * compute, copy * v) for v in line], color="black", linewidth=1,
                  label="measured copy and matrix product")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("useful FLOPs per byte that must move")
    axes.set_ylabel("useful GFLOP/s")
    axes.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
