"""Two ranks over gloo train as one process does, stop together and resume bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rtm_kernels.train.checkpoint import load_checkpoint, save_checkpoint
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schema import Recipe, Stage
from rtm_kernels.train.session import open_recipe, run
from tests.train.support import MODEL, TINY, weights

RECIPE = dataclasses.replace(
    TINY,
    model=dataclasses.replace(MODEL, halt_exploration_prob=0.5, puzzle_emb_ndim=16, num_puzzle_identifiers=2),
    stages=(
        Stage(steps=4, batch_size=8, mix={"all": 1.0}, halt_max_steps=3),
        Stage(steps=18, batch_size=8, mix={"all": 1.0}, halt_max_steps=5, lr=(0.5, 0.1)),
    ),
    puzzle_lr=1e-3,
)
"""Draws matter: with a head that wants to halt at once, exploration alone decides how long a sample goes on."""
SHORT = dataclasses.replace(RECIPE, stages=(dataclasses.replace(RECIPE.stages[0], steps=3),))
CUTS, AFTER = (1, 4, 5, 13), 2
"""Steps before which a state is saved, and how many steps are taken again from each."""


def eager(recipe: Recipe) -> Trainer:
    """A trainer whose head says halt."""
    trainer = Trainer(recipe)
    torch.nn.init.constant_(trainer.model.q_head.bias, 1.0)
    return trainer


def history(trainer: Trainer, steps: int) -> list[tuple[dict[str, float], str]]:
    """What each of the next steps tells, and a digest of the weights after it."""
    return [(trainer.step(), digest(trainer)) for _ in range(steps)]


def digest(trainer: Trainer) -> str:
    found = hashlib.sha256()
    for value in weights(trainer).values():
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def rank_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    parts = eager(dataclasses.replace(RECIPE, accumulate=2))
    found: dict[str, list] = {"whole": [], "parts": history(parts, 8)}
    whole = eager(RECIPE)
    for step in range(RECIPE.total_steps):
        if step in CUTS:
            save_checkpoint(whole, Path(folder) / f"states{step}")
        found["whole"] += history(whole, 1)
    again = {}
    for cut in CUTS:
        resumed = Trainer(RECIPE)
        torch.manual_seed(99 + rank)
        load_checkpoint(resumed, Path(folder) / f"states{cut}")
        again[cut] = history(resumed, AFTER)
    folder_of_run = Path(folder) / "run"
    if rank == 0:
        open_recipe(SHORT, folder_of_run, resume=False)
    dist.barrier()
    stops = []
    while not stops or stops[-1] < SHORT.total_steps:  # a clock that only the second rank looks at stops both
        outcome = run(SHORT, folder_of_run, device="cpu", resume=bool(stops), callbacks=[], minutes=0 if rank else None)
        stops.append(int(outcome.summary["steps"]))
    state = {"stops": stops, "found": found, "again": again, "weights": weights(parts)}
    torch.save(state, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32" or not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
def test_two_ranks_train_as_one_and_resume_bit_for_bit(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_of_two, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first["found"] == second["found"]
    for cut in CUTS:
        assert first["again"][cut] == second["again"][cut] == first["found"]["whole"][cut : cut + AFTER], cut
    assert first["stops"] == second["stops"] == list(range(1, SHORT.total_steps + 1))
    for name, recipe in (("whole", RECIPE), ("parts", dataclasses.replace(RECIPE, accumulate=2))):
        single, ranked = eager(recipe), [told for told, _ in first["found"][name]]
        expected = [told for told, _ in history(single, len(ranked))]
        depths = [key for key in expected[-1] if key.startswith("depth_")]
        assert sum(any(told[key] for told in expected) for key in depths) >= 3, "exploration spreads the depths"
        for key in (*depths, "steps"):
            assert [told[key] for told in expected[:8]] == [told[key] for told in ranked[:8]], key
        for key in ("loss", "lm_loss", "q_halt_loss", "halt_confidence", "latent_delta"):
            curve, own = ([told[key] for told in run] for run in (expected, ranked))
            assert curve[:8] == pytest.approx(own[:8], rel=1e-4), key
        if name == "parts":
            for key, value in weights(single).items():
                torch.testing.assert_close(value, first["weights"][key], rtol=1e-3, atol=1e-3, msg=key)
