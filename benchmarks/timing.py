"""Interleaved measurement: every round times every contestant once, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

Call = Callable[[int], object]
"""Runs one call on the i-th set of inputs."""

MIN_SAMPLE = {"cpu": 5e-3, "cuda": 2e-4}
"""A sample repeats the call until it takes at least this many seconds."""

PATIENCE = 5


class Clock:
    """Times calls on a device: by the wall clock, or by CUDA events with one synchronisation per sample.

    With `flush`, a write of twice the L2 cache precedes every timed call, which is then timed alone. With `process` on
    a CPU, the processor time of this process is counted, to which other programs add little.
    """

    def __init__(self, device: str, flush: bool = False, process: bool = False) -> None:
        self.device, self.timer = device, time.process_time if process else time.perf_counter
        self.buffer: torch.Tensor | None = None
        if device == "cuda" and flush:
            size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
            self.buffer = torch.empty(size, dtype=torch.uint8, device=device)

    def sample(self, call: Call, start: int, count: int) -> float:
        """Seconds per call over `count` calls."""
        if self.device == "cpu":
            begin = self.timer()
            for i in range(start, start + count):
                call(i)
            return (self.timer() - begin) / count
        if self.buffer is None:
            return self._events(lambda: [call(i) for i in range(start, start + count)]) / count
        return float(np.median([self._cold(call, i) for i in range(start, start + count)]))

    def _cold(self, call: Call, i: int) -> float:
        assert self.buffer is not None
        self.buffer.zero_()
        return self._events(lambda: call(i))

    @staticmethod
    def _events(work: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def interleave(
    calls: Mapping[str, Call], clock: Clock, *, seconds: float, min_rounds: int = 7, max_rounds: int = 60
) -> dict[str, list[float]]:
    """Samples (seconds per call) by name; the i-th samples of all were taken in round i, in rotating order.

    Rounds go on until `seconds` have passed, within the bounds; after `PATIENCE` times `seconds`, three are enough.
    """
    counts = {}
    for name, call in calls.items():
        clock.sample(call, 0, 1)  # warm up
        counts[name] = max(1, min(200, round(MIN_SAMPLE[clock.device] / max(clock.sample(call, 1, 1), 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names, begin = list(calls), time.perf_counter()
    for turn in range(max_rounds):
        elapsed = time.perf_counter() - begin
        if (elapsed > seconds and turn >= min_rounds) or (elapsed > PATIENCE * seconds and turn >= 3):
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(clock.sample(calls[name], turn, counts[name]))
    return samples


def median_interval(values: Sequence[float], seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """Median, and the ends of its 95% bootstrap interval."""
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(data), (draws, len(data)))
    low, high = np.quantile(np.median(data[picks], axis=1), (0.025, 0.975))
    return float(np.median(data)), float(low), float(high)


def speedup(baseline: Sequence[float], samples: Sequence[float]) -> tuple[float, float, float]:
    """Median of baseline / samples over the rounds, with its 95% interval: above 1, the samples are faster."""
    return median_interval([b / s for b, s in zip(baseline, samples, strict=True)])
