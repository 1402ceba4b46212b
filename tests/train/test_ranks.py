"""Two ranks over gloo train as one process does, and resume bit for bit."""

from __future__ import annotations

import dataclasses
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rtm_kernels.train.checkpoint import load_checkpoint, save_checkpoint
from rtm_kernels.train.loop import Trainer
from tests.train.support import MODEL, TINY, weights

CALM = dataclasses.replace(
    TINY,
    model=dataclasses.replace(MODEL, halt_exploration_prob=0.0, puzzle_emb_ndim=16, num_puzzle_identifiers=2),
    puzzle_lr=1e-3,
)
CUT = 4


def rank_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    whole, losses = Trainer(CALM), []
    for step in range(CALM.total_steps):
        if step == CUT:
            save_checkpoint(whole, Path(folder) / "states")
        losses.append(whole.step()["loss"])
    resumed = Trainer(CALM)
    torch.manual_seed(99 + rank)
    load_checkpoint(resumed, Path(folder) / "states")
    again = [resumed.step()["loss"] for _ in range(CUT, CALM.total_steps)]
    state = {"losses": losses, "again": again, "weights": weights(whole), "resumed": weights(resumed)}
    torch.save(state, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32" or not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
def test_two_ranks_train_as_one_and_resume_bit_for_bit(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_of_two, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first["losses"] == second["losses"] and first["again"] == second["again"] == first["losses"][CUT:]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]) and torch.equal(value, first["resumed"][name]), name
    single = Trainer(CALM)
    assert [single.step()["loss"] for _ in range(CALM.total_steps)] == pytest.approx(first["losses"], rel=1e-4)
    for name, value in weights(single).items():
        torch.testing.assert_close(value, first["weights"][name], rtol=1e-3, atol=1e-3, msg=name)
