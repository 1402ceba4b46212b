"""Solving on all ranks of torchrun: each solves its share of the puzzles, and all get every result."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import torch.distributed as dist

from rtm_kernels.engine.samples import Finished, Observer, Sample, Step
from rtm_kernels.engine.solver import Solver
from rtm_kernels.errors import InputError

ROUND = 4096
"""Puzzles after which the ranks exchange results."""


def rank_and_world(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """This process's rank and the number of ranks, as torchrun says; (0, 1) outside of it.

    Errors: `InputError` for variables that are not what torchrun sets.
    """
    try:
        rank, world = int(environ.get("RANK", 0)), int(environ.get("WORLD_SIZE", 1))
    except ValueError:
        raise InputError("RANK and WORLD_SIZE are not integers; start with torchrun") from None
    if not 0 <= rank < world:
        raise InputError(f"RANK={rank} is not allowed: from 0 to WORLD_SIZE={world} - 1")
    return rank, world


def join() -> None:
    """Join the other ranks (gloo; results are exchanged between processors whatever computes them)."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")


def leave() -> None:
    """Wait for the other ranks, then leave the group."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


class RankedSolver(Solver):
    """A solver whose `run` shares the samples among the ranks; every rank gets all results, in the order of the
    samples, so that what is computed from them is the same everywhere, and the same as in one process.

    Make one on each rank, with the same arguments and samples, after `join`. Results come in rounds of 4,096 samples.
    """

    def run(self, samples: Iterable[Sample], observer: Observer | None = None) -> Iterator[Finished]:
        """See `Solver.run`; steps are observed when their round has ended, sample by sample."""
        rank, world = dist.get_rank(), dist.get_world_size()
        source = iter(samples)
        while block := list(islice(source, ROUND)):
            steps: dict[object, list[Step]] = {}

            def note(step: Step, steps: dict[object, list[Step]] = steps) -> None:
                key = step.key[0] if self.rollouts.count > 1 else step.key
                steps.setdefault(key, []).append(step)

            done = list(super().run(block[rank::world], None if observer is None else note))
            shares: list[tuple[list[Finished], dict[object, list[Step]]]] = [([], {})] * world
            dist.all_gather_object(shares, (done, steps))
            finished = {d.key: d for found, _ in shares for d in found}
            taken = {key: found for _, share in shares for key, found in share.items()}
            for sample in block:
                if observer is not None:
                    for step in taken.get(sample.key, []):
                        observer(step)
                yield finished[sample.key]
