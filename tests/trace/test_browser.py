"""The page in a real browser: chromium, headless, steps chosen by the address, the document it ends up with."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rtm_kernels.data.task import Puzzle, get_task
from rtm_kernels.engine import Solver
from rtm_kernels.trace import Trace, Traced, read_trace, record, write_page
from rtm_kernels.trace.page import write_words
from rtm_kernels.trace.recorder import find_layout
from tests.engine import fakes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no chromium here: that the viewer works in a browser stays unproven (apt install chromium)",
)


def dom(path: Path, profile: Path, fragment: str = "", added: str = "") -> str:
    """The document after its scripts have run, with `added` as one more script at its end."""
    shown = path.with_name("shown.html")
    shown.write_text(path.read_text().replace("</body>", f"<script>{added}</script></body>"))
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--window-size=1300,900", "--virtual-time-budget=20000",
         f"--user-data-dir={profile}", "--dump-dom", f"{shown.as_uri()}{fragment}"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(document: str, board: str = "board") -> list[tuple[set[str], str]]:
    """Classes and text of the cells of a board."""
    grid = re.search(rf'id="{board}".*?<div class="grid[^"]*"[^>]*>(.*?)</div></div>', document, re.S)
    assert grid is not None
    found = re.findall(r'<div class="(cell[^"]*)">([^<]*)', grid[1] + "</div>")
    return [(set(names.split()), text) for names, text in found]


def text_of(document: str, name: str) -> str:
    found = re.search(rf'id="{name}"[^>]*>(.*?)</(?:p|output|h1)>', document, re.S)
    assert found is not None
    return re.sub(r"<[^>]*>", "", found[1])


@pytest.fixture(scope="module")
def shown(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Trace]:
    folder = tmp_path_factory.mktemp("pages")
    trace = read_trace(recorded)
    write_page(trace, folder / "t.html")
    return folder / "t.html", folder / "profile", trace


@needs_chromium
def test_a_step_of_the_address_is_shown(shown: tuple[Path, Path, Trace]) -> None:
    path, profile, trace = shown
    document = dom(path, profile, "#puzzle=1&step=3")
    traced = trace.puzzles[0]
    step = traced.steps[2]
    board = cells(document)
    assert [text for _, text in board] == [c if c != "." else "" for c in step["answer"]]
    assert [i for i, (names, _) in enumerate(board) if "changed" in names] == step["changed"]
    given = traced.puzzle["input"]
    assert [i for i, (names, _) in enumerate(board) if "given" in names] == [i for i, c in enumerate(given) if c != "."]
    target = traced.puzzle["solution"]
    wrong = [i for i, c in enumerate(step["answer"]) if c != target[i] and c != "."]
    assert [i for i, (names, _) in enumerate(board) if "wrong" in names] == wrong
    assert [text for _, text in cells(document, "input")] == [c if c != "." else "" for c in given]
    assert text_of(document, "counter") == "3 / 5"
    assert text_of(document, "headline").startswith(f"Step 3: {len(step['changed'])} cells")
    assert f"{len(wrong) + step['answer'].count('.')} cells unlike the solution" in text_of(document, "verdict")
    assert ("Verified" if step["verified"] else step["fault"]) in text_of(document, "verdict")
    assert document.count("<option>") == 3 and document.count('class="bar') == 5
    assert document.count('aria-current="step"') == 1 and 'class="now"' in document


KEYS = """
const key = (name) => document.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const seen = [];
const note = () => seen.push(document.body.dataset.puzzle + ":" + document.body.dataset.step);
note(); key("ArrowRight"); key("ArrowRight"); note(); key("ArrowLeft"); note(); key("End"); note();
key("ArrowRight"); note(); key("Home"); note(); key("ArrowDown"); note(); key("ArrowUp"); note();
document.getElementById("next-puzzle").click(); document.getElementById("forward").click(); note();
const slider = document.getElementById("slider");
slider.value = 4; slider.dispatchEvent(new Event("input")); note();
document.body.dataset.seen = seen.join(" ");
"""


@needs_chromium
def test_keys_buttons_and_slider_move(shown: tuple[Path, Path, Trace]) -> None:
    path, profile, _ = shown
    assert text_of(dom(path, profile), "counter") == "5 / 5"  # the answer forms by itself unless a step is asked for
    document = dom(path, profile, "", KEYS)
    assert 'data-seen="0:0 0:2 0:1 0:5 0:5 0:0 1:0 0:0 1:1 1:4"' in document


def played(recorded: Path, folder: Path, name: str, puzzle: Puzzle, answers: list[str]) -> Path:
    """The page of a trace in which these are the answers of the steps."""
    task, trace = get_task(name), read_trace(recorded)
    header = trace.header | {"task": name, "seq_len": task.seq_len, "layout": find_layout(task)}
    traced, cells = trace.puzzles[0], [task.encode(text) for text in (puzzle.text, *answers)]
    steps = [
        traced.steps[0] | {"step": n, "answer": answer, "changed": np.flatnonzero(cells[n] != cells[n - 1]).tolist()}
        for n, answer in enumerate(answers, start=1)
    ]
    end = (traced.end or {}) | {"answer": answers[-1], "steps": len(answers)}
    known = traced.puzzle | {"input": puzzle.text, "solution": puzzle.solution}
    write_page(Trace(header, [], [Traced(known, steps, end)]), folder / "t.html")
    return folder / "t.html"


@needs_chromium
def test_a_maze_shows_its_path_what_was_marked_and_what_was_unmarked(recorded: Path, tmp_path: Path) -> None:
    def field(*marked: int) -> str:
        cells = ["#"] * 900
        cells[31], cells[32:37], cells[37] = "S", list("     "), "G"
        cells[62:64] = list("  ")
        for place in marked:
            cells[place] = "o"
        return "".join(cells)

    solution = field(32, 33, 34, 35, 36)
    path = played(recorded, tmp_path, "maze", Puzzle(field(), solution), [field(32, 62), field(32, 33, 63), solution])
    document = dom(path, tmp_path / "profile", "#puzzle=1&step=2")
    board = cells(document)

    def having(name: str) -> list[int]:
        return [i for i, (names, _) in enumerate(board) if name in names]

    assert (having("start"), having("goal"), having("path")) == ([31], [37], [32, 33, 63])
    assert (having("changed"), having("gone"), having("wrong")) == ([33, 62, 63], [62], [63])
    assert len(having("wall")) == 891
    assert text_of(document, "headline") == "Step 2: 3 cells changed: 2 marked, 1 unmarked"
    assert "unmarked in this step" in document and "not in the solution" in document
    assert document.count('class="grid maze dense"') == 2


@needs_chromium
def test_an_arc_grid_has_colours_and_a_size_of_its_own(recorded: Path, tmp_path: Path) -> None:
    answers = ["00/12", "003/145/000", "003/125/999"]
    path = played(recorded, tmp_path, "arc", Puzzle("012/345", "003/125/999"), answers)
    document = dom(path, tmp_path / "profile", "#puzzle=1&step=3")
    board = cells(document)
    colours = [next(name[1:] for name in names if re.fullmatch("c[0-9]", name)) for names, _ in board]
    assert "".join(colours) == "003125999"
    assert [i for i, (names, _) in enumerate(board) if "changed" in names] == [4, 6, 7, 8]
    assert text_of(document, "headline") == "Step 3: 4 cells changed"
    assert "0 cells unlike the solution" in text_of(document, "verdict")
    assert len(cells(document, "input")) == 6 and "2 × 3" in document
    thumbs = re.findall(r'<button class="thumb".*?</button>', document, re.S)
    assert [len(re.findall("<rect", thumb)) for thumb in thumbs] == [4, 9, 9]
    early = dom(path, tmp_path / "profile", "#puzzle=1&step=1")
    assert "The solution is 3 × 3." in text_of(early, "verdict")


@needs_chromium
def test_a_task_without_a_grid_is_text_and_stays_text(tmp_path: Path) -> None:
    model = fakes.model()
    solver = Solver(model, task=fakes.TASK, executor="reference", batch_size=2, batch_invariant=True)
    solver.executor = fakes.ScriptedExecutor(model)
    record(solver, [Puzzle("3000"), Puzzle("3017")], tmp_path / "t.jsonl", model_name="</script><b>")
    write_page(read_trace(tmp_path / "t.jsonl"), tmp_path / "t.html")
    document = dom(tmp_path / "t.html", tmp_path / "profile", "#puzzle=1&step=3")
    assert "<pre>0003</pre>" in document and text_of(document, "counter") == "3 / 3"
    assert "<b>" not in document.split("<script")[0]


@needs_chromium
def test_the_words_of_a_text_are_shaded_by_their_rounds(tmp_path: Path) -> None:
    write_words([("for", 2), (" <x>", 1), (" in", 4)], 4, tmp_path / "page.html")
    document = dom(tmp_path / "page.html", tmp_path / "profile")
    assert "3 words, 2.33 of 4 rounds in the mean" in text_of(document, "about")
    shades = re.findall(r'title="(\d) rounds?" style="--share: ([\d.]+)%">([^<]*)<', document)
    assert shades == [("2", "35", "for"), ("1", "17.5", " &lt;x&gt;"), ("4", "70", " in")]
    assert 'id="curves"' not in document and "<nav" not in document
