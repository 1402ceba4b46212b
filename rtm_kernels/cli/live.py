"""What a person watches while puzzles are solved: progress, speed, and how deep the puzzles went so far."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from rtm_kernels.cli.report import bars, solid
from rtm_kernels.engine.solution import Solution


class LiveDepths:
    """A progress bar over a depth histogram that grows; shown on a terminal only, and gone at the end."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        columns = (TextColumn("solving"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
        self.progress = Progress(*columns, TimeRemainingColumn(), console=self.console)
        self.task = self.progress.add_task("", total=total, speed="")
        self.depths, self.verified, self.start = Counter[int](), 0, time.perf_counter()
        self.live = Live(self, console=self.console, transient=True, refresh_per_second=8)

    def add(self, solution: Solution) -> None:
        """Count a puzzle that left."""
        if solution.status != "invalid":
            self.depths[solution.steps] += 1
        self.verified += solution.status == "verified"
        done = sum(self.depths.values())
        speed = done / max(time.perf_counter() - self.start, 1e-9)
        self.progress.update(self.task, advance=1, speed=f"{speed:.1f} puzzles/s, {self.verified} verified")

    def __rich__(self) -> Group:
        lines = bars(dict(sorted(self.depths.items())), solid(self.console))
        return Group(self.progress, Text("steps and how many puzzles took them", style="dim"), Text("\n".join(lines)))

    def __enter__(self) -> LiveDepths:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live.is_started:
            self.live.stop()
