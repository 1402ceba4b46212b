"""Convert an official checkpoint and its config to a model folder of this package."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtm_kernels.data.dataset import Metadata
from rtm_kernels.errors import BackendUnavailable, InputError, one_of, printable, require
from rtm_kernels.files import read_json, read_parsed
from rtm_kernels.interop.checkpoint import load_official_checkpoint
from rtm_kernels.interop.official import ALIASES, STACK_LAYERS, from_official
from rtm_kernels.model import RecursiveReasoner

MAX_CONFIG = 1 << 16

MODULES = {**{name: name for name in (*STACK_LAYERS, *ALIASES)}, "hrm_act_v1": "hrm"}
"""Official module that defines a model -> its architecture here."""

FROM_DATA = ("vocab_size", "seq_len", "num_puzzle_identifiers")
"""Fields of the model that the official training takes from its data set and saves nowhere."""

StrPath = str | os.PathLike[str]


def convert(
    checkpoint: StrPath,
    folder: StrPath,
    *,
    config: StrPath,
    arch: str | None = None,
    data: StrPath | None = None,
    overwrite: bool = False,
) -> RecursiveReasoner:
    """Write `model.safetensors`, `config.json` and `manifest.json` to `folder`; returns the model.

    config: the `all_config.yaml` that the official training wrote beside its checkpoints, or its `arch` section, as
    YAML or JSON. arch: the architecture, where the config does not name its module. data: the data set that the run
    was trained on, whose `dataset.json` gives vocab_size, seq_len and num_puzzle_identifiers unless the config does.

    Errors: `InputError` for a config or data set that is missing or does not fit, and what
    `load_official_checkpoint`, `from_official` and `save_pretrained` raise; nothing is written then.
    """
    values = read_config(Path(config))
    if arch is None:
        arch = named_arch(values, str(config))
    if data is not None:
        metadata = read_metadata(Path(data))
        values = {name: getattr(metadata, name) for name in FROM_DATA} | values
    absent = [name for name in FROM_DATA if name not in values]
    if absent:
        raise InputError(f"{config}: holds no {', '.join(absent)}; give the data set of the run (data)")
    model = from_official(arch, values, load_official_checkpoint(checkpoint))
    model.save_pretrained(folder, overwrite=overwrite)
    return model


def read_config(path: Path) -> dict[str, Any]:
    """The `arch` section of a file of YAML or JSON, or the whole of it where there is none."""
    content = read_json(path, MAX_CONFIG) if path.suffix == ".json" else _read_yaml(path)
    if isinstance(content, Mapping) and isinstance(content.get("arch"), Mapping):
        content = content["arch"]
    named = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    require(named, printable(str(path)), type(content).__name__, "expected fields of a model by name")
    return dict(content)


def _read_yaml(path: Path) -> Any:
    if importlib.util.find_spec("yaml") is None:
        raise BackendUnavailable(f"{path} is read with the package PyYAML, which is not installed; or give it as .json")
    import yaml

    return read_parsed(path, MAX_CONFIG, yaml.safe_load, "YAML", yaml.YAMLError)


def named_arch(values: Mapping[str, Any], where: str) -> str:
    """The architecture of an official class path such as `recursive_reasoning.trm@Class`, by its module alone."""
    name = values.get("name")
    require(isinstance(name, str), f"{where}: name", name, "expected module@Class; or give the architecture (arch)")
    module = str(name).partition("@")[0].rpartition(".")[2]
    one_of(f"{where}: module of name", module, MODULES)
    return MODULES[module]


def read_metadata(folder: Path) -> Metadata:
    """The `dataset.json` of a data set folder, of its training part where it has one."""
    found = [folder / split / "dataset.json" for split in ("train", "test")]
    found = [path for path in found if path.is_file()]
    require(bool(found), "data", str(folder), "expected a data set folder with train/dataset.json")
    return Metadata.from_json(read_json(found[0]))
