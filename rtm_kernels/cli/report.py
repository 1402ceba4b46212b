"""What a command prints: JSON, or tables, grids and histograms for a person, and its progress on standard error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rtm_kernels.data.task import Task
    from rtm_kernels.engine.samples import Solution

BAR_WIDTH = 30
MAX_BARS = 16
ON, OFF = "\x01", "\x02"
FILLED = "bold green"


def print_grid(console: Console, task: Task, solution: Solution, title: str) -> None:
    """Puzzle and answer side by side, the filled-in cells in colour; only a verified answer is called solved."""
    verified = solution.status == "verified"
    console.print(Text(f"{title}: ").append(headline(task, solution), style="green" if verified else "yellow"))
    given = task.render(solution.input).splitlines()
    answer: list[str] = []
    if solution.answer is not None:
        answer = task.render(solution.input, solution.answer, lambda cell: f"{ON}{cell}{OFF}").splitlines()
    width = max(map(len, given), default=0)
    if console.width < 2 * width + 6:
        lines = [Text(line) for line in given] + [Text("")] + [styled(line) for line in answer]
    else:
        pairs = zip_longest(given, answer, fillvalue="")
        lines = [Text.assemble("  ", left.ljust(width), "    ", styled(right)) for left, right in pairs]
    for line in lines:
        console.print(line, no_wrap=True, crop=False)
    console.print()


def headline(task: Task, solution: Solution) -> str:
    steps = f"{solution.steps} step{'s' * (solution.steps != 1)}"
    if solution.status == "verified":
        return f"verified after {steps}"
    if solution.answer is None:
        return f"{solution.status.replace('_', ' ')} after {steps}, no answer"
    why = task.verify(solution.input, solution.answer).reason
    return f"not solved in {steps}, best candidate: {why}"


def styled(line: str) -> Text:
    """The rendered line with what lies between the marks in the style of filled-in cells."""
    text = Text()
    for i, part in enumerate(line.split(ON)):
        filled, _, rest = part.partition(OFF) if i else ("", "", part)
        text.append(filled, style=FILLED).append(rest)
    return text


def bars(histogram: Mapping[int, int], solid: str) -> list[str]:
    """The histogram as lines of bars, in at most `MAX_BARS` bins of equal width."""
    if not histogram:
        return []
    low, high = min(histogram), max(histogram)
    width = -(-(high - low + 1) // MAX_BARS)
    counts = [
        sum(n for depth, n in histogram.items() if start <= depth < start + width)
        for start in range(low, high + 1, width)
    ]
    names = [
        str(start) if width == 1 else f"{start}-{min(start + width - 1, high)}" for start in range(low, high + 1, width)
    ]
    pad, most = max(map(len, names)), max(counts)
    return [
        f"{name.rjust(pad)} {solid * -(-BAR_WIDTH * count // most)}{' ' * bool(count)}{count}"
        for name, count in zip(names, counts, strict=True)
    ]


def print_result(report: Mapping[str, Any], rows: Mapping[str, str], as_json: bool) -> None:
    """What a command found: `report` as one JSON object, or `rows` as a table."""
    if as_json:
        typer.echo(json.dumps(report))
    else:
        print_table(Console(highlight=False), rows)


def print_table(console: Console, rows: Mapping[str, str]) -> None:
    """Two columns, name and value; no blanks at the end of a line that goes to a file or a pipe."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, Text(value))
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        console.out(line.rstrip(), highlight=False)


def solid(console: Console) -> str:
    """A full block, or `#` where the terminal cannot show one."""
    return "█" if "utf" in console.encoding.lower() else "#"


class Progress(Bar):
    """A bar named `name` that counts to `total`, with a text after it; without a terminal up to `lines` lines.

    `quiet` shows no bar: while it is shown, nothing can be written to standard output.
    """

    def __init__(self, name: str, total: int, *, lines: int = 0, transient: bool = True, quiet: bool = False) -> None:
        console = Console(stderr=True, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}")
        disable = quiet or not console.is_terminal
        super().__init__(*columns, TimeRemainingColumn(), console=console, transient=transient, disable=disable)
        self.name, self.total, self.lines, self.done = name, total, lines, 0
        self.bar = self.add_task(name, total=total, text="")

    def show(self, done: int, text: str) -> None:
        """Say that `done` of the total are done, and `text` about them."""
        before, self.done = self.done, done
        self.update(self.bar, completed=done, text=text)
        if not self.console.is_terminal and self.lines * done // self.total != self.lines * before // self.total:
            self.console.print(f"{self.name} {done}/{self.total}: {text}", markup=False, soft_wrap=True)
