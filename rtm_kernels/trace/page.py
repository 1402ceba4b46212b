"""The viewer: one HTML file that holds the trace, its style and its script, and loads nothing."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rtm_kernels.data.arc import SIDE, Arc
from rtm_kernels.data.task import get_task, has_task
from rtm_kernels.errors import require
from rtm_kernels.trace.reader import Record, Trace, Traced

MAX_STEPS_SHOWN = 100_000


def write_page(trace: Trace, path: str | os.PathLike[str], *, limit: int | None = None) -> None:
    """Write the viewer of the first `limit` puzzles to `path`.

    Errors: `InputError` for a limit below 1, and for more than 100,000 ACT steps in one page.
    """
    require(limit is None or limit >= 1, "limit", limit, "at least 1")
    shown = trace.puzzles[:limit]
    steps = sum(len(traced.steps) for traced in shown)
    require(steps <= MAX_STEPS_SHOWN, "steps", steps, f"a page shows at most {MAX_STEPS_SHOWN}; limit the puzzles")
    Path(path).write_text(page(trace.header, shown), encoding="utf-8")


def page(header: Record, puzzles: list[Traced]) -> str:
    title = html.escape(f"{header['task']}: {len(puzzles)} traced puzzle{'s' * (len(puzzles) != 1)}")
    return filled(title, payload(header, puzzles))


def write_words(words: Sequence[tuple[str, int]], rounds: int, path: str | os.PathLike[str]) -> None:
    """Write the viewer of a text to `path`: its words, and how many of at most `rounds` rounds each took."""
    Path(path).write_text(filled("Rounds of each word", {"words": words, "rounds": rounds}), encoding="utf-8")


def filled(title: str, data: Record) -> str:
    """The page with its style, its script and what that reads."""
    assets = files("rtm_kernels") / "assets" / "viewer"
    style, script, text = ((assets / file).read_text("utf-8") for file in ("style.css", "script.js", "page.html"))
    every = {"STYLE": style, "SCRIPT": script, "TITLE": title, "DATA": embedded(data)}
    return re.sub("{{([A-Z]+)}}", lambda found: every[found[1]], text)


def embedded(value: Any) -> str:
    """JSON that is safe inside a script element, whatever text it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def payload(header: Record, puzzles: list[Traced]) -> Record:
    """What the script reads: the header, and per puzzle its input, steps and end.

    `canvas` is the side of the field in whose corner the grids of a task stand when their sizes differ (ARC).
    """
    return {
        **header,
        "canvas": SIDE if header["task"] == Arc.name else None,
        "puzzles": [
            {
                "input": drawn(header, traced, traced.puzzle["input"]),
                "target": target(header, traced),
                "steps": [{**step, "answer": drawn(header, traced, step["answer"])} for step in traced.steps],
                "end": traced.end,
            }
            for traced in puzzles
        ],
    }


def target(header: Record, traced: Traced) -> str | None:
    """The confirmed answer, or else the solution that came with the puzzle; None when neither is known."""
    end = traced.end or {}
    known: str | None = end["answer"] if end.get("status") == "verified" else traced.puzzle["solution"]
    return None if known is None else drawn(header, traced, known)


def drawn(header: Record, traced: Traced, text: str) -> str:
    """The characters of the grid's cells, or, for a task without a grid, the text that it renders."""
    if header["layout"] is None and has_task(header["task"]):
        return get_task(header["task"]).render(traced.puzzle["input"], text)
    return text
