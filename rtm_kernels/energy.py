"""Energy counters of this machine: the GPU board through NVML, the processor packages through RAPL."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")


class Board:
    """The counters of one GPU, by CUDA's index, from the driver's library. Errors: `OSError` where none answers."""

    SM_CLOCK = 1

    def __init__(self, index: int) -> None:
        import torch

        if index >= torch.cuda.device_count():
            raise OSError(f"there are {torch.cuda.device_count()} CUDA devices")
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"  # NVML's indices ignore CUDA_VISIBLE_DEVICES
        self.library, self.handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid.encode()), ctypes.byref(self.handle))
        self.joules()

    def _call(self, name: str, *args: Any) -> None:
        code = getattr(self.library, name)(*args)
        if code != 0:
            raise OSError(f"{name} failed with NVML error {code}")

    def joules(self) -> float:
        """The total-energy counter of the board, in joules since the driver was loaded."""
        value = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self.handle, ctypes.byref(value))
        return value.value / 1e3

    def clock_mhz(self) -> int:
        """The clock of the multiprocessors now."""
        value = ctypes.c_uint()
        self._call("nvmlDeviceGetClockInfo", self.handle, ctypes.c_int(self.SM_CLOCK), ctypes.byref(value))
        return value.value


@functools.cache
def board(index: int = 0) -> Board | None:
    """The counters of a GPU, or None where the driver's library does not answer."""
    try:
        return Board(index)
    except (OSError, AttributeError):
        return None


@dataclass
class EnergyCounter:
    """Counts the joules that `covers` has used since this object was made, what idles included.

    `parts` are pairs of what reads a counter in joules and where that counter wraps (0: never).
    """

    covers: str
    parts: Sequence[tuple[Callable[[], float], float]]

    def __post_init__(self) -> None:
        self._last, self._total = [read() for read, _ in self.parts], 0.0

    def joules(self) -> float:
        """Joules so far. A counter that wraps has to be asked once per turn (RAPL: minutes under full load)."""
        for i, (read, wrap) in enumerate(self.parts):
            now = read()
            step = now - self._last[i]
            self._total += step + wrap if step < 0 else step
            self._last[i] = now
        return self._total


def energy_counter(device_type: str, index: int = 0) -> EnergyCounter | None:
    """The counter of what computes on `device_type` (`cuda` or `cpu`), started; None where none can be read."""
    if device_type == "cuda":
        found = board(index)
        return (
            None if found is None else EnergyCounter("GPU board only, NVML total-energy counter", [(found.joules, 0)])
        )
    try:
        parts = [_package(path) for path in sorted(RAPL.glob("intel-rapl:*")) if path.name.count(":") == 1]
        return EnergyCounter(f"{len(parts)} processor packages, RAPL", parts) if parts else None
    except (OSError, ValueError):
        return None


def _package(path: Path) -> tuple[Callable[[], float], float]:
    return lambda: int((path / "energy_uj").read_text()) / 1e6, int((path / "max_energy_range_uj").read_text()) / 1e6
