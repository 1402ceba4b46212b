"""The page that solves Sudoku: in chromium, from a file, with the answers that the model gives in PyTorch."""

from __future__ import annotations

import html
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from rtm_kernels.data import get_task
from rtm_kernels.interop.export import ActStep, export
from rtm_kernels.model import RecursiveReasoner
from tests.site.demo import SOURCE, page
from tests.trace.test_browser import CHROMIUM, dom

EASY = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
CLUES_17 = ".......1.4.........2...........5.4.7..8...3....1.9....3..4..2...5.1........8.6..."
HARD = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."

missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(missing) or CHROMIUM is None,
    reason=f"no {', '.join(missing) or 'chromium'} here: that the demo solves in a browser stays unproven",
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the bundled model, as the site has it."""
    folder = tmp_path_factory.mktemp("demo")
    export(RecursiveReasoner.from_pretrained("sudoku"), folder / "sudoku.onnx")
    (folder / "demo.html").write_text(page((folder / "sudoku.onnx").read_bytes()), encoding="utf-8")
    return folder / "demo.html"


def answers(puzzle: str) -> list[str]:
    """The answer after each ACT step in PyTorch, until the rules confirm one."""
    task, step = get_task("sudoku"), ActStep(RecursiveReasoner.from_pretrained("sudoku"))
    given, found = step.example(1), []
    given["inputs"] = torch.as_tensor(task.encode(puzzle)).long().view(1, 81)
    while len(found) < 16 and not (found and task.verify(puzzle, found[-1]).verified):
        with torch.no_grad():
            outputs = step(given)
        found.append(task.decode(outputs["logits"][0].argmax(-1).numpy()))
        given["fresh"][:] = False
        given |= {name: outputs[f"next_{name}"] for name in ("z_L", "z_H")}
    return found


def status(document: str) -> str:
    (found,) = re.findall(r'id="status"[^>]*>([^<]*)<', document)
    return str(found)


@pytest.mark.parametrize(("puzzle", "clues"), [(EASY, 30), (CLUES_17, 17), (HARD, 21)])
def test_the_page_solves_with_the_answers_of_the_model(demo: Path, puzzle: str, clues: int, tmp_path: Path) -> None:
    expected = answers(puzzle)
    document = dom(demo, tmp_path / "profile", f"#{puzzle}")
    assert sum(c != "." for c in puzzle) == clues and get_task("sudoku").verify(puzzle, expected[-1]).verified
    (found,) = re.findall(r'data-answers="([^"]*)"', document)
    assert found.split() == expected
    steps = f"{len(expected)} step{'s' if len(expected) > 1 else ''}"
    assert re.fullmatch(rf"Solved, and confirmed by the rules: {steps}, \d+ ms\.", status(document))


def test_the_page_needs_nothing_else(demo: Path) -> None:
    text = demo.read_text("utf-8")
    assert "default-src 'none'" in text and len(text) < 600_000
    assert not re.search(r"https?://|src=|@import|url\(|fetch\(|import\(", text)
    for path in SOURCE.glob("*.*"):
        assert max(map(len, path.read_text("utf-8").splitlines())) <= 120


USE = """
(async () => {
  const seen = [], board = [...document.querySelectorAll(".cell")];
  const note = () => seen.push(board.map((cell) => cell.value || ".").join(""));
  const text = (id) => seen.push(document.getElementById(id).textContent);
  const key = (cell, key) => cell.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const until = async (ready) => { while (!ready()) await new Promise((done) => setTimeout(done, 50)); };
  const paste = (pasted) => {
    const clipboardData = new DataTransfer();
    clipboardData.setData("text", pasted);
    board[0].dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
  };
  const type = (cell, typed) => { cell.value = typed; cell.dispatchEvent(new Event("input")); };
  await until(() => !document.getElementById("solve").disabled);
  paste(`PUZZLE`.replace(/(.{9})/g, "|$1|\\n")); note();
  board[4].focus(); key(board[4], "ArrowDown"); seen.push(board.indexOf(document.activeElement));
  type(board[1], "8"); key(board[1], "Enter"); text("status");
  type(board[1], ""); key(board[1], "Enter");
  await until(() => document.body.dataset.answers);
  note(); seen.push(document.querySelectorAll(".cell.given").length);
  const slider = document.getElementById("step");
  slider.value = 1; slider.dispatchEvent(new Event("input")); note();
  seen.push(document.querySelectorAll(".cell.wrong").length > 0); text("shown");
  type(board[1], "4"); note();
  document.getElementById("clear").click(); note();
  paste("not a puzzle"); text("status");
  document.body.dataset.seen = JSON.stringify(seen);
})();
"""


def test_typing_pasting_and_looking_back(demo: Path, tmp_path: Path) -> None:
    document = dom(demo, tmp_path / "profile", "", USE.replace("PUZZLE", HARD))
    (seen,) = re.findall(r'data-seen="([^"]*)"', document)
    first, *_, last = answers(HARD)
    assert json.loads(html.unescape(seen)) == [
        HARD, 13, "Not a Sudoku: row 1 holds 8 twice.", last, 21, first, True, "step 1 of 3",
        f"{HARD[0]}4{HARD[2:]}", "." * 81, "That is no Sudoku: a puzzle has 81 cells, with . or 0 for blanks.",
    ]  # fmt: skip
