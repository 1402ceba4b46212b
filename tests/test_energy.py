"""Energy counters, over recorded files and a fake driver library."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rtm_kernels import energy


def package(root: Path, name: str, microjoules: int, wraps_at: int = 10_000_000) -> None:
    (root / name).mkdir(exist_ok=True)
    (root / name / "energy_uj").write_text(f"{microjoules}\n")
    (root / name / "max_energy_range_uj").write_text(f"{wraps_at}\n")


def test_rapl_counts_every_package_no_part_of_one_and_past_the_wrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, "intel-rapl:0", 9_000_000)
    package(tmp_path, "intel-rapl:1", 1_000_000)
    package(tmp_path, "intel-rapl:0:0", 5)
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    counter = energy.energy_counter("cpu")
    assert counter is not None and counter.covers == "2 processor packages, RAPL" and counter.joules() == 0
    package(tmp_path, "intel-rapl:0", 2_000_000)  # wrapped: 3 J
    package(tmp_path, "intel-rapl:1", 1_500_000)
    package(tmp_path, "intel-rapl:0:0", 5_000_000)
    assert counter.joules() == pytest.approx(3.5)


def test_what_cannot_be_read_is_no_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    assert energy.energy_counter("cpu") is None
    package(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("")
    assert energy.energy_counter("cpu") is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    energy.board.cache_clear()
    assert energy.energy_counter("cuda") is None


class Driver:
    """Stands in for the driver's library: board 7 has the uuid GPU-one and uses half a joule between readings."""

    millijoules = 500

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int:
        handle._obj.value = 7
        return 0 if uuid.value == b"GPU-one" else 2

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:
        self.millijoules += 500
        value._obj.value = self.millijoules
        return 0 if handle.value == 7 else 2

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: Any, value: Any) -> int:
        value._obj.value = 1980
        return 0 if kind.value == 1 else 2


def test_a_board_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=("two", "one")[i]))
    energy.board.cache_clear()
    assert energy.energy_counter("cuda", 0) is None
    counter = energy.energy_counter("cuda", 1)
    assert counter is not None and "GPU board only" in counter.covers
    assert counter.joules() == 0.5 and counter.joules() == 1.0
    found = energy.board(1)
    assert found is not None and found.clock_mhz() == 1980
    energy.board.cache_clear()
