"""The schedule between two ACT steps as kernels: one program decides, then every tensor is changed tile by tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rtm_kernels.ops.launch import ANY, LaunchRow, launch, select
from rtm_kernels.recursion.queue.schedule import Moved, Schedule

TABLE = (
    LaunchRow("queue.plan", "portable", 0, ANY, {"BLOCK": 256}, 4, 1),
    LaunchRow("queue.move", "portable", 0, ANY, {"BLOCK": 1024}, 4, 1),
    LaunchRow("queue.plan", "interpreter", 0, ANY, {"BLOCK": 4}),
    LaunchRow("queue.move", "interpreter", 0, ANY, {"BLOCK": 512}),
)
"""Both kernels are bound by latency, and the size of a shape class is not used."""


@triton.jit
def append(pairs_ptr, first, second, chosen, count, CAPACITY: tl.constexpr):
    """Store (first, second) of the chosen elements behind the `count` pairs of a list; returns its new length."""
    place = count + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(pairs_ptr + place, first, mask=chosen)
    tl.store(pairs_ptr + CAPACITY + place, second, mask=chosen)
    return count + tl.sum(chosen.to(tl.int32), 0)


@triton.jit(do_not_specialize=["B"])
def plan_kernel(owner_ptr, line_ptr, pairs_ptr, counts_ptr, floor_ptr, more_ptr, scratch_ptr, alive_ptr,
                B, CAPACITY: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`schedule.plan` in one program; scratch [B] int32."""
    following = tl.load(line_ptr)
    left = tl.load(line_ptr + 1) - following
    finished = tl.load(counts_ptr + 4)
    entered = following * 0
    occupied = following * 0
    n_leave = following * 0
    n_move = following * 0
    n_fresh = following * 0
    for b in range(0, B, BLOCK):
        slot = b + tl.arange(0, BLOCK)
        mask = slot < B
        owner = tl.load(owner_ptr + slot, mask=mask, other=-1)
        keeps = (owner >= 0) & (tl.load(alive_ptr + slot, mask=mask, other=0) != 0)
        leaves = (owner >= 0) & (keeps == 0)
        free = mask & (keeps == 0)
        rank = entered + tl.cumsum(free.to(tl.int32), 0) - 1
        enters = free & (rank < left)
        sample = tl.load(line_ptr + 2 + following + rank, mask=enters, other=0)
        sample = tl.where(enters, sample, owner)
        stays = keeps | enters
        place = occupied + tl.cumsum(stays.to(tl.int32), 0) - 1
        row = finished + n_leave + tl.cumsum(leaves.to(tl.int32), 0) - 1
        n_leave = append(pairs_ptr, slot, row, leaves, n_leave, CAPACITY)
        n_move = append(pairs_ptr + 2 * CAPACITY, slot, place, keeps & (place != slot), n_move, CAPACITY)
        n_fresh = append(pairs_ptr + 4 * CAPACITY, sample, place, enters, n_fresh, CAPACITY)
        tl.store(scratch_ptr + place, sample, mask=stays)
        entered += tl.sum(free.to(tl.int32), 0)
        occupied += tl.sum(stays.to(tl.int32), 0)
    tl.debug_barrier()  # the samples just stored are read by other threads
    for b in range(0, B, BLOCK):
        slot = b + tl.arange(0, BLOCK)
        sample = tl.load(scratch_ptr + slot, mask=slot < occupied, other=-1)
        tl.store(owner_ptr + slot, sample, mask=slot < B)
    tl.store(counts_ptr, n_leave)
    tl.store(counts_ptr + 1, n_move)
    tl.store(counts_ptr + 2, n_fresh)
    tl.store(counts_ptr + 3, occupied)
    tl.store(counts_ptr + 4, finished + n_leave)
    tl.store(counts_ptr + 5, left - n_fresh)
    tl.store(more_ptr, (occupied > tl.load(floor_ptr)).to(tl.uint8))
    tl.store(line_ptr, following + n_fresh)


@triton.jit
def move_kernel(rows_ptr, fresh_ptr, result_ptr, pairs_ptr, counts_ptr, SIZE, fresh_stride,
                HAS_RESULT: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`schedule.carry_out` for one tile of SIZE elements of every row; a thread meets the same elements of each row."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < SIZE
    if HAS_RESULT:
        k = 0
        while k < tl.load(counts_ptr):
            slot = tl.load(pairs_ptr + k).to(tl.int64)
            place = tl.load(pairs_ptr + CAPACITY + k).to(tl.int64)
            row = tl.load(rows_ptr + slot * SIZE + offs, mask=mask, other=0)
            tl.store(result_ptr + place * SIZE + offs, row, mask=mask)
            k += 1
    k = 0
    while k < tl.load(counts_ptr + 1):  # `to` ascends and is below `from`: nothing is overwritten before it has moved
        origin = tl.load(pairs_ptr + 2 * CAPACITY + k).to(tl.int64)
        place = tl.load(pairs_ptr + 3 * CAPACITY + k).to(tl.int64)
        row = tl.load(rows_ptr + origin * SIZE + offs, mask=mask, other=0)
        tl.store(rows_ptr + place * SIZE + offs, row, mask=mask)
        k += 1
    k = 0
    while k < tl.load(counts_ptr + 2):
        sample = tl.load(pairs_ptr + 4 * CAPACITY + k).to(tl.int64)
        place = tl.load(pairs_ptr + 5 * CAPACITY + k).to(tl.int64)
        row = tl.load(fresh_ptr + sample * fresh_stride + offs, mask=mask, other=0)
        tl.store(rows_ptr + place * SIZE + offs, row, mask=mask)
        k += 1


def plan(schedule: Schedule, alive: Tensor) -> None:
    """`schedule.plan` in one launch; alive [B] bool."""
    s, row = schedule, select(TABLE, "queue.plan", torch.float32, 1)
    launch(
        plan_kernel, row, (1,),
        s.owner, s.line, s.pairs, s.counts, s.floor, s.more.view(torch.uint8), torch.empty_like(s.owner),
        alive.view(torch.uint8), len(alive), CAPACITY=len(s.owner),
    )  # fmt: skip


def carry_out(schedule: Schedule, moved: Sequence[Moved]) -> None:
    """`schedule.carry_out` in one launch per tensor; all are contiguous."""
    row = select(TABLE, "queue.move", torch.float32, 1)
    for each in moved:
        rows, fresh, result = (
            t if t is None or t.dtype != torch.bool else t.view(torch.uint8)
            for t in (each.rows, each.fresh, each.result)
        )
        assert rows is not None and fresh is not None
        size = rows[0].numel()
        launch(
            move_kernel, row, (triton.cdiv(size, row.blocks["BLOCK"]),),
            rows, fresh, rows if result is None else result, schedule.pairs, schedule.counts,
            size, size if len(fresh) > 1 else 0, HAS_RESULT=result is not None, CAPACITY=len(schedule.owner),
        )  # fmt: skip
