"""The model of time against clocks counted by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks import simulation
from benchmarks.pipes import sectors, wavefronts
from benchmarks.simulation import Launch, Step, simulate

LATENCY, DRAIN, BARRIER = simulation.L2_LATENCY, simulation.DRAIN, simulation.BARRIER


def launch(*steps: tuple[Step, Any]) -> Launch:
    """One block of one warp; `None` beside steps that note nothing."""
    notes = [noted for _, noted in steps if noted is not None]
    return Launch("kernel", 1, 0, 32, 32, 0, [([step for step, _ in steps], 1, notes)])


def compute(**cost: float) -> Step:
    return Step("compute", Counter(cost))  # type: ignore[arg-type]


def product(clocks: float) -> Step:
    return Step("product", Counter({"tensor": clocks}))  # type: ignore[arg-type]


def clocks(*steps: tuple[Step, Any], resident: int = 1, programs: int = 1) -> float:
    return simulate(launch(*steps), resident, programs)[0]


def test_computing_takes_as_long_as_its_busiest_pipe() -> None:
    assert clocks((compute(special=50, alu=20), None), (compute(alu=30), None)) == 80


def test_a_reader_waits_for_what_was_loaded() -> None:
    load = Step("load L2", writes=("%r1",)), 640
    assert clocks(load, (compute(alu=7), None)) == 7
    assert clocks(load, (Step("compute", Counter(alu=7), {"%r1"}), None)) == 10 + LATENCY + 7


def test_a_copy_overlaps_until_it_is_waited_for() -> None:
    copy, commit = (Step("copy"), 640), (Step("commit copies"), None)
    done = (compute(alu=100), None), (Step("wait for copies"), None)
    assert clocks(copy, commit, *done) == 10 + LATENCY
    late = (compute(alu=1000), None), (Step("wait for copies"), None)
    assert clocks(copy, commit, *late) == 1000
    one_in_flight = Step("wait for copies", number=1), None
    assert clocks(copy, commit, copy, commit, one_in_flight, (compute(alu=1), None)) == 10 + LATENCY + 1


def test_products_run_beside_the_warps_until_they_are_waited_for() -> None:
    issue, commit, wait = (product(100), None), (Step("commit products"), None), (Step("wait for products"), None)
    assert clocks(issue, commit, (compute(alu=60), None), wait) == 100 + DRAIN
    assert simulate(launch((compute(alu=9), None), issue, commit, wait, (compute(alu=5), None)), 1, 1)[1] == (
        9, 100, DRAIN + 5,
    )  # fmt: skip


def test_programs_of_a_multiprocessor_overlap_on_different_pipes() -> None:
    steps = (compute(special=100), None), (product(100), None), (Step("commit products"), None)
    both = *steps, (Step("wait for products"), None)
    assert clocks(*both, programs=2) == 2 * (200 + DRAIN)
    assert clocks(*both, resident=2, programs=2) == 300 + DRAIN


def test_a_program_ends_when_its_last_byte_is_through_the_port() -> None:
    assert clocks((Step("store L2"), 640), (compute(alu=7), None)) == 10


def test_a_barrier_waits_for_what_was_written() -> None:
    assert clocks((Step("store shared"), 40), (Step("barrier"), None)) == 40 + BARRIER


@pytest.mark.parametrize(("stride", "size", "expected"), [(4, 4, 128), (8, 4, 256), (128, 4, 1024), (16, 16, 512)])
def test_bytes_from_l2_are_whole_sectors(stride: int, size: int, expected: int) -> None:
    lanes = np.arange(32)
    assert sectors(np.uint64(4096) + (lanes * stride).astype(np.uint64), size, lanes) == expected


@pytest.mark.parametrize(
    ("stride", "size", "expected"), [(4, 4, 1), (8, 4, 2), (128, 4, 32), (0, 4, 1), (16, 16, 4), (2, 2, 1), (8, 8, 2)]
)
def test_words_of_one_bank_wait_for_each_other(stride: int, size: int, expected: int) -> None:
    lanes = np.arange(32)
    assert wavefronts((1024 + lanes * stride).astype(np.uint32), size, lanes) == expected
