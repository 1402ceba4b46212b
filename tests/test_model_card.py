"""The figures of a bundled model's card are those of the evaluation files it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rtm_kernels.pretrained import from_pretrained, known_models

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(
    r"\| [^|]+ \| (?P<n>[\d,]+) \| (?P<exact>[\d.]+) % \| (?P<steps>[\d.]+) \| (?P<fixed>[\d.]+) % \| "
    r"(?P<fixed_steps>[\d.]+) \| `(?P<file>eval_\w+\.json)` \|"
)


def card(name: str) -> str:
    return (ROOT / "rtm_kernels" / "assets" / "models" / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", known_models())
def test_the_card_states_what_was_measured(name: str) -> None:
    rows = list(ROW.finditer(card(name)))
    folder = re.search(r"`profiles/([\w-]+)/eval_\*\.json`", card(name))
    assert rows and folder
    for row in rows:
        found = json.loads((ROOT / "profiles" / folder[1] / row["file"]).read_text())
        assert found["model"] == name
        assert f"{found['n']:,}" == row["n"]
        assert f"{100 * found['exact_accuracy']:.1f}" == row["exact"]
        assert f"{found['mean_steps']:.2f}" == row["steps"]
        assert f"{100 * found['fixed']['exact_accuracy']:.1f}" == row["fixed"]
        assert f"{found['fixed']['mean_steps']:.2f}" == row["fixed_steps"]


@pytest.mark.parametrize("name", known_models())
def test_the_card_states_the_size(name: str) -> None:
    parameters = sum(p.numel() for p in from_pretrained(name).parameters())
    assert f"{parameters:,} parameters" in card(name)


def test_there_is_a_model_for_rtm_solve() -> None:
    assert "sudoku" in known_models()
