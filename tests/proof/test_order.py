"""The order in which a grid's programs run never matters: no program reads or overwrites what another one writes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.cases import name_of, small_cases
from tests.cases.case import Case, run
from tests.proof.launching import Launch, bits, every_launch
from tests.proof.tiles import tiles

pytestmark = pytest.mark.proof("order")

ORDERS = 8


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies with the strides of the originals; tensors that share memory share it again."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors.values()}
    copied = {address: storage.clone() for address, storage in storages.items()}
    return {
        name: t.new_empty(0).set_(copied[t.untyped_storage().data_ptr()], t.storage_offset(), t.shape, t.stride())
        for name, t in tensors.items()
    }


def outcome(launch: Launch, programs: list[tuple[int, int, int]]) -> list[bytes]:
    """The bits of every tensor of a launch after its programs ran in this order, from the same start."""
    mine = copies(launch.tensors)
    launch.given(mine).run(programs)
    return [bits(t) for t in mine.values()]


def disagreement(launch: Launch) -> str | None:
    """How the order of the programs changes the result of a launch, or None."""
    rng, programs = random.Random(0), list(launch.programs())
    orders = [programs[::-1], *(rng.sample(programs, len(programs)) for _ in range(ORDERS - 2))]
    wanted = outcome(launch, programs)
    if len(programs) > 1 and any(outcome(launch, order) != wanted for order in orders):
        return f"{launch.kernel}: the order of {len(programs)} programs matters"
    return None


@pytest.mark.parametrize("case", small_cases(), ids=name_of)
def test_every_order_gives_the_same_bits(case: Case, cells: Callable[[int], None]) -> None:
    compared, failures = [], []

    def in_every_order(launch: Launch) -> None:
        if launch.kernel != "adam_atan2_kernel":  # reads addresses from a table: see below
            failures.append(disagreement(launch))
        compared.append(launch.grid)
        launch.run()

    with tiles(32), every_launch(in_every_order):
        run(case, "triton", case.make(torch.Generator().manual_seed(5)))
    assert not [failure for failure in failures if failure]
    cells(len(compared) * ORDERS)


def test_every_order_of_the_optimiser_gives_the_same_bits(cells: Callable[[int], None]) -> None:
    case = next(case for case in small_cases() if case.op == "adam_atan2")
    results = []
    for seed in range(ORDERS):

        def shuffled(launch: Launch, seed: int = seed) -> None:
            programs = list(launch.programs())
            assert len(programs) > 8
            launch.run(random.Random(seed).sample(programs, len(programs)))

        with every_launch(shuffled):
            outputs, _ = run(case, "triton", case.make(torch.Generator().manual_seed(5)))
        results.append([bits(t) for t in outputs])
    assert all(result == results[0] for result in results)
    cells(ORDERS)


@triton.jit
def last_one_wins_kernel(out_ptr):
    tl.store(out_ptr, tl.program_id(0))


@triton.jit
def reads_its_neighbour_kernel(out_ptr, n):
    pid = tl.program_id(0)
    tl.store(out_ptr + pid, tl.load(out_ptr + (pid + 1) % n) + 1)


@triton.jit
def adds_up_kernel(out_ptr, x_ptr):
    tl.atomic_add(out_ptr, tl.load(x_ptr + tl.program_id(0)))


@pytest.mark.parametrize("kernel", [last_one_wins_kernel, reads_its_neighbour_kernel, adds_up_kernel])
def test_a_planted_race_is_found(kernel: triton.JITFunction) -> None:
    found = []
    out, x = torch.zeros(16), torch.randn(16, generator=torch.Generator().manual_seed(0)).exp()
    arguments = {"n": (out, 16), "x_ptr": (out, x)}.get(kernel.arg_names[-1], (out,))
    with every_launch(lambda launch: found.append(disagreement(launch))):
        kernel[(16,)](*arguments)
    assert found == [f"{kernel.fn.__name__}: the order of 16 programs matters"]
