"""Saved models: a folder with `model.safetensors`, `config.json` and the sha256 of both in `manifest.json`.

Nothing of a folder is trusted: names, shapes and dtypes are compared with the validated config before anything is
allocated, and no format that can hold code is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.files import new_folder, read_parsed

WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
KINDS = {WEIGHTS: "a safetensors file", CONFIG: "JSON", MANIFEST: "JSON"}
MODELS = Path(__file__).parent / "assets" / "models"
"""Folder of the bundled models."""

MAX_HEADER = 1 << 20
MAX_TENSORS = 1024
MAX_JSON = 1 << 16
DTYPES = ("F32", "BF16", "F16")
"""Dtypes of weights by their safetensors name; F64 is allowed only where the model itself keeps float64."""

AnyConfig = TypeVar("AnyConfig")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def known_models() -> tuple[str, ...]:
    """Names of the bundled models, sorted."""
    return tuple(sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}")))


def save(
    config: Any, tensors: Mapping[str, Tensor], folder: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a config (`to_json`) and the named `tensors` to `folder`, as `RecursiveReasoner.save_pretrained` says."""
    target = Path(folder).absolute()
    if target.exists() and not target.is_dir():
        raise InputError(f"cannot save to {os.fspath(folder)!r}: it is a file")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise InputError(f"cannot save to {os.fspath(folder)!r}: it is not empty (overwrite=True replaces it)")
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if len(state) > MAX_TENSORS:
        raise InputError(f"cannot save {len(state)} tensors: more than the {MAX_TENSORS} allowed in one file")
    _check_finite(state, "the model")
    files = {WEIGHTS: safetensors.save(state), CONFIG: config.to_json().encode()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[MANIFEST] = (json.dumps({"sha256": digests}, indent=2, sort_keys=True) + "\n").encode()
    with new_folder(target) as fresh:
        for name, content in files.items():
            (fresh / name).write_bytes(content)
    return target


def load(
    name_or_path: str | os.PathLike[str], specs: Callable[[AnyConfig], Mapping[str, Tensor]],
    read: Callable[[Mapping[str, Any]], AnyConfig], revision: str | None = None,
) -> tuple[AnyConfig, dict[str, Tensor]]:  # fmt: skip
    """The config and the tensors on the CPU of a saved model, named as in `RecursiveReasoner.from_pretrained`.

    `read` checks a config, and `specs` gives the tensors that it asks for, as meta tensors.
    """
    folder = _resolve(name_or_path, revision)
    manifest = _read_json(folder / MANIFEST)
    digests = manifest.get("sha256")
    if not isinstance(digests, dict):
        raise InputError(f"{folder / MANIFEST}: no sha256 table in it")
    config = read(_read_json(folder / CONFIG, digests))
    return config, _read_weights(folder / WEIGHTS, specs(config), digests)


def _resolve(name_or_path: str | os.PathLike[str], revision: str | None) -> Path:
    name = os.fspath(name_or_path)
    if name in known_models():
        return MODELS / name
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name_or_path, str) and HUB_ID.fullmatch(name):
        return _download(name, revision)
    known = ", ".join(known_models()) or "none"
    raise InputError(f"unknown model {name!r}; bundled: {known}; or give an existing folder or a hub id owner/name")


def _download(hub_id: str, revision: str | None) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise BackendUnavailable(
            f"{hub_id!r} is no folder here, and fetching it from the hub needs the package huggingface_hub"
        )
    import huggingface_hub

    try:
        path = huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=[WEIGHTS, CONFIG, MANIFEST])
    except Exception as error:
        raise InputError(f"hub model {hub_id!r} cannot be fetched: {error}".splitlines()[0]) from error
    return Path(path)


def _verified(path: Path, limit: int, digests: Mapping[str, Any] | None, parse: Callable[[bytes], Any]) -> Any:
    """What `parse` makes of a file of at most `limit` bytes, equal in sha256 to its entry in the manifest."""

    def checked(content: bytes) -> Any:
        if digests is not None and hashlib.sha256(content).hexdigest() != digests.get(path.name):
            raise InputError(f"{path}: sha256 differs from {MANIFEST}; the file was altered or damaged")
        return parse(content)

    return read_parsed(path, limit, checked, KINDS[path.name], SafetensorError)


def _read_json(path: Path, digests: Mapping[str, Any] | None = None) -> dict[str, Any]:
    values = _verified(path, MAX_JSON, digests, json.loads)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object")
    return values


def _read_weights(path: Path, specs: Mapping[str, Tensor], digests: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights, compared with `specs` by the header alone before the rest is read."""
    try:
        with path.open("rb") as file:
            size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise InputError(f"{path}: its header of {length} bytes is not at most {MAX_HEADER}")
        with safe_open(path, "pt") as header:
            _check_header(path, header, specs)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file ({error})") from error
    state: dict[str, Tensor] = _verified(path, size, digests, safetensors.load)
    _check_finite(state, str(path))
    return state


def _check_header(path: Path, header: Any, specs: Mapping[str, Tensor]) -> None:
    """Refuse other names, shapes or dtypes than those of `specs`."""
    declared = list(header.keys())
    if len(declared) > MAX_TENSORS:
        raise InputError(f"{path}: {len(declared)} tensors, more than the {MAX_TENSORS} allowed")
    stored = {name: header.get_slice(name) for name in declared}
    check_fits(str(path), {name: tuple(slice_.get_shape()) for name, slice_ in stored.items()}, specs)
    for name, spec in specs.items():
        dtype = stored[name].get_dtype()
        if dtype not in DTYPES and not (dtype == "F64" and spec.dtype == torch.float64):
            raise InputError(f"{path}: {name} has dtype {dtype}; expected one of {', '.join(DTYPES)}")


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def check_fits(where: str, found: Mapping[str, tuple[int, ...]], specs: Mapping[str, Tensor]) -> None:
    """Refuse tensors of the shapes `found` that differ from `specs` in names or shapes (`InputError`)."""
    wanted, problems = shapes(specs), []
    for problem, names in (("missing", wanted.keys() - found), ("unexpected", found.keys() - wanted.keys())):
        problems += [f"{problem} {', '.join(f'{name!r:.80}' for name in sorted(names)[:8])}"] if names else []
    wrong = [name for name in wanted if name in found and found[name] != wanted[name]]
    for name in wrong[:1]:
        problems.append(f"{name} has shape {found[name]!r:.60}; the config asks for {wanted[name]}")
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}")


def _check_finite(state: Mapping[str, Tensor], where: str) -> None:
    for name, value in state.items():
        if not value.isfinite().all():
            raise InputError(f"{where}: {name} holds values that are not finite")
