"""Resumable state of a training run: one safetensors file and one json file, written aside and renamed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rtm_kernels.errors import InputError
from rtm_kernels.model import Carry
from rtm_kernels.train.loop import Trainer


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    state = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    state |= {f"ema.{k}": v for k, v in trainer.ema.state_dict().items()}
    state["rng"] = torch.get_rng_state()
    for i, optimizer in enumerate(trainer.optimizers):
        for index, slots in optimizer.state_dict()["state"].items():
            state |= {f"optimizer{i}.{index}.{k}": torch.as_tensor(v) for k, v in slots.items()}
    if trainer.carry is not None:
        carry = trainer.carry
        state |= {f"carry.latent.{k}": v for k, v in carry.latents.items()}
        state |= {f"carry.data.{k}": v for k, v in carry.current_data.items()}
        state |= {"carry.steps": carry.steps, "carry.halted": carry.halted}
    return {k: v.detach().cpu().clone().contiguous() for k, v in state.items()}


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Write the whole state of `trainer` to `folder`, replacing an older one only when complete."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(_tensors(trainer), aside / "state.safetensors")
    scalars = {"step": trainer.step_count, "stream": trainer.stream.state()}
    (aside / "state.json").write_text(json.dumps(scalars), encoding="utf-8")
    for path in aside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Continue `trainer` from a state that `save_checkpoint` wrote, bit for bit.

    Errors: `InputError` when `folder` holds no complete state.
    """
    if not (folder / "state.json").is_file():
        raise InputError(f"checkpoint={str(folder)!r} is not allowed: a folder with state.json and state.safetensors")
    scalars = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "state.safetensors")

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    trainer.model.load_state_dict(part("model."))
    trainer.ema.load_state_dict(part("ema."))
    for i, optimizer in enumerate(trainer.optimizers):
        slots: dict[int, dict[str, Any]] = {}
        for key, value in part(f"optimizer{i}.").items():
            index, name = key.split(".", 1)
            slots.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    if "carry.steps" in tensors:
        trainer.carry = Carry(
            {k: v.to(trainer.device) for k, v in part("carry.latent.").items()},
            tensors["carry.steps"].to(trainer.device),
            tensors["carry.halted"].to(trainer.device),
            {k: v.to(trainer.device) for k, v in part("carry.data.").items()},
        )
    trainer.step_count = int(scalars["step"])
    trainer.stream.load_state(scalars["stream"])
    torch.set_rng_state(tensors["rng"])
