"""Every figure in the documents names the file it was generated from, and agrees with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import cpu_report, report, rows
from benchmarks.cpu_int8 import may_be_default
from benchmarks.evaluation import report as evaluation
from tests.benchmarks.test_compare import FACTS, results

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path.with_name("README.md") for path in sorted((ROOT / "profiles").glob("*/summary.json"))]
FINDINGS = sorted((ROOT / "profiles" / "findings").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *FINDINGS]
DOCUMENTS += sorted(path for folder in ("rtm_kernels", "csrc") for path in (ROOT / folder).rglob("*.md"))

FIGURE = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?)\s?"
    r"(times faster|×(?! ?\(?[\w(])|x faster|ms\b|µs\b|us\b|[GT]FLOP/s|GB/s|J\b|puzzles/s|puzzles per second)"
)
SHARE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?(%)")
"""Shares are held to a file in findings, where they are results; elsewhere they may be anything."""

CITATION = re.compile(r"\[([\w.-]+), (\w+)\]\(((?:[\w.-]+/)*summary\.json)\)")
"""`2.4 times faster ([small-solve-B1-float32-cpu, rtm_native](profiles/<machine>/summary.json))`, on one line, the
path relative to the document."""

STUDY = re.compile(r"\[([^\],]+(?:, [^\],]+)?), (exact|first|halted)\]\(((?:[\w.-]+/)*evaluation/[\w-]+\.csv)\)")
"""`97.6 % ([mlp, exact](../<machine>/evaluation/mixer.csv))`: an arm's exact accuracy after the last ACT step, after
the first, or where its own halting stops, the mean over seeds."""

ARITHMETIC = re.compile(r"(?i)nothing\s+here\s+was\s+measured|not\s+measured|arithmetic")
"""A section (up to the next heading) that says so holds figures of a model, which no file can confirm."""

QUANTITY = {"ms": ("latency", "value", 1e3), "µs": ("latency", "value", 1e6), "us": ("latency", "value", 1e6),
            "J": ("joules", "value", 1.0)} | dict.fromkeys(
    ("times faster", "×", "x faster"), ("latency", "ratio", 1.0))  # fmt: skip
"""Unit -> metric, column and scale of the summary that it is read from."""


def complaints(text: str, folder: Path, shares: bool = False) -> list[str]:
    """What is wrong with the figures of a document in `folder`."""
    found, number = [], 0
    for section in re.split(r"(?m)^(?=#)", text):
        for line in section.splitlines():
            number += 1
            if not ARITHMETIC.search(section):
                found += [f"line {number}: {what}" for what in _wrong(line, folder, shares)]
    return found


def _wrong(line: str, folder: Path, shares: bool) -> list[str]:
    found = []
    for figure in [*FIGURE.finditer(line), *(SHARE.finditer(line) if shares else ())]:
        cited, study = CITATION.search(line, figure.end()), STUDY.search(line, figure.end())
        if figure[2] == "%":
            wrong = "names no file under profiles/" if study is None else misquoted(figure[1], study, folder)
        else:
            wrong = "names no file under profiles/" if cited is None else disagreement(*figure.groups(), cited, folder)
        found += [f"{figure[0]!r}: {wrong}"] if wrong is not None else []
    return found


def misquoted(value: str, cited: re.Match[str], folder: Path) -> str | None:
    """Why a share is not what the rows of a study say, to the digits it is printed with; or None."""
    path = folder / cited[3]
    if not path.is_file():
        return f"{cited[3]} does not exist"
    mine = [row for row in evaluation.read_csv(path) if row["arm"] == cited[1]]
    fixed = [row for row in mine if row["policy"] == "fixed"]
    depth = max((row["depth"] for row in fixed), default=0) if cited[2] == "exact" else 1
    chosen = [row for row in mine if row["policy"] != "fixed"] if cited[2] == "halted" else [
        row for row in fixed if row["depth"] == depth]  # fmt: skip
    if not chosen:
        return f"{cited[3]} has no {cited[2]} of {cited[1]}"
    mean = 100 * sum(row["exact_accuracy"] for row in chosen) / len(chosen)
    true = f"{mean:.{len(value.partition('.')[2])}f}"
    return None if true == value else f"{cited[3]} says {true}"


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
    assert complaints(path.read_text(), path.parent, shares=path in FINDINGS) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.parent.name)
def test_pages_are_what_their_summaries_give(path: Path) -> None:
    found = json.loads((path.parent / "summary.json").read_text())
    assert path.read_text() == report.page(found, path.parent)


def test_tables_of_the_cpu_page_are_what_the_rows_give() -> None:
    text = cpu_report.PAGE.read_text()
    assert text == cpu_report.filled(text), "python -m benchmarks.cpu_report"
    names = set(re.findall(r"<!-- table (\w+) (\S+) -->", text))
    assert {name for name, _ in names} == set(cpu_report.TABLES)


def test_a_table_of_the_cpu_page_follows_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(impl: str, value: float, best: float, ratio: float, ratio_best: float) -> str:
        return json.dumps({"case": "small_b8", "impl": impl, "value": value, "best": best, "native_over_this": ratio,
                           "native_over_this_best": ratio_best})  # fmt: skip

    rows_ = [row("sgemm", 100, 110, 0.8, 0.9), row("native", 80, 99, 1, 1), row("compile", 40, 90, 2, 1.1),
             row("onnxruntime", 50, 60, 1.6, 1.65), row("native_int8", 320, 396, 0.25, 0.25)]  # fmt: skip
    rows.replace(tmp_path / "profiles/m/cpu_compare.jsonl", "\n".join(rows_))
    monkeypatch.setattr(cpu_report, "ROOT", tmp_path)
    made = cpu_report.filled("a\n<!-- table targets m/cpu_compare.jsonl -->\nstale\n<!-- end -->\nb").splitlines()
    assert made[0] == "a" and made[-1] == "b" and "stale" not in made
    assert made[4:7] == [
        "| small_b8 | float32 to the best float32 peer | 1.2 | 1.60 | 1.10 | in one of the two |",
        "| small_b8 | float32 to sgemm | 0.85 | 0.80 | 0.90 | in one of the two |",
        "| small_b8 | int8 to the best float32 peer | 2.5 | 6.40 | 4.40 | yes |",
    ]


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
        ("A block of 512 channels, D = 512, 9x9 cells, 3 × (6 + 1) steps, 64 % of them.", None),
        ("It takes 7 ms. Nothing here was measured.", None),
        ("It takes 7 ms by arithmetic.\n# Measured\nIt takes 7 ms.", "line 3: '7 ms': names no file"),
    ],
)
def test_the_check_bites(line: str, expected: str | None, tmp_path: Path) -> None:
    rows.replace(tmp_path / "profiles/m/summary.json", json.dumps(rows.summary(results([1.0]))))
    found = complaints(line.format(case=FACTS["case"]), tmp_path)
    assert found == [] if expected is None else (len(found) == 1 and expected in found[0])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("It solves 90.0 % ([a, exact](m/evaluation/s.csv)), at first 30 % ([a, first](m/evaluation/s.csv)).", None),
        ("It halts at 50.0 % ([a, halted](m/evaluation/s.csv)).", None),
        ("It solves 80.0 % ([a, exact](m/evaluation/s.csv)).", "says 90.0"),
        ("It solves 90.0 % ([b, exact](m/evaluation/s.csv)).", "has no exact of b"),
        ("It solves 90.0 %.", "names no file"),
    ],
)
def test_shares_are_held_to_the_rows_of_a_study(line: str, expected: str | None, tmp_path: Path) -> None:
    from tests.benchmarks.test_evaluation import row

    found = [
        row("a", 0, 1, 0.3, 1.0),
        row("a", 0, 2, 0.8, 2.0),
        row("a", 1, 2, 1.0, 2.0),
        row("a", 0, 2, 0.5, 1.5, "q"),
    ]
    evaluation.write_csv(found, tmp_path / "m/evaluation/s.csv")
    wrong = complaints(line, tmp_path, shares=True)
    assert wrong == [] if expected is None else (len(wrong) == 1 and expected in wrong[0])


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


def test_a_format_may_be_the_default_under_the_rule_alone() -> None:
    def rows_of(*shares: tuple[str, int, int]) -> list[dict[str, object]]:
        return [{"impl": "native_int8", "policy": policy, "solved_float32": solved, "agree_of_solved": agree}
                for policy, solved, agree in shares]  # fmt: skip

    assert may_be_default(rows_of(("q", 600, 600), ("q", 400, 399), ("fixed", 1000, 1000)), "int8")
    assert not may_be_default(rows_of(("q", 1000, 998), ("fixed", 1000, 1000)), "int8"), "not in every policy"
    assert not may_be_default(rows_of(("q", 999, 999)), "int8"), "too few"
    assert not may_be_default([], "int8")
