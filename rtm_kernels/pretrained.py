"""Saved models: a folder with `model.safetensors`, `config.json` and the sha256 of both in `manifest.json`.

Nothing of a folder is trusted: names, shapes and dtypes are compared with the validated config before anything is
allocated, and no format that can hold code is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from rtm_kernels import hub
from rtm_kernels.config import Config, ModelConfig
from rtm_kernels.errors import InputError, require
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

Model = TypeVar("Model", bound="Pretrained")
AnyConfig = TypeVar("AnyConfig", bound=Config)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def known_models() -> tuple[str, ...]:
    """Names of the bundled models, sorted."""
    return tuple(sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}")))


class Pretrained(nn.Module):
    """A model that is saved and loaded, in folders and on the hub, with the calls of `huggingface_hub`'s own mixin.

    It is made from its config (`Model(config, impl=..., attention=...)`), which `configs` reads. A model card tells its
    `card`: what it is, the extra that the command line needs, and a command.
    """

    config: Any
    configs: ClassVar[type[Config]]
    card: ClassVar[tuple[str, str, str]]

    @property
    def backbone(self) -> ModelConfig:
        """The config of the recursion."""
        found: ModelConfig = getattr(self.config, "backbone", self.config)
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype, `forward_dtype` of the config."""
        dtype: torch.dtype = getattr(torch, self.backbone.forward_dtype)
        return dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @classmethod
    def from_pretrained(
        cls: type[Model], name_or_path: str | os.PathLike[str], *, impl: str = "auto", attention: str = "auto",
        revision: str | None = None, token: str | bool | None = None, cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False, local_files_only: bool = False,
    ) -> Model:  # fmt: skip
        """The saved model of that name, in evaluation mode on the CPU, its parameters in float32.

        `name_or_path`: a bundled name, a folder, or a hub id `owner/name`. A bundled name wins over a folder of that
        name; write `./name` for the folder. A hub id is fetched at `revision` (branch, tag or commit), with `token`,
        into `cache_dir`, as in `huggingface_hub`.

        Errors: `InputError` for an unknown name, and for a folder whose files are missing, truncated, altered since
        they were saved, or do not fit its config; `BackendUnavailable` for a hub id without huggingface_hub.
        """
        fetching = {
            "revision": revision, "token": token, "cache_dir": cache_dir, "force_download": force_download,
            "local_files_only": local_files_only,
        }  # fmt: skip
        with torch.device("cpu"), torch.inference_mode(False), torch.random.fork_rng([]):  # those of the caller stay
            config, state = load(name_or_path, cls.specs, cls.configs.from_dict, fetching)
            model = cls(config, impl=impl, attention=attention)
            model.load_state_dict(state)
        return model.eval()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, overwrite: bool = False, push_to_hub: bool = False,
        repo_id: str | None = None, **push: Any,
    ) -> Path:  # fmt: skip
        """Write weights, config and checksums to `folder`, which appears complete or not at all; returns its path.

        With `push_to_hub` the model also goes to the hub as `repo_id`, with the options of `push_to_hub`.

        Errors: `InputError` when the folder is not empty (without `overwrite`), is a file, or a weight is not finite;
        those of `push_to_hub`.
        """
        require(push_to_hub or not (push or repo_id), "push_to_hub", push_to_hub, "True, where its options are given")
        require(not push_to_hub or HUB_ID.fullmatch(repo_id or "") is not None, "repo_id", repo_id, "owner/name")
        path = save(self.config, self.tensors(), folder, overwrite=overwrite)
        if repo_id is not None:
            self.push_to_hub(repo_id, **push)
        return path

    def push_to_hub(
        self, repo_id: str, *, commit_message: str = "Push model using rtm_kernels.", private: bool | None = None,
        token: str | bool | None = None, branch: str | None = None, create_pr: bool | None = None,
    ) -> str:  # fmt: skip
        """Put the saved model into the hub repository `repo_id`, in one commit; returns the address of the commit.

        A repository that has no model card gets one that says what the config says. The arguments are those of
        `huggingface_hub.PyTorchModelHubMixin.push_to_hub`.

        Errors: `BackendUnavailable` without huggingface_hub; `InputError` for what the hub refuses, and for a weight
        that is not finite.
        """
        require(HUB_ID.fullmatch(repo_id) is not None, "repo_id", repo_id, "owner/name")
        parameters = sum(value.numel() for value in self.parameters())
        fields = dict(zip(("about", "extra", "command"), self.card, strict=True), **vars(self.backbone), **{
            "name": repo_id.split("/")[1], "parameters": f"{parameters:,}", "steps": len(self.backbone.program),
            "module": type(self).__module__, "model": type(self).__name__,
        })  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            path = save(self.config, self.tensors(), Path(folder) / "model")
            return hub.upload(
                path, repo_id, fields, token=token, private=private, branch=branch,
                create_pr=create_pr, commit_message=commit_message,
            )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a saved model holds, by name: the state dict without a tied lm_head."""
        state = self.state_dict()
        return {k: v for k, v in state.items() if not (self.backbone.tied_lm_head and k == "lm_head.weight")}

    @classmethod
    def specs(cls, config: Any) -> dict[str, Tensor]:
        """The tensors that a saved model of `config` holds, by name, as meta tensors (shape and dtype, no memory)."""
        with torch.device("meta"):
            return cls(config).tensors()


def save(
    config: Config, tensors: Mapping[str, Tensor], folder: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write a config and the named `tensors` to `folder`, as `RecursiveReasoner.save_pretrained` says."""
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
    read: Callable[[Mapping[str, Any]], AnyConfig], fetching: Mapping[str, Any],
) -> tuple[AnyConfig, dict[str, Tensor]]:  # fmt: skip
    """The config and the tensors on the CPU of a saved model, named as in `RecursiveReasoner.from_pretrained`.

    `read` checks a config, and `specs` gives the tensors that it asks for, as meta tensors; `fetching` are the options
    of `hub.download`.
    """
    folder = _resolve(name_or_path, fetching)
    manifest = _read_json(folder / MANIFEST)
    digests = manifest.get("sha256")
    if not isinstance(digests, dict):
        raise InputError(f"{folder / MANIFEST}: no sha256 table in it")
    config = read(_read_json(folder / CONFIG, digests))
    return config, _read_weights(folder / WEIGHTS, specs(config), digests)


def _resolve(name_or_path: str | os.PathLike[str], fetching: Mapping[str, Any]) -> Path:
    name = os.fspath(name_or_path)
    if name in known_models():
        return MODELS / name
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name_or_path, str) and HUB_ID.fullmatch(name):
        return hub.download(name, tuple(KINDS), **fetching)
    known = ", ".join(known_models()) or "none"
    raise InputError(f"unknown model {name!r}; bundled: {known}; or give an existing folder or a hub id owner/name")


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
