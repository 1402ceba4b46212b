"""Every figure in the documents names the file it was generated from, and agrees with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import report, rows

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path.with_name("README.md") for path in sorted((ROOT / "profiles").glob("*/summary.json"))]
FOLDERS = ("docs", "profiles/findings", "rtm_kernels", "csrc")
DOCUMENTS = [ROOT / "README.md", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]

FIGURE = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?)\s?"
    r"(times faster|×(?! ?\(?[\w(])|x faster|ms\b|µs\b|us\b|[GT]FLOP/s|GB/s|J\b|puzzles/s|puzzles per second)"
)
CITATION = re.compile(r"\[([\w.-]+), (\w+)\]\(((?:[\w.-]+/)*summary\.json)\)")
"""`2.4 times faster ([small-solve-B1-float32-cpu, rtm_native](profiles/<machine>/summary.json))`, on one line, the
path relative to the document."""

ARITHMETIC = re.compile(r"(?i)nothing\s+here\s+was\s+measured|not\s+measured|arithmetic")
"""A section (up to the next heading) that says so holds figures of a model, which no file can confirm."""

QUANTITY = {"ms": ("latency", "value", 1e3), "µs": ("latency", "value", 1e6), "us": ("latency", "value", 1e6),
            "J": ("joules", "value", 1.0)} | dict.fromkeys(
    ("times faster", "×", "x faster"), ("latency", "ratio", 1.0))  # fmt: skip
"""Unit -> metric, column and scale of the summary that it is read from."""


def complaints(text: str, folder: Path) -> list[str]:
    """What is wrong with the figures of a document in `folder`."""
    sections = re.split(r"(?m)^(?=#)", text)
    lines = [line for section in sections if not ARITHMETIC.search(section) for line in section.splitlines()]
    found = []
    for line in lines:
        for figure in FIGURE.finditer(line):
            cited = CITATION.search(line, figure.end())
            wrong = disagreement(figure[1], figure[2], cited, folder) if cited else "names no file under profiles/"
            found += [f"{figure[0]!r}: {wrong}"] if wrong is not None else []
    return found


def disagreement(value: str, unit: str, cited: re.Match[str], folder: Path) -> str | None:
    """Why a figure is not what the file it cites says, to the digits it is printed with; or None."""
    if unit not in QUANTITY:
        return f"summaries do not hold {unit}"
    if not (folder / cited[3]).is_file():
        return f"{cited[3]} does not exist"
    metric, column, scale = QUANTITY[unit]
    rows = [r for r in json.loads((folder / cited[3]).read_text())
            if (r["case"], r["impl"], r["metric"]) == (cited[1], cited[2], metric)]  # fmt: skip
    if not rows:
        return f"{cited[3]} has no {metric} of {cited[1]}, {cited[2]}"
    digits = len(value.partition(".")[2])
    true = f"{scale * rows[0][column]:.{digits}f}"
    return None if true == value else f"{cited[3]} says {true}"


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.exists()], ids=lambda p: str(p.relative_to(ROOT)))
def test_figures_of_documents_agree_with_the_files_they_cite(path: Path) -> None:
    assert complaints(path.read_text(), path.parent) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.parent.name)
def test_pages_are_what_their_summaries_give(path: Path) -> None:
    found = json.loads((path.parent / "summary.json").read_text())
    assert path.read_text() == report.page(found, path.parent)


PEERS = ("eager_float32", "compile", "compile_max_autotune_frozen", "onnxruntime")


def test_the_speeds_of_the_readme_are_those_of_their_files() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    shown = [line.split("|")[3].strip().split(", ") for line in lines if "](profiles/" in line and line[0] == "|"]
    text = (ROOT / "profiles/amd-epyc-zen5-2-cores/cpu_compare.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]

    def best_peers(model: str, *batches: int) -> list[str]:
        mine = [[r for r in found if r["case"] == f"{model}_b{b}" and r["impl"] in PEERS] for b in batches]
        return [f"{min(r['native_over_this'] for r in case):.2f}" for case in mine]

    halting = json.loads((ROOT / "profiles/amd-epyc-zen3-2-cores/compare_examples.json").read_text())["speed_ratio"]
    assert shown == [best_peers("sudoku", 1, 8, 64), best_peers("attention916", 1, 8), [f"{halting:.2f}"]]


def test_the_check_bites(tmp_path: Path) -> None:
    row = {"case": "c", "impl": "rtm_native", "metric": "latency", "value": 1.0, "ratio": 2.0}
    rows.replace(tmp_path / "m/summary.json", json.dumps([row]))
    good = "2.0 times faster ([c, rtm_native](m/summary.json))"
    assert complaints(good, tmp_path) == []
    for old, new in (("2.0", "2.1"), ("[c,", "[d,"), ("](m/", "](n/")):
        assert complaints(good.replace(old, new, 1), tmp_path)
