"""Two ranks over gloo train as one process does, stop together and resume bit for bit; FSDP2 shards their model."""

from __future__ import annotations

import dataclasses
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from rtm_kernels.train.checkpoint import load_checkpoint, save_checkpoint
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import Recipe
from rtm_kernels.train.session import open_recipe, run
from tests.train.support import MODEL, TINY, weights

CALM = dataclasses.replace(
    TINY,
    model=dataclasses.replace(MODEL, halt_exploration_prob=0.0, puzzle_emb_ndim=16, num_puzzle_identifiers=2),
    puzzle_lr=1e-3,
)
CUT = 4


def batch_and_head(recipe: Recipe) -> tuple[Trainer, dict[str, torch.Tensor]]:
    trainer = Trainer(recipe)
    return trainer, trainer.stream.batch(4, {"all": 1.0})


def gradients_when_sharded(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Gradients of one step of a model whose blocks and root are sharded by FSDP2, put together again."""
    trainer, batch = batch_and_head(recipe)
    mesh = init_device_mesh("cpu", (2,))
    for block in trainer.model.get_submodule("L_level").layers:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    fully_shard(trainer.model, mesh=mesh)
    _, loss, *_ = trainer.head((), carry=trainer.model.initial_carry(batch), batch=batch)
    loss.backward()
    named = trainer.model.named_parameters()
    return {name: p.grad.full_tensor() for name, p in named if p.grad is not None}  # type: ignore[attr-defined]


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
    sharded = gradients_when_sharded(CALM)
    folder_of_run = Path(folder) / "run"
    if rank == 0:
        open_recipe(CALM, folder_of_run, resume=False)
    dist.barrier()
    stops = []
    while not stops or stops[-1] < CALM.total_steps:  # a clock that only the second rank looks at stops both
        outcome = run(CALM, folder_of_run, device="cpu", resume=bool(stops), callbacks=[], minutes=0 if rank else None)
        stops.append(int(outcome.summary["steps"]))
    state = {
        "stops": stops,
        "sharded": sharded,
        "losses": losses,
        "again": again,
        "weights": weights(whole),
        "resumed": weights(resumed),
    }
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
    assert first["stops"] == second["stops"] == list(range(1, CALM.total_steps + 1))
    plain, batch = batch_and_head(CALM)
    _, loss, *_ = plain.head((), carry=plain.model.initial_carry(batch), batch=batch)
    loss.backward()
    gradients = {name: p.grad for name, p in plain.model.named_parameters() if p.grad is not None}
    assert gradients.keys() == first["sharded"].keys()
    for name, value in gradients.items():
        torch.testing.assert_close(first["sharded"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    single = Trainer(CALM)
    assert [single.step()["loss"] for _ in range(CALM.total_steps)] == pytest.approx(first["losses"], rel=1e-4)
    for name, value in weights(single).items():
        torch.testing.assert_close(value, first["weights"][name], rtol=1e-3, atol=1e-3, msg=name)
