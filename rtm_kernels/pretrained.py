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
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.model import RecursiveReasoner

WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
MODELS = Path(__file__).parent / "assets" / "models"
"""Folder of the bundled models."""

MAX_HEADER = 1 << 20
MAX_TENSORS = 1024
MAX_JSON = 1 << 16
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
"""Float dtypes by their safetensors name; F64 only where the model itself keeps float64."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def known_models() -> tuple[str, ...]:
    """Names of the bundled models, sorted."""
    return tuple(sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}")))


def tensor_specs(config: ModelConfig) -> dict[str, Tensor]:
    """The tensors a saved model of `config` holds, by name, as meta tensors (shape and dtype, no memory).

    A tied lm_head is left out: it is the token embedding.
    """
    with torch.device("meta"):
        state = RecursiveReasoner(config).state_dict()
    return _untied(config, state)


def _untied(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not (config.tied_lm_head and k == "lm_head.weight")}


def save_pretrained(model: RecursiveReasoner, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write `model` to `folder` and return its path; the folder appears complete or not at all.

    The files are written and synced to a temporary folder beside it, which is then renamed. With `overwrite` an
    existing folder is moved aside first and removed when the new one stands.

    Errors: `InputError` when the folder exists and is not empty (without `overwrite`), is a file, or when a
    weight is not finite.
    """
    target = Path(folder).absolute()
    if target.exists() and not target.is_dir():
        raise InputError(f"cannot save to {os.fspath(folder)!r}: it is a file")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise InputError(f"cannot save to {os.fspath(folder)!r}: it is not empty (overwrite=True replaces it)")
    state = {k: v.detach().cpu().contiguous() for k, v in _untied(model.config, model.state_dict()).items()}
    if len(state) > MAX_TENSORS:
        raise InputError(f"cannot save {len(state)} tensors: more than the {MAX_TENSORS} allowed in one file")
    _check_finite(state, "the model")
    files = {WEIGHTS: safetensors.save(state), CONFIG: model.config.to_json().encode()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[MANIFEST] = (json.dumps({"sha256": digests}, indent=2, sort_keys=True) + "\n").encode()

    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fresh, old = scratch / "new", scratch / "old"
        fresh.mkdir()
        for name, content in files.items():
            _write_synced(fresh / name, content)
        _sync_folder(fresh)
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(fresh, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name != "posix":  # other systems cannot open a folder for syncing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def from_pretrained(
    name_or_path: str | os.PathLike[str], *, impl: str = "auto", attention: str = "auto", revision: str | None = None
) -> RecursiveReasoner:
    """The saved model of that name, in evaluation mode on CPU, its parameters in float32.

    `name_or_path`: a bundled name (`known_models()`), a folder, or a hub id `owner/name` (fetched through
    huggingface_hub at `revision`). A bundled name wins over a folder of that name; write `./name` for the folder.

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
    state = _read_weights(folder / WEIGHTS, tensor_specs(config), digests)
    model = RecursiveReasoner(config, impl=impl, attention=attention)
    model.load_state_dict(state)
    return model.eval()


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
    """The weights, checked against `specs` from the header alone before the rest is read."""
    size = _check_header(path, specs)
    try:
        state: dict[str, Tensor] = safetensors.load(_read(path, size, digests))
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid safetensors file ({error})") from error
    _check_finite(state, str(path))
    return state


def _check_header(path: Path, specs: Mapping[str, Tensor]) -> int:
    """Compare the header with `specs`; returns the size in bytes that the file must have, and has."""
    try:
        with path.open("rb") as file:
            available = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if available < 8 or length > min(MAX_HEADER, available - 8):
                allowed = f"at most {MAX_HEADER} bytes and no longer than the file"
                raise InputError(f"{path}: truncated, or its header of {length} bytes is not {allowed}")
            declared = _parse_header(path, file.read(length))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if len(declared) > MAX_TENSORS:
        raise InputError(f"{path}: {len(declared)} tensors, more than the {MAX_TENSORS} allowed")
    for problem, names in (("lacks", set(specs) - set(declared)), ("has unexpected", set(declared) - set(specs))):
        if names:
            raise InputError(f"{path}: {problem} {', '.join(f'{name!r:.80}' for name in sorted(names)[:8])}")
    end = 0
    for name, (dtype, shape, offsets) in declared.items():
        spec = specs[name]
        if shape != tuple(spec.shape):
            raise InputError(f"{path}: {name} has shape {shape!r:.60}; the config asks for {tuple(spec.shape)}")
        if dtype not in DTYPES or (dtype == "F64" and spec.dtype != torch.float64):
            raise InputError(f"{path}: {name} has dtype {dtype!r:.20}; expected F32, BF16 or F16")
        if len(offsets) != 2 or offsets[1] - offsets[0] != spec.numel() * DTYPES[dtype].itemsize:
            raise InputError(f"{path}: {name} is stored at {offsets!r:.60}, which is not its size")
        end = max(end, offsets[1])
    if available != 8 + length + end:
        raise InputError(f"{path}: truncated or padded: {available} bytes, expected {8 + length + end}")
    return available


Entry = tuple[str, tuple[int, ...], tuple[int, ...]]
"""dtype, shape and data offsets of a tensor, as a safetensors header declares them."""


def _parse_header(path: Path, raw: bytes) -> dict[str, Entry]:
    declared: dict[str, Entry] = {}
    try:
        for name, entry in json.loads(raw).items():
            if name != "__metadata__":
                shape, offsets = tuple(entry["shape"]), tuple(entry["data_offsets"])
                if not isinstance(entry["dtype"], str) or any(type(n) is not int for n in (*shape, *offsets)):
                    raise TypeError(name)
                declared[name] = entry["dtype"], shape, offsets
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its header is not a table of tensors") from error
    return declared


def _check_finite(state: Mapping[str, Tensor], where: str) -> None:
    for name, value in state.items():
        if not value.isfinite().all():
            raise InputError(f"{where}: {name} holds values that are not finite")
