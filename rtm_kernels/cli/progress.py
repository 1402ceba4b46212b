"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from rtm_kernels.cli.report import bars, solid


class Progress(Bar):
    """A bar named `name` that counts to `total`, with a text after it; without a terminal up to `lines` lines."""

    def __init__(
        self, name: str, total: int, *, lines: int = 0, transient: bool = True, console: Console | None = None
    ) -> None:
        console = console or Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        super().__init__(
            *columns, TimeRemainingColumn(), console=console, transient=transient, disable=not console.is_terminal
        )
        self.name, self.total, self.lines, self.done = name, total, lines, 0
        self.bar = self.add_task(name, total=total, text="")

    def show(self, done: int, text: str) -> None:
        """Say that `done` of the total are done, and `text` about them."""
        before, self.done = self.done, done
        self.update(self.bar, completed=done, text=text)
        if not self.console.is_terminal and self.lines * done // self.total != self.lines * before // self.total:
            self.console.print(f"{self.name} {done}/{self.total}: {text}", markup=False, soft_wrap=True)


class DepthProgress(Progress):
    """Progress of solving, with a histogram of ACT steps below that grows."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        console = console or Console(stderr=True, highlight=False)
        self.depths, self.verified, self.solid = Counter[int](), 0, solid(console)
        super().__init__("solving", total, console=console)

    def add(self, steps: int | None, verified: bool) -> None:
        """Count a puzzle that left after `steps`, None for one that could not be read."""
        if steps is not None:
            self.depths[steps] += 1
        self.verified += verified
        speed = sum(self.depths.values()) / max(self.tasks[0].elapsed or 0, 1e-9)
        self.show(self.done + 1, f"{speed:.1f} puzzles/s, {self.verified} verified")

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text("steps and how many puzzles took them", style="dim")
        yield Text("\n".join(bars(self.depths, self.solid)))
