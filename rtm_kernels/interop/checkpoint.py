"""Official pickled checkpoints, read in a separate process, without running code that they contain."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import torch as safetensors
from torch import Tensor
from torch.torch_version import TorchVersion

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.interop import unpickle
from rtm_kernels.interop.official import strip_prefixes

SAFE_TORCH = TorchVersion("2.10")
"""First torch whose weights_only loader has no known way to run code (CVE-2025-32434, CVE-2026-24747)."""

MAX_BYTES = 16 << 30
"""Size of the largest checkpoint that is read."""

MEMORY = 512 << 20
"""Memory of the reading process beyond four times the size of the file."""

SECONDS = 120
"""Processor time of the reading process; the clock may run ten times as long."""

READER = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
"""Runs `unpickle.py` without importing the package around it, which would take longer than the reading."""


def load_official_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
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
