"""The training loop, its saved states and its ranks: resumed bit for bit, complete or absent, as one process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rtm_kernels.config import ModelConfig
from rtm_kernels.energy import EnergyCounter
from rtm_kernels.errors import InputError
from rtm_kernels.flops import act_step_flops, layer_flops
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.train import checkpoint
from rtm_kernels.train.checkpoint import load_checkpoint, newest, save_checkpoint
from rtm_kernels.train.loop import Trainer
from rtm_kernels.train.schedule import OPTIMIZERS
from rtm_kernels.train.schema import Recipe, Stage
from rtm_kernels.train.session import open_recipe, run
from rtm_kernels.train.telemetry import Speed, curves
from tests.train.support import MODEL, TINY, same, weights


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cut", [2, 3, 5])
def test_resuming_at_any_cut_gives_the_same_bits(optimizer: str, cut: int, symmetric: bool, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, optimizer=optimizer, accumulate=1 + (cut % 2), symmetric=symmetric)
    whole = Trainer(recipe)
    losses = []
    for step in range(recipe.total_steps):
        if step == cut:
            save_checkpoint(whole, tmp_path / "last")
        losses.append(whole.step()["loss"])
    resumed = Trainer(recipe)
    torch.manual_seed(1234)  # the checkpoint, not the process, decides the random numbers
    load_checkpoint(resumed, tmp_path / "last")
    assert resumed.step_count == cut
    assert [resumed.step()["loss"] for _ in range(cut, recipe.total_steps)] == losses[cut:]
    assert same(weights(whole), weights(resumed))


def test_a_run_starts_from_the_weights_of_a_saved_model(tmp_path: Path) -> None:
    first = Trainer(TINY)
    first.model.save_pretrained(tmp_path / "model")
    recipe = dataclasses.replace(TINY, init=str(tmp_path / "model"), seed=5)
    second = Trainer(recipe)
    assert same(first.model.state_dict(), second.model.state_dict())
    assert same(first.model.state_dict(), second.average.model.state_dict())
    second.step()
    wider = dataclasses.replace(recipe, model=dataclasses.replace(TINY.model, hidden_size=32))
    with pytest.raises(InputError, match=r"init=.*_init has shape \(16,\); the config asks for \(32,\)"):
        Trainer(wider)
    with pytest.raises(InputError, match="unknown model 'nowhere'"):
        Trainer(dataclasses.replace(TINY, init="nowhere"))


def test_depth_confidence_and_movement_are_plain_counts() -> None:
    trainer = Trainer(dataclasses.replace(TINY, stages=TINY.stages[1:]))
    for _ in range(3):
        trainer.step()
    (before,), model = trainer.carries.values(), trainer.model
    head = [p.detach().clone() for p in (model.q_head.weight, model.q_head.bias)]
    metrics = trainer.step()
    (after,) = trainer.carries.values()
    for depth in (1, 2, 3):
        assert metrics[f"depth_{depth}"] == int((after.halted & (after.steps == depth)).sum())
    y, fresh = after.latents["z_H"], model.initial_latents(6)["z_H"]
    moved = []
    for i in range(6):
        previous = fresh[i] if before.halted[i] else before.latents["z_H"][i]
        moved.append(((y[i] - previous).norm() / y[i].norm()).item())
    assert metrics["latent_delta"] == pytest.approx(sum(moved) / 6, rel=1e-5)
    q = y[:, 0] @ head[0][0] + head[1][0]
    assert metrics["halt_confidence"] == pytest.approx(torch.sigmoid(q).mean().item(), rel=1e-5)


def test_curves_are_means_over_all_examples() -> None:
    trainer = Trainer(TINY)
    arrays = {k: v.numpy() for k, v in trainer.stream.batch(7, {"all": 1.0}).items()}
    whole, parts = (curves(trainer.model, arrays, 3, batch_size=size) for size in (7, 2))
    assert whole.exact == parts.exact and len(whole.exact) == 3
    assert whole.halt == pytest.approx(parts.halt) and whole.change == pytest.approx(parts.change)
    settle = RecursiveReasoner(dataclasses.replace(MODEL, halting="settle"))
    assert curves(settle, arrays, 2).halt == []


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_flops_are_those_that_torch_counts(mixer: str) -> None:
    config = ModelConfig(vocab_size=5, seq_len=12, hidden_size=32, num_heads=2, mixer=mixer, layers={"L_level": 2})
    model = RecursiveReasoner(config, impl="reference")
    x = torch.randn(1, config.latent_len, 32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.get_submodule("L_level")(x)
    assert counter.get_total_flops() == 2 * layer_flops(config)
    assert act_step_flops(config) == 2 * len(config.program) * layer_flops(config)
    with_grad = sum(step.grad for step in config.program.steps)
    assert act_step_flops(config, train=True) - act_step_flops(config) == 2 * 2 * with_grad * layer_flops(config)


def test_joules_are_logged_where_a_counter_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter(range(10))
    counter = EnergyCounter("a fake", [(lambda: next(used) / 2, 0)])
    monkeypatch.setattr("rtm_kernels.train.telemetry.energy_counter", lambda kind, index: counter)
    trainer, speed = Trainer(TINY), Speed()
    speed.start(trainer)
    for _ in range(3):
        trainer.step_seconds, trainer.step_count = 0.5, trainer.step_count + 1
        speed.log(trainer, metrics := {})
        assert metrics["joules"] == 0.5 and metrics["samples_per_second"] == TINY.stages[0].batch_size / 0.5
    assert speed.totals["joules"] == 1.5


@pytest.fixture
def trainer() -> Trainer:
    made = Trainer(TINY)
    made.step()
    return made


def child(work) -> int:
    """Run `work` in a forked process; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def loads_a_whole_state(root: Path, written: dict[int, dict], fresh: Trainer | None = None) -> int:
    fresh = fresh or Trainer(TINY)
    load_checkpoint(fresh, root)
    assert same(weights(fresh), written[fresh.step_count])
    return fresh.step_count


WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "tempfile.mkdtemp")
"""Audit events of what changes the disk, or opens a file to do so; Python raises them before it acts."""


def test_killed_before_every_write_the_old_or_the_new_state_is_left(trainer: Trainer, tmp_path: Path) -> None:
    written = {1: weights(trainer)}
    save_checkpoint(trainer, tmp_path / "first")
    trainer.step()
    written[2] = weights(trainer)

    def save_until_killed(root: Path, call: int) -> None:
        left = [call]

        def hook(event: str, arguments: tuple) -> None:
            if event in WRITES and str(arguments[0]).startswith(str(root)):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        save_checkpoint(trainer, root, keep=1)

    found, reader = [], Trainer(TINY)
    for call in range(1, 100):
        root = tmp_path / f"run{call}"
        shutil.copytree(tmp_path / "first", root)
        _, status = os.waitpid(child(lambda root=root, call=call: save_until_killed(root, call)), 0)
        found.append(loads_a_whole_state(root, written, reader))
        save_checkpoint(trainer, root)
        assert not list(root.glob(".step-*")) and loads_a_whole_state(root, written, reader) == 2
        if not os.WIFSIGNALED(status):
            break
    assert len(found) > 12 and found == sorted(found) and set(found) == {1, 2} and found[-1] == 2


def test_the_last_states_are_kept(trainer: Trainer, tmp_path: Path) -> None:
    for _ in range(4):
        trainer.step_count += 1
        save_checkpoint(trainer, tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-4", "step-5"]
    assert trainer.last_good == str(tmp_path / "step-5")


def test_a_damaged_state_is_passed_over_for_an_older_whole_one(trainer: Trainer, tmp_path: Path) -> None:
    save_checkpoint(trainer, tmp_path)
    trainer.step()
    folder = save_checkpoint(trainer, tmp_path)
    rng = random.Random(0)
    for name in (checkpoint.TENSORS, checkpoint.SCALARS, checkpoint.MANIFEST):
        content = (folder / name).read_bytes()
        damaged = [content[:cut] for cut in (0, 1, len(content) // 2, len(content) - 1)]
        for position in (0, len(content) - 1, *rng.sample(range(len(content)), 20)):
            damaged.append(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        for wrong in damaged:
            (folder / name).write_bytes(wrong)
            assert newest(tmp_path).name == "step-1", (name, wrong[:40])
        (folder / name).write_bytes(content)
        assert newest(tmp_path) == folder


def test_states_that_do_not_fit_are_refused_by_name(trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds none"):
        load_checkpoint(trainer, tmp_path)
    folder = save_checkpoint(trainer, tmp_path)
    wider = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, hidden_size=32))
    with pytest.raises(InputError, match="does not fit"):
        load_checkpoint(Trainer(wider), tmp_path)
    with pytest.raises(InputError, match="accumulate=1; this run has 2"):
        load_checkpoint(Trainer(dataclasses.replace(TINY, accumulate=2)), tmp_path)
    (folder / checkpoint.MANIFEST).write_text(json.dumps({}))
    with pytest.raises(InputError, match="1 damaged"):
        load_checkpoint(trainer, tmp_path)


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


def rank_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
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
    mp.spawn(rank_of_two, args=(str(tmp_path),), nprocs=2)
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
