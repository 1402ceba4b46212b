"""The page loads nothing, holds its data safely, and knows the grid of every task."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rtm_kernels.data.task import get_task
from rtm_kernels.errors import InputError
from rtm_kernels.trace import read_trace, write_page
from rtm_kernels.trace.page import page
from rtm_kernels.trace.recorder import find_layout
from tests.engine.fakes import Reverse


class Page(HTMLParser):
    """Every tag with its attributes, and the text of each script element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def text(recorded: Path) -> str:
    trace = read_trace(recorded)
    return page(trace.header, trace.puzzles)


def test_the_page_loads_nothing(text: str) -> None:
    assert not re.search(r"https?://|//[a-z]|@import|url\(", text.replace("\n//", ""))
    loading = {"src", "href", "srcset", "action", "data", "poster"}
    assert not any(loading & set(attributes) for _, attributes in Page(text).tags)
    assert not {tag for tag, _ in Page(text).tags} & {"link", "img", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|import|eval|innerHTML)\b\s*[(=]", text)
    policy = next(a["content"] for tag, a in Page(text).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_the_data_is_the_trace(text: str, recorded: Path) -> None:
    trace = read_trace(recorded)
    data = json.loads(Page(text).scripts[0])
    assert [p["input"] for p in data["puzzles"]] == [t.puzzle["input"] for t in trace.puzzles]
    assert [p["steps"] for p in data["puzzles"]] == [t.steps for t in trace.puzzles]
    assert data["puzzles"][0]["target"] == trace.puzzles[0].puzzle["solution"]


@pytest.mark.parametrize(
    "hostile", ["</script><script>alert(1)</script>", "<!--<script>", "{{DATA}}", "&lt;", "\u2028"]
)
def test_hostile_text_stays_data(recorded: Path, hostile: str) -> None:
    trace = read_trace(recorded)
    plain = Page(page(trace.header, trace.puzzles))
    trace.header["model"] = trace.header["task"] = hostile
    trace.puzzles[0].steps[0]["fault"] = hostile
    found = Page(page(trace.header, trace.puzzles))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    data = json.loads(found.scripts[0])
    assert data["model"] == data["task"] == data["puzzles"][0]["steps"][0]["fault"] == hostile


def test_limit(recorded: Path, tmp_path: Path) -> None:
    trace = read_trace(recorded)
    write_page(trace, tmp_path / "t.html", limit=1)
    assert len(json.loads(Page((tmp_path / "t.html").read_text()).scripts[0])["puzzles"]) == 1
    with pytest.raises(InputError, match="limit=0"):
        write_page(trace, tmp_path / "t.html", limit=0)


def test_layouts_come_from_what_the_task_renders() -> None:
    assert find_layout(get_task("sudoku")) == {"rows": 9, "columns": 9, "row_rules": [3, 6], "column_rules": [3, 6]}
    assert find_layout(get_task("maze")) == {"rows": 30, "columns": 30, "row_rules": [], "column_rules": []}
    assert find_layout(get_task("arc")) is None
    assert find_layout(Reverse()) is None
