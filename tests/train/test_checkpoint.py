"""Saved states: complete or absent whatever stops the process, checked when read, pruned to the last and the best."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

from rtm_kernels.errors import InputError
from rtm_kernels.train import checkpoint
from rtm_kernels.train.checkpoint import load_checkpoint, newest, save_checkpoint
from rtm_kernels.train.loop import Trainer
from tests.train.support import TINY, same, weights


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


def test_the_last_ones_and_the_best_one_are_kept(trainer: Trainer, tmp_path: Path) -> None:
    for score in (0.1, 0.9, 0.3, 0.4, 0.5):
        trainer.step_count, trainer.score = trainer.step_count + 1, score
        save_checkpoint(trainer, tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-5", "step-6"]
    assert trainer.last_good == str(tmp_path / "step-6")


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
