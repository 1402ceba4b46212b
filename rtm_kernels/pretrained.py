"""Saved models: a folder with `model.safetensors`, `config.json` and the sha256 of both in `manifest.json`.

Nothing of a folder is trusted: the config is validated, the names, shapes and dtypes of the weights are compared
with what that config asks for before anything is allocated, and no format that can hold code is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.files import new_folder

WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
MODELS = Path(__file__).parent / "assets" / "models"
"""Folder of the bundled models."""

MAX_HEADER = 1 << 20
MAX_TENSORS = 1024
MAX_JSON = 1 << 16
DTYPES = ("F32", "BF16", "F16")
"""Dtypes of weights by their safetensors name; F64 is allowed only where the model itself keeps float64."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def known_models() -> tuple[str, ...]:
    """Names of the bundled models, sorted."""
    return tuple(sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}")))


def save(
    config: ModelConfig, tensors: Mapping[str, Tensor], folder: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write `config` and the named `tensors` to `folder` and return its path; it appears complete or not at all.

    Errors: `InputError` when the folder exists and is not empty (without `overwrite`), is a file, or when a
    tensor is not finite.
    """
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
    name_or_path: str | os.PathLike[str], specs: Callable[[ModelConfig], Mapping[str, Tensor]],
    revision: str | None = None,
) -> tuple[ModelConfig, dict[str, Tensor]]:  # fmt: skip
    """The config and the tensors on the CPU of the saved model of that name.

    `name_or_path`: a bundled name (`known_models()`), a folder, or a hub id `owner/name` (fetched through
    huggingface_hub at `revision`). A bundled name wins over a folder of that name; write `./name` for the folder.
    `specs` gives the tensors that a config asks for, as meta tensors.

    Errors: `InputError` for an unknown name (listing the known ones), and for a folder whose files are missing,
    truncated, altered since they were saved, or do not fit its config; `BackendUnavailable` for a hub id when
    huggingface_hub is not installed.
    """
    folder = _resolve(name_or_path, revision)
    manifest = _read_json(folder / MANIFEST)
    digests = manifest.get("sha256")
    if not isinstance(digests, dict):
        raise InputError(f"{folder / MANIFEST}: no sha256 table in it")
    config = ModelConfig.from_dict(_read_json(folder / CONFIG, digests))
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


def _read(path: Path, limit: int, digests: Mapping[str, Any] | None) -> bytes:
    """The bytes of a file of at most `limit` bytes, equal in sha256 to its entry in the manifest."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"{path}: {size} bytes, more than the {limit} allowed")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if digests is not None and hashlib.sha256(content).hexdigest() != digests.get(path.name):
        raise InputError(f"{path}: sha256 differs from {MANIFEST}; the file was altered or damaged")
    return content


def _read_json(path: Path, digests: Mapping[str, Any] | None = None) -> dict[str, Any]:
    content = _read(path, MAX_JSON, digests)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
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
        state: dict[str, Tensor] = safetensors.load(_read(path, size, digests))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file ({error})") from error
    _check_finite(state, str(path))
    return state


def _check_header(path: Path, header: Any, specs: Mapping[str, Tensor]) -> None:
    """Refuse other names, shapes or dtypes than those of `specs`."""
    declared = set(header.keys())
    if len(declared) > MAX_TENSORS:
        raise InputError(f"{path}: {len(declared)} tensors, more than the {MAX_TENSORS} allowed")
    for problem, names in (("lacks", set(specs) - declared), ("has unexpected", declared - set(specs))):
        if names:
            raise InputError(f"{path}: {problem} {', '.join(f'{name!r:.80}' for name in sorted(names)[:8])}")
    for name, spec in specs.items():
        stored = header.get_slice(name)
        shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
        if shape != tuple(spec.shape):
            raise InputError(f"{path}: {name} has shape {shape!r:.60}; the config asks for {tuple(spec.shape)}")
        if dtype not in DTYPES and not (dtype == "F64" and spec.dtype == torch.float64):
            raise InputError(f"{path}: {name} has dtype {dtype}; expected one of {', '.join(DTYPES)}")


def _check_finite(state: Mapping[str, Tensor], where: str) -> None:
    for name, value in state.items():
        if not value.isfinite().all():
            raise InputError(f"{where}: {name} holds values that are not finite")
