"""Mazes as people have them: each form is read as a person reads it, or refused by the number of its line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from rtm_kernels.cli.source import model_for
from rtm_kernels.data import get_task
from rtm_kernels.errors import InputError

GRID = "#     ###\n#   S    \n ###  #  \n  ##    #\n### #    \nG#  #   #\n     #   \n         \n # #    #"
ROWS = GRID.split("\n")
LINE = "".join(ROWS)
DOTS = GRID.replace(" ", ".").split("\n")
SOLVED = "#     ####   So    ### o#    ## oo #### # o  G#  # o #ooooo#o      ooo   # #    #"

FORMS = {
    "grid": GRID,
    "grid, ends of rows taken away by an editor": "\n".join(row.rstrip() for row in ROWS),
    "dots for open cells": GRID.replace(" ", "."),
    "ones and zeros": GRID.replace("#", "1").replace(" ", "0"),
    "E for the end": GRID.replace("G", "E"),
    "small letters": GRID.replace("S", "s").replace("G", "g"),
    "blocks for walls": GRID.replace("#", "█"),
    "no-break spaces": GRID.replace(" ", "\xa0"),
    "commas between cells": "\n".join(",".join(row) for row in ROWS),
    "one line": LINE,
    "one line, its end taken away": LINE.rstrip(),
    "table": f"question,answer\n{LINE},{SOLVED}",
    "table, a name with a comma": f'"who, when",question,answer\n"QA, me",{LINE},{SOLVED}',
    "table, tabs": f"question\tanswer\n{LINE}\t{SOLVED}",
    "table, cells over lines": f'question,answer\n"{GRID}",{SOLVED}',
    "utf-8 mark": "\ufeff" + GRID,
    **{f"{name} between": "\n".join(sep.join(row) for row in DOTS) for name, sep in (("spaces", " "), ("tabs", "\t"))},
    "ones and zeros, spaces between": "\n".join(" ".join(row) for row in DOTS).replace("#", "1").replace(".", "0"),
    "indented": "\n".join(f"    {row}" for row in DOTS),
    "Markdown fence": f"```text\n{GRID}\n```",
    "Markdown quote": "\n".join(f"> {row}" for row in ROWS),
    "title": f"Maze 1\n{GRID}",
    "a line of its sizes": f"9 9\n{GRID.replace(' ', '.')}",
    "comment": f"// nine by nine\n{GRID}",
    "JSON rows": json.dumps(ROWS),
    "JSON cells": json.dumps([list(row) for row in DOTS], indent=1),
    "JSON lines": json.dumps({"maze": GRID}),
}  # fmt: skip
TASKS = {"its side named": lambda: get_task("maze9"), "any side": lambda: get_task("maze").reader()}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read_as_a_person_reads_it(name: str, task: str) -> None:
    [maze] = TASKS[task]().parse(FORMS[name])
    assert maze.text.replace("\n", "") == LINE
    assert maze.solution == (SOLVED if name.startswith("table") else None)


REFUSED = {
    "no way from S to G": ("\n".join(["S########", *["#########"] * 7, "G########"]), "a way leads from S to G"),
    "a solved maze": ("\n".join(SOLVED[i : i + 9] for i in range(0, 81, 9)), "a puzzle holds no path"),
    "another mark for the path": (GRID.replace("S ", "SX"), "'X' is not one of"),
    "E and G": (GRID.replace("S", "E"), "'E' is not one of"),
    "commas for open cells": (GRID.replace(" ", ","), "',' is not one of"),
    "a blank line between the halves": ("\n".join([*ROWS[:4], "", *ROWS[4:]]), "a blank line"),
    "a row of dots too short": ("\n".join([DOTS[0][:-1], *DOTS[1:]]), "puzzle length=80"),
    "two starts": (GRID.replace("G", "S"), "number of "),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_maze_is_named_by_its_line(name: str, task: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        list(TASKS[task]().parse(text))
    assert str(caught.value).startswith("line 1: ") and message in str(caught.value)


def test_the_others_of_a_file_are_read() -> None:
    for line in ("---", "====="):
        assert [m.text for m in get_task("maze").reader().parse(f"{GRID}\n{line}\n{GRID}\n")] == [LINE, LINE]
    found = list(get_task("maze").reader().parse(f"{GRID}\n\n#S.#\n#.G#\n\n{GRID}\n", errors="report"))
    assert [(m.line, m.error is None) for m in found] == [(1, True), (11, False), (14, True)]


def test_a_bad_line_hides_no_line_beside_it() -> None:
    for bad in (LINE.replace("G", " "), LINE[1:]):
        found = list(get_task("maze").reader().parse(f"{LINE}\n{bad}\n{LINE}\n", errors="report"))
        assert [(m.line, m.text) for m in found if not m.error] == [(1, LINE), (3, LINE)]


def test_a_row_with_start_and_goal_is_no_maze_by_itself() -> None:
    rows = ["S" + "." * 23 + "G", *["." * 25] * 24]  # 25 cells are a square of side 5, too
    [maze] = get_task("maze").reader().parse("\n".join(["25 25", *rows]))
    assert maze.text == "".join(rows).replace(".", " ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", FORMS)
def test_a_file_of_mazes_finds_its_model(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text(FORMS[name], encoding)
    assert model_for([str(tmp_path / "m.txt")]) == "maze"


@pytest.mark.parametrize("text", ["." * 81, "puzzle,solution\n", "Sudoku for Gabi", "10" * 40 + "1", "", "nowhere.txt"])
def test_what_is_no_maze_is_for_the_model_of_sudokus(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text(text)
    assert model_for([text]) == model_for([str(tmp_path / "s.txt")]) == "sudoku"


def test_mazes_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, model in ((GRID, "maze"), ("." * 81, "sudoku"), ("", "sudoku")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(text.encode()))))
        assert model_for(["-"]) == model


EXAMPLES = Path(__file__).parents[3] / "shared" / "edges" / "maze"
NOT_READ = ("comment.txt", "grid_X_path.txt", "grid_solved_o.txt", "nopath.txt", "smaller.txt")


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not here")
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*")))
def test_the_examples(name: str) -> None:
    found = [p for p in get_task("maze").reader().read(EXAMPLES / name, errors="report")]
    assert bool([p for p in found if not p.error]) == (name not in NOT_READ)
    if name not in (*NOT_READ, "bigger.txt", "grid_open_row.txt"):
        assert found[0].text == LINE
