"""Official pickled checkpoints: read in a separate process that runs no code in them, converted with their config."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor
from torch.torch_version import TorchVersion

from rtm_kernels.data.dataset import Metadata
from rtm_kernels.errors import BackendUnavailable, InputError, one_of, printable, require
from rtm_kernels.files import StrPath, read_json, read_parsed
from rtm_kernels.interop import unpickle
from rtm_kernels.interop.official import ALIASES, STACK_LAYERS, from_official, strip_prefixes
from rtm_kernels.model import RecursiveReasoner

SAFE_TORCH = TorchVersion("2.10")
"""First torch whose weights_only loader has no known way to run code (CVE-2025-32434, CVE-2026-24747)."""

MAX_BYTES = 16 << 30
"""Size of the largest checkpoint that is read."""

MEMORY = 512 << 20
"""Memory of the reading process beyond four times the size of the file."""

SECONDS = 120
"""Processor time of the reading process; the clock may run ten times as long."""

MAX_CONFIG = 1 << 16

MODULES = {**{name: name for name in (*STACK_LAYERS, *ALIASES)}, "hrm_act_v1": "hrm"}
"""Official module that defines a model -> its architecture here."""

FROM_DATA = ("vocab_size", "seq_len", "num_puzzle_identifiers")
"""Fields of the model that the official training takes from its data set and saves nowhere."""

READER = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
"""Runs `unpickle.py` without importing the package around it, which would take longer than the reading."""


def load_official_checkpoint(path: StrPath) -> dict[str, Tensor]:
    """The state dict of a checkpoint that the official TRM, HRM or RSM training wrote, prefixes removed, on CPU.

    TRM and HRM save the state dict itself, RSM a dict that holds it as `model_state`. A process with limits on
    address space, processor time and file size unpickles tensors and plain containers
    (`torch.load(weights_only=True)`) and hands safetensors back; there is no other way in.

    Errors: `BackendUnavailable` before torch 2.10 and on systems without limits for a process (Windows);
    `InputError` for a file that is missing, is no such checkpoint, holds anything else than dense tensors, or takes
    more than the limits.
    """
    if TorchVersion(torch.__version__) < SAFE_TORCH:
        raise BackendUnavailable(f"pickled checkpoints need torch >= {SAFE_TORCH}; this is torch {torch.__version__}")
    if importlib.util.find_spec("resource") is None:
        raise BackendUnavailable(
            f"pickled checkpoints are read in a process with limits, which {sys.platform} cannot set: convert this one "
            "on Linux or macOS (rtm convert) and load the folder that it writes"
        )
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"checkpoint {name!r} cannot be read: {error.strerror or error}") from error
    if size > MAX_BYTES:
        raise InputError(f"checkpoint {name!r} is refused: {size} bytes, more than the {MAX_BYTES} allowed")
    with tempfile.TemporaryDirectory(prefix="rtm-convert-") as folder:
        target = Path(folder) / "state.safetensors"
        _unpickle(name, target, size)
        return strip_prefixes(safetensors.load(target.read_bytes()))


def _unpickle(name: str, target: Path, size: int) -> None:
    """Have `target` written by the reading process, or raise `InputError` with what it says or what ended it."""
    limits = (MEMORY + 4 * size, SECONDS, (1 << 20) + 2 * size)
    command = [sys.executable, "-c", READER, unpickle.__file__, os.path.abspath(name), str(target), *map(str, limits)]
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    env = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=target.parent, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=10 * SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise InputError(f"checkpoint {name!r} is refused: not read after {10 * SECONDS} s") from error
    if done.returncode == 0:
        return
    if done.returncode == unpickle.REFUSED:
        raise InputError(f"checkpoint {name!r} {done.stdout.strip()}")
    if done.returncode == -signal.SIGXCPU:
        raise InputError(f"checkpoint {name!r} is refused: reading it takes more than {SECONDS} s of processor time")
    if done.returncode < 0:
        raise InputError(f"checkpoint {name!r} is refused: {signal.Signals(-done.returncode).name} ended its reader")
    last = done.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
    raise InputError(f"checkpoint {name!r} is refused: its reader failed ({last[0]:.200})")


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
