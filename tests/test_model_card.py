"""The figures of a bundled model's card are those of the evaluation files it names."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.pretrained import MODELS, known_models

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(
    r"\| [^|]+ \| (?P<n>[\d,]+) \| (?P<verified>[\d.]+) % \| (?P<mean>[\d.]+) \| (?P<most>\d+) \| "
    r"`(?P<file>(eval|guesses)_\w+\.json)` \|"
)


def card(name: str) -> str:
    return (MODELS / name / "README.md").read_text(encoding="utf-8")


def measured(name: str) -> list[tuple[re.Match[str], dict[str, Any]]]:
    """The rows of a card, each with the evaluation that it names."""
    rows = list(ROW.finditer(card(name)))
    folder = re.search(r"`profiles/([\w-]+)/eval_\*\.json`", card(name))
    assert len(rows) > 4 and folder
    found = [json.loads((ROOT / "profiles" / folder[1] / row["file"]).read_text()) for row in rows]
    assert all(evaluation["model"] == name for evaluation in found)
    return list(zip(rows, found, strict=True))


@pytest.mark.parametrize("name", known_models())
def test_the_card_states_what_was_measured(name: str) -> None:
    for row, found in measured(name):
        guesses = row["file"].startswith("guesses")
        assert found["policy"] == "verified" and found["complete"]
        assert found["rollouts"] == (4 if guesses else 1)
        most = found["max_total_steps"] if guesses else max(map(int, found["depth_histogram"]))
        assert str(most) == row["most"] and most <= (64 if guesses else 16)
        assert f"{found['n']:,}" == row["n"]
        assert f"{100 * found['verified']:.1f}" == row["verified"]
        assert f"{found['mean_total_steps' if guesses else 'mean_steps']:.1f}" == row["mean"]


@pytest.mark.parametrize("name", known_models())
def test_the_card_states_how_it_learned(name: str) -> None:
    named = re.search(r"`profiles/([\w-]+/train_\w+\.json)`", card(name))
    assert named
    found = json.loads((ROOT / "profiles" / named[1]).read_text())
    assert found["weights_sha256"] == hashlib.sha256((MODELS / name / "model.safetensors").read_bytes()).hexdigest()
    assert len(found["curve"]) > 2
    model = RecursiveReasoner.from_pretrained(name)
    assert f"{found['distinct']:,} distinct" in card(name)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card(name)
    for row in found["curve"]:
        told = [100 * row[data]["64"] for data in found["lists"]]
        told.append(100 * row[found["lists"][-1]]["16"])
        assert " | ".join([f"| {row['step']:,}", *(f"{share:.1f} %" for share in told)]) in card(name)
