"""Every figure in the documents names the file it was generated from, and agrees with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import report, rows
from tests.benchmarks.test_compare import FACTS, results

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "profiles").glob("*/README.md")) if (ROOT / "profiles").is_dir() else []
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FIGURE = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?)\s?"
    r"(times faster|×|x faster|ms\b|µs\b|us\b|TFLOP/s|GB/s|J\b|puzzles/s|puzzles per second)"
)
CITATION = re.compile(r"\[([\w.-]+), (\w+)\]\((profiles/[\w./-]+/summary\.json)\)")
"""`2.4 times faster ([small-solve-B1-float32-cpu, rtm_native](profiles/<machine>/summary.json))`, on one line."""

QUANTITY = {"ms": ("latency", "value", 1e3), "µs": ("latency", "value", 1e6), "us": ("latency", "value", 1e6),
            "J": ("joules", "value", 1.0)} | dict.fromkeys(
    ("times faster", "×", "x faster"), ("latency", "ratio", 1.0))  # fmt: skip
"""Unit -> metric, column and scale of the summary that it is read from."""


def complaints(text: str, root: Path) -> list[str]:
    """What is wrong with the figures of a document."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for figure in FIGURE.finditer(line):
            cited = CITATION.search(line, figure.end())
            if cited is None:
                found.append(f"line {number}: {figure[0]!r} names no file under profiles/")
            elif (wrong := disagreement(figure[1], figure[2], cited, root)) is not None:
                found.append(f"line {number}: {figure[0]!r}: {wrong}")
    return found


def disagreement(value: str, unit: str, cited: re.Match[str], root: Path) -> str | None:
    """Why a figure is not what the file it cites says, to the digits it is printed with; or None."""
    if unit not in QUANTITY:
        return f"summaries do not hold {unit}"
    if not (root / cited[3]).is_file():
        return f"{cited[3]} does not exist"
    metric, column, scale = QUANTITY[unit]
    rows = [r for r in json.loads((root / cited[3]).read_text())
            if (r["case"], r["impl"], r["metric"]) == (cited[1], cited[2], metric)]  # fmt: skip
    if not rows:
        return f"{cited[3]} has no {metric} of {cited[1]}, {cited[2]}"
    digits = len(value.partition(".")[2])
    true = f"{scale * rows[0][column]:.{digits}f}"
    return None if true == value else f"{cited[3]} says {true}"


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.exists()], ids=lambda p: p.name)
def test_figures_of_documents_agree_with_the_files_they_cite(path: Path) -> None:
    assert complaints(path.read_text(), ROOT) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.parent.name)
def test_pages_are_what_their_summaries_give(path: Path) -> None:
    found = json.loads((path.parent / "summary.json").read_text())
    assert path.read_text() == report.page(found, path.parent)


def test_negative_results_are_one_line_each() -> None:
    log = ROOT / "profiles" / "LOG.md"
    if not log.exists():
        pytest.skip("no profiles in this copy")
    entries = [line for line in log.read_text().splitlines()[1:] if line]
    assert entries and all(line.startswith("- ") for line in entries)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("It is 2.0 times faster ([{case}, rtm_native](profiles/m/summary.json)).", None),
        ("It is 2.00× ([{case}, rtm_native](profiles/m/summary.json)).", None),
        ("It takes 1000 ms ([{case}, rtm_native](profiles/m/summary.json)).", None),
        ("It is 2.1 times faster ([{case}, rtm_native](profiles/m/summary.json)).", "says 2.0"),
        ("It takes 999 ms ([{case}, rtm_native](profiles/m/summary.json)).", "says 1000"),
        ("It is 2.0 times faster.", "names no file"),
        ("It uses 3 J ([{case}, rtm_native](profiles/m/summary.json)).", "has no joules"),
        ("It does 9 TFLOP/s ([{case}, rtm_native](profiles/m/summary.json)).", "do not hold"),
        ("It takes 1 ms ([{case}, rtm_native](profiles/n/summary.json)).", "does not exist"),
        ("A block of 512 channels, D = 512, 9x9 cells.", None),
    ],
)
def test_the_check_bites(line: str, expected: str | None, tmp_path: Path) -> None:
    rows.replace(tmp_path / "profiles/m/summary.json", json.dumps(rows.summary(results([1.0]))))
    found = complaints(line.format(case=FACTS["case"]), tmp_path)
    assert found == [] if expected is None else (len(found) == 1 and expected in found[0])


def test_a_report_is_complete(tmp_path: Path) -> None:
    baseline = results([2.0], impl="official_eager", ratio=1.0, ratio_interval=[1.0, 1.0])
    found = report.write([*baseline, *results([1.0])], tmp_path)
    names = {"summary.json", "facts.jsonl", "README.md", "not_run.json", "history.jsonl", "ratios.png", "roofline.png"}
    assert {p.name for p in tmp_path.iterdir()} == names
    wanted = {"case", "impl", "metric", "value", "unit", "baseline", "ratio", "fraction_of_limit", "commit", "torch",
              "triton", "gpu", "clock_mhz"}  # fmt: skip
    assert all(wanted <= set(row) for row in found)
    left = json.loads((tmp_path / "not_run.json").read_text())
    assert left and all(entry["reason"] for entry in left)
    report.write(results([1.0], commit="def"), tmp_path)
    assert (tmp_path / "history.png").exists() and len((tmp_path / "history.jsonl").read_text().splitlines()) == 3
    report.write(results([1.0], commit="def+"), tmp_path)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3, "a dirty checkout is not history"
