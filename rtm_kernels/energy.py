"""Energy counters of this machine: the GPU board through NVML, the processor package through RAPL."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RAPL = Path("/sys/class/powercap/intel-rapl:0")


@dataclass
class EnergyCounter:
    """Counts the joules that `covers` has used since this object was made, what idles included."""

    covers: str
    _read: Callable[[], float]
    _range: float = 0.0

    def __post_init__(self) -> None:
        self._last, self._total = self._read(), 0.0

    def joules(self) -> float:
        """Joules so far. A counter that wraps has to be asked once per turn (RAPL: minutes under full load)."""
        now = self._read()
        step = now - self._last
        self._total += step + self._range if step < 0 else step
        self._last = now
        return self._total


def energy_counter(device_type: str, index: int = 0) -> EnergyCounter | None:
    """The counter of what computes on `device_type` (`cuda` or `cpu`), started; None where none can be read."""
    if device_type == "cuda":
        board = _nvml(index)
        return None if board is None else EnergyCounter("GPU board, NVML", board)
    try:
        full = int((RAPL / "max_energy_range_uj").read_text()) / 1e6
        return EnergyCounter("processor package 0, RAPL", lambda: int((RAPL / "energy_uj").read_text()) / 1e6, full)
    except (OSError, ValueError):
        return None


def _nvml(index: int) -> Callable[[], float] | None:
    """Reads the total-energy counter of a GPU board in joules; None where the driver's library does not answer."""
    handle, value = ctypes.c_void_p(), ctypes.c_ulonglong()
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        failed = library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(
            ctypes.c_uint(index), ctypes.byref(handle)
        )
        failed = failed or library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
    except (OSError, AttributeError):
        return None

    def read() -> float:
        library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
        return value.value / 1e3

    return None if failed else read
