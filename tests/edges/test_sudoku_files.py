"""Sudokus as people have them: each form is read as a person reads it, or refused by the number of its line.

The table is `FORMS` and `REFUSED`; every form holds the same puzzle. The folder of examples beside the project, where
it is present, holds more of the same kinds.
"""

from __future__ import annotations

import gzip
import json
import os
import threading
import zipfile
from pathlib import Path

import pytest

from rtm_kernels.data.sudoku import Sudoku, read_puzzles
from rtm_kernels.errors import InputError

P = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
S = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
ROWS = [P[i : i + 9] for i in range(0, 81, 9)]
GRID = "\n".join(ROWS)
BANDS = ["".join(f"|{row[i : i + 3]}" for i in (0, 3, 6)) + "|" for row in ROWS]


def between(separator: str) -> str:
    return "\n".join(separator.join(row) for row in ROWS)


FORMS = {
    "HoDoKu: fields, and + before solved digits": f":0000:x:{P.replace('195', '1+95')}:::",
    "HoDoKu: + alone": P.replace("195", "+1+95"),
    "SadMan .sdk": f"[Puzzle]\n{GRID}\n[State]\n{GRID.replace('53.', '534')}\n",
    "SudoCue .sdk": f"#ASomebody\n#DA puzzle\n{GRID}\n",
    "Simple Sudoku .ss": "*-----------*\n" + "\n|---+---+---|\n".join("\n".join(BANDS[i : i + 3]) for i in (0, 3, 6)),
    "box drawing": "┌───┬───┬───┐\n" + "\n".join(BANDS).replace("|", "│") + "\n└───┴───┴───┘",
    "OpenSudoku": f'<?xml version="1.0"?>\n<opensudoku>\n<name>9 easy</name>\n<game data="{P.replace(".", "0")}" />\n',
    "Project Euler 96": f"Grid 01\n{GRID.replace('.', '0')}",
    "title": f"Puzzle:\n{GRID}",
    "? for a blank": P.replace(".", "?"),
    "x for a blank": P.replace(".", "x"),
    "- for a blank": P.replace(".", "-"),
    "- in a grid": GRID.replace(".", "-"),
    "spaces in a frame": "\n".join(BANDS).replace(".", " "),
    "spaces in a grid": GRID.replace(".", " "),
    "commas between cells": between(","),
    "semicolons, blanks left out": between(";").replace(".", ""),
    "tabs between cells": between("\t"),
    "Markdown table": "\n".join("| " + " | ".join(row).replace(".", " ") + " |" for row in ROWS),
    "Markdown fence": f"```text\n{GRID}\n```",
    "rows joined by dots": ".".join(row.replace(".", "0") for row in ROWS),
    "numbered rows": "\n".join(f"{i}: {row}" for i, row in enumerate(ROWS, 1)),
    "comment after the cells": f"{P} # 30 givens",
    "rating and name after the cells": f"{P},99529,ED=1.2/1.2",
    "a hash before the cells": f"00a1b2c3d4e5 {P}  1.2",
    "comments of other kinds": f"% one\n// two\n; three\n{P}",
    "digits of full width": P.translate({ord(d): ord(d) - 48 + 0xFF10 for d in "123456789"}),
    "no-break and zero-width space, form feed, Ctrl-Z": f"\u200b{P[:40]}\xa0{P[40:]}\f\x1a",
    "JSON list": json.dumps([{"puzzle": P, "solution": S}]),
    "JSON lines": json.dumps({"question": P, "answer": S}),
    "JSON rows": json.dumps([[0 if c == "." else int(c) for c in row] for row in ROWS], indent=1),
    "table, a name with a comma": f'"name, author",puzzle,solution\n"QA, me",{P},{S}',
    "table, semicolons": f"id;puzzle;solution\n1;{P};{S}",
    "table, tabs": f"puzzle\tsolution\n{P}\t{S}",
    "table of pandas": f",puzzle,solution\n0,{P.replace('.', '0')}.0,{S}.0",
    "table of Excel": f'puzzle,solution\n"=""{P}""",\'{S}',
    "table, single quotes": f"'puzzle','solution'\n'{P}','{S}'",
    "table, cells over lines": f'puzzle,solution\n"{GRID}","{S}"',
    "table, a list in a cell": f'puzzle,solution\n"{[0 if c == "." else int(c) for c in P]}",{S}',
    "table, rating in words": f"puzzle,solution,difficulty\n{P},{S},Hard",
    "table, rating with a decimal comma": f'puzzle,solution,rating\n{P},{S},"2,2"',
    "table, a question in words too": f"question,puzzle,solution\nWhat is it?,{P},{S}",
    "table, two columns of solutions": f"puzzle,solutions,answer\n{P},1,{S}",
    "table, Excel's line of the separator": f"sep=;\npuzzle;solution\n{P};{S}",
    "header of one column": f"quizzes\n{P}",
    "header of Markdown": f"|{' |' * 9}\n|{'-|' * 9}\n" + "\n".join(f"|{'|'.join(r)}|".replace(".", " ") for r in ROWS),
    "header of Markdown, numbered": f"|{'|'.join('123456789')}|\n|{'-|' * 9}\n"
    + "\n".join(f"|{'|'.join(r)}|".replace(".", " ") for r in ROWS),
    "Markdown quote": "\n".join(f"> {row}" for row in ROWS),
    "another fence": f"~~~\n{GRID}\n~~~",
    "a name": f"puzzle = '{P}'",
    "a list of code": f'puzzles = [\n    "{P}",\n]',
    "rows of code": "board = [\n" + "\n".join(f"    [{', '.join(row.replace('.', '0'))}]," for row in ROWS) + "\n]",
    "rows of C": "int g[9][9] = {\n" + ",\n".join(f"  {{{','.join(row.replace('.', '0'))}}}" for row in ROWS) + "\n};",
    "array of NumPy": "[[" + "]\n [".join(" ".join(row.replace(".", "0")) for row in ROWS) + "]]",
    "rows of Python, None for a blank": "grid = [\n"
    + "".join(f"    [{', '.join(row).replace('.', 'None')}],\n" for row in ROWS)
    + "]",
    "rows of texts, a name on a line of its own": "board =\n" + json.dumps([list(row) for row in ROWS]),
    "rows of Prolog": "problem(1, [" + ",\n  ".join(f"[{','.join(row).replace('.', '_')}]" for row in ROWS) + "]).",
    "texts of Python": "rows = [\n" + "".join(f"    '{row}',\n" for row in ROWS) + "]",
    "dots in the middle": GRID.replace(".", "·"),
    "bullets": P.replace(".", "•"),
    "tabs, blanks left out": between("\t").replace(".", ""),
    "JSON below other names, with solutions": json.dumps(
        {"newboard": {"grids": [{"value": ROWS, "solution": S, "difficulty": "Easy"}], "results": 1, "message": "Ok"}}
    ),
    "a web address": f"https://example.org/?bd={P.replace('.', '0')}",
    **{f"rows joined by {separator!r}": separator.join(ROWS) for separator in (",", "/", "\\n", "|")},
    "JSON below other names": json.dumps({"puzzles": [P]}),
    "JSON nulls": json.dumps({"data": [{"puzzle": [[int(c) if c != "." else None for c in row] for row in ROWS]}]}),
    "a table of pandas without solutions": f"puzzle,solution\n{P},nan",
    "no header": f"{P},{S}",
    **{f"table, {puzzle} and {solution}": f"{puzzle},{solution}\n{P},{S}" for puzzle, solution in (
        ("puzzle", "solution"), ("quizzes", "solutions"), ("question", "answer"), ("Sudoku", "Solved"),
        ("unsolved", "solved"), ("initial_board", "solution"), ("puzzle_string", "solution_string"),
        ("input", "target"))},
}  # fmt: skip
WITH_SOLUTION = ("table", "JSON l", "JSON below other names, with", "no header")


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read_as_a_person_reads_it(name: str) -> None:
    [puzzle] = read_puzzles(FORMS[name])
    assert puzzle.text == P
    assert puzzle.solution == (S if name.startswith(WITH_SOLUTION) else None)


REFUSED = {
    "a zero that Excel dropped": (f"puzzle\n{P.replace('.', '0')[1:]}", "line 2, column 80: 80 cells"),
    "a number that Excel rounded": ("puzzle,solution\n5.3007E+80,5.3E+80", "line 2, column 7: illegal character 'E'"),
    "a quote without end": (f'puzzle,name\n{P},"a\n{P},b', "line 2: no row of a table"),
    "candidates of 729 digits": ("1" * 729, "line 1, column 729: 729 cells"),
    "HTML": (f"<pre>\n{GRID}\n</pre>", "line 1, column 1: illegal character '<'"),
    "two puzzles on a line": (f"{P} {P[::-1]}", "line 1, column 163: 162 cells"),
    "JSON without end": (f'[{{"puzzle": "{P}"}}', "line 1: the JSON value has no end"),
    "JSON that is none": ("[}", "line 1: not JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_puzzle_is_named_by_its_line(name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        list(read_puzzles(text))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_others_of_a_file_are_read() -> None:
    found = list(read_puzzles(f"{P}\nsome words\n{P} # fine\n", errors="report"))
    assert [(p.line, p.error is None) for p in found] == [(1, True), (2, False), (3, True)]
    good = json.dumps({"puzzle": P})
    found = list(read_puzzles(f"{good}\n{{bad\n\n{good}\n", errors="report"))
    assert [(p.line, p.error is None) for p in found] == [(1, True), (2, False), (4, True)]
    found = list(read_puzzles(f'puzzle,solution\n{P},{S}\n\n"{P},{S}\n', errors="report"))
    assert [(p.line, p.error is None) for p in found] == [(2, True), (4, False)]


def zipped(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, P + "\n")


ENCODED = {
    "utf-8 with a mark": lambda path: path.write_text(P, "utf-8-sig"),
    "utf-16 with a mark": lambda path: path.write_text(P, "utf-16"),
    "utf-16 without": lambda path: path.write_text(P, "utf-16-le"),
    "utf-16, high byte first": lambda path: path.write_text(P, "utf-16-be"),
    "utf-32 with a mark": lambda path: path.write_text(P, "utf-32"),
    "utf-32 without": lambda path: path.write_text(P, "utf-32-le"),
    "carriage returns alone": lambda path: path.write_bytes(f"# one\r{P}\r".encode()),
    "gzip, whatever its name": lambda path: path.write_bytes(gzip.compress(P.encode())),
    "zip of one": lambda path: zipped(path, "p.txt"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_every_encoding(name: str, tmp_path: Path) -> None:
    ENCODED[name](tmp_path / "p.csv")
    assert [p.text for p in Sudoku().read(tmp_path / "p.csv")] == [P]


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.gz").write_bytes(gzip.compress(P.encode() * 99)[:60])
    zipped(tmp_path / "p.zip", "a", "b")
    (tmp_path / "q.zip").write_bytes((tmp_path / "p.zip").read_bytes()[:50])
    for name, message in (
        ("p.gz", "cannot be read"),
        ("p.zip", "a zip file of 2 members"),
        ("q.zip", "cannot be read"),
    ):
        with pytest.raises(InputError, match=f"{name}: {message}"):
            list(Sudoku().read(tmp_path / name))


def test_named_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(P))
    writer.start()
    assert [p.text for p in Sudoku().read(tmp_path / "pipe")] == [P]
    writer.join()


EXAMPLES = Path(__file__).parents[3] / "shared" / "edges" / "sudoku"
NOT_READ = ("empty.csv", "excel_scientific.csv", "lost_zero.csv", "only_comment.txt", "only_header.csv",
            "pencil729.txt", "pencilmarks.txt")  # fmt: skip


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not here")
def test_the_examples() -> None:
    for path in sorted(EXAMPLES.iterdir()):
        try:
            found = list(Sudoku().read(path, errors="report"))
        except InputError:
            found = []
        assert {p.text for p in found if not p.error} == (set() if path.name in NOT_READ else {P}), path.name
