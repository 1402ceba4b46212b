"""Resumable states of a training run: complete or absent, checked when read, bit-exact when resumed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rtm_kernels.errors import InputError
from rtm_kernels.files import new_folder, read_json, sha256, write_json
from rtm_kernels.train.gradients import pack, part, unpack
from rtm_kernels.train.steps import Steps

TENSORS, SCALARS, MANIFEST = "state.safetensors", "state.json", "manifest.json"
NAME = re.compile(r"step-(\d+)")


def save_checkpoint(trainer: Steps, root: Path, keep: int = 2) -> Path:
    """Write the whole state of `trainer` to `root/step-N`; keep the last `keep`, remove the others.

    A state is complete or absent whenever the process or the machine stops (`files.new_folder`); older states go only
    after that. With several ranks each has to call this; rank 0 writes.

    Errors: `OSError` when the disk is full; the states that were there stay.
    """
    local = _gather_local(trainer)
    folder = root / f"step-{trainer.step_count}"
    if trainer.rank == 0:
        clean(root)
    if trainer.rank == 0 and not _complete(folder):
        try:
            with new_folder(folder) as aside:
                save_file(_shared_tensors(trainer) | local, aside / TENSORS)
                names = ("skipped", "in_a_row", "world_size")
                scalars = {"step": trainer.step_count, **{name: getattr(trainer, name) for name in names}}
                scalars |= {"stream": trainer.position, "accumulate": trainer.recipe.accumulate}
                write_json(aside / SCALARS, scalars)
                digests = {name: sha256(aside / name) for name in (TENSORS, SCALARS)}
                write_json(aside / MANIFEST, {"sha256": digests})
        except SafetensorError as error:
            raise OSError(f"{folder}: the state cannot be written: {error}") from error
        for old in states(root)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    if trainer.world_size > 1:
        dist.barrier()
    trainer.last_good = str(folder)
    return folder


def load_checkpoint(trainer: Steps, root: Path) -> Path:
    """Continue `trainer` from the newest state in `root` whose files are whole, bit for bit; returns its folder.

    Errors: `InputError` when `root` holds no whole state, one of another recipe, or weights that are not finite.
    """
    folder = newest(root)
    scalars = read_json(folder / SCALARS)
    for name in ("world_size", "accumulate"):
        wanted = trainer.world_size if name == "world_size" else trainer.recipe.accumulate
        if scalars.get(name) != wanted:
            raise InputError(f"{folder}: it was saved with {name}={scalars.get(name)}; this run has {wanted}")
    tensors = load_file(folder / TENSORS)
    wrong = [k for k, v in tensors.items() if k.startswith(("model.", "average.")) and not v.isfinite().all()]
    if wrong:
        raise InputError(f"{folder}: {wrong[0]} holds values that are not finite")
    try:
        trainer.model.load_state_dict(part(tensors, "model."))
        trainer.average.load_state_dict(part(tensors, "average."))
    except RuntimeError as error:
        raise InputError(f"{folder}: the state does not fit the recipe: {str(error).splitlines()[-1]}") from None
    _load_optimizers(trainer, tensors)
    if trainer.captured_update is not None:
        trainer.captured_update.forget()
    own = part(tensors, f"rank{trainer.rank}.")
    places = {tuple(map(int, name.split(".")[1:3])) for name in own if name.startswith("carry.")}
    moved = {name: value.to(trainer.device) for name, value in own.items() if name.startswith("carry.")}
    trainer.carries = {(i, length): unpack(part(moved, f"carry.{i}.{length}.")) for i, length in sorted(places)}
    try:
        trainer.step_count, trainer.skipped, trainer.in_a_row = (
            int(scalars[n]) for n in ("step", "skipped", "in_a_row")
        )
        trainer.move_to(scalars["stream"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / SCALARS}: not the state of a run: {type(error).__name__}: {error}") from None
    trainer.last_good = str(folder)
    torch.set_rng_state(own["rng"])
    if "rng_cuda" in own:
        torch.cuda.set_rng_state(own["rng_cuda"], trainer.device)
    return folder


def newest(root: Path) -> Path:
    """The latest state in `root` whose files match its manifest. Errors: `InputError` without one."""
    found = states(root)
    for folder in reversed(found):
        if _complete(folder):
            return folder
    held = f"{len(found)} damaged ones" if found else "none"
    raise InputError(f"checkpoint={str(root)!r} is not allowed: a folder with a whole step-N state; it holds {held}")


def clean(root: Path) -> None:
    """Remove incomplete states that a killed run left behind."""
    for orphan in root.glob(".step-*"):
        shutil.rmtree(orphan, ignore_errors=True)


def states(root: Path) -> list[Path]:
    """Folders of states in `root`, complete or not, by step."""
    found = [(int(m[1]), path) for path in root.glob("step-*") if (m := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _complete(folder: Path) -> bool:
    try:
        digests = read_json(folder / MANIFEST)["sha256"]
        return all(sha256(folder / name) == digests[name] for name in (TENSORS, SCALARS))
    except (InputError, OSError, KeyError, TypeError):
        return False


def _shared_tensors(trainer: Steps) -> dict[str, Tensor]:
    """What is the same on every rank: weights, moving average, optimisers."""
    state = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    state |= {f"average.{k}": v for k, v in trainer.average.state_dict().items()}
    for i, optimizer in enumerate(trainer.optimizers):
        for index, slots in optimizer.state_dict()["state"].items():
            state |= {f"optimizer{i}.{index}.{k}": torch.as_tensor(v) for k, v in slots.items()}
    return _stored(state)


def _gather_local(trainer: Steps) -> dict[str, Tensor]:
    """The carries and random states of every rank, gathered on rank 0."""
    state = {"rng": torch.get_rng_state()}
    if trainer.device.type == "cuda":
        state["rng_cuda"] = torch.cuda.get_rng_state(trainer.device)
    for (i, length), carry in trainer.carries.items():
        state |= {f"carry.{i}.{length}.{k}": v for k, v in pack(carry).items()}
    own = _stored(state)
    ranks: list[Any] = [own]
    if trainer.world_size > 1:
        ranks = [None] * trainer.world_size
        dist.all_gather_object(ranks, own)
    return {f"rank{r}.{k}": v for r, part in enumerate(ranks) for k, v in part.items()}


def _stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().clone().contiguous() for k, v in state.items()}


def _load_optimizers(trainer: Steps, tensors: dict[str, Tensor]) -> None:
    for i, optimizer in enumerate(trainer.optimizers):
        slots: dict[int, dict[str, Any]] = {}
        for key, value in part(tensors, f"optimizer{i}.").items():
            index, name = key.split(".", 1)
            slots.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
