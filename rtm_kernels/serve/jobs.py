"""Requests that wait for slots, and whose puzzle goes next: fair between requests, whatever their sizes."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rtm_kernels.serve.refusal import Refused

Outcome = tuple[int, dict[str, Any]]
"""Position of a puzzle in its request, and its solution."""


@dataclass(eq=False)
class Ticket:
    """One puzzle of a job. `crashes`: how many workers ended while they held it."""

    job: Job
    index: int
    text: str
    crashes: int = 0


@dataclass(eq=False)
class Job:
    """The puzzles of one request. `expires` is a time of the event loop; `results` are taken by the request."""

    model: str
    max_steps: int
    expires: float
    priority: int = 0
    arrival: int = field(default_factory=itertools.count().__next__)
    waiting: deque[Ticket] = field(default_factory=deque)
    running: dict[int, Ticket] = field(default_factory=dict)
    results: asyncio.Queue[Outcome | Refused] = field(default_factory=asyncio.Queue)

    def add(self, texts: list[str]) -> None:
        self.waiting.extend(Ticket(self, index, text) for index, text in enumerate(texts))

    @property
    def unfinished(self) -> int:
        return len(self.waiting) + len(self.running)


class FairQueue:
    """The jobs of one model, and its `slots`.

    The next free slot goes to the job that holds the fewest, among equals to the earliest. The last `reserve` free
    slots go only to jobs that hold none. So however many puzzles a request brings, the first puzzle of another one
    finds a slot at once, as long as there are not more than `reserve` such newcomers at a time.
    """

    def __init__(self, slots: int) -> None:
        self.slots, self.reserve = slots, max(1, slots // 8) if slots > 1 else 0
        self.jobs: list[Job] = []

    @property
    def waiting(self) -> int:
        return sum(len(job.waiting) for job in self.jobs)

    @property
    def running(self) -> int:
        return sum(len(job.running) for job in self.jobs)

    def take(self) -> Iterator[Ticket]:
        """The puzzles that go to slots now; the caller enters each in `job.running` before it asks for the next."""
        while True:
            candidates = [job for job in self.jobs if job.waiting]
            if not candidates:
                return
            job = min(candidates, key=lambda job: (-job.priority, len(job.running), job.arrival))
            free = self.slots - self.running
            if job.priority == 0 and free <= (self.reserve if job.running else 0):
                return
            yield job.waiting.popleft()
