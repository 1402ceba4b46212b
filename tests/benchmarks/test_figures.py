"""Documents hold no speeds but those of a table that is read from its files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "profiles/findings", "rtm_kernels", "csrc")
DOCUMENTS = [ROOT / "README.md", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]

FIGURE = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?)\s?"
    r"(times faster|×(?! ?\(?[\w(])|x faster|ms\b|µs\b|us\b|[GT]FLOP/s|GB/s|J\b|puzzles/s|puzzles per second)"
)
ARITHMETIC = re.compile(r"(?i)nothing\s+here\s+was\s+measured|not\s+measured|arithmetic")
"""A section (up to the next heading) that says so holds figures of a model."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_quote_no_figure_that_a_file_could_contradict(path: Path) -> None:
    sections = re.split(r"(?m)^(?=#)", path.read_text())
    assert [figure[0] for s in sections if not ARITHMETIC.search(s) for figure in FIGURE.finditer(s)] == []


PEERS = ("eager_float32", "compile", "compile_max_autotune_frozen", "onnxruntime")


def test_the_speeds_of_the_readme_are_those_of_their_files() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    shown = [line.split("|")[3].strip().split(", ") for line in lines if "](profiles/" in line and line[0] == "|"]
    text = (ROOT / "profiles/amd-epyc-zen5-2-cores/cpu_compare.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]

    def best_peers(model: str, *batches: int) -> list[str]:
        mine = [[r for r in found if r["case"] == f"{model}_b{b}" and r["impl"] in PEERS] for b in batches]
        return [f"{min(r['native_over_this'] for r in case):.2f}" for case in mine]

    halting = json.loads((ROOT / "profiles/amd-epyc-zen4-2-cores/compare_examples.json").read_text())["speed_ratio"]
    assert shown == [best_peers("sudoku", 1, 8, 64), best_peers("attention916", 1, 8), [f"{halting:.2f}"]]
