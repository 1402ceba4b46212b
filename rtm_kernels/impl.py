"""Which implementation of an op runs, decided in one place and never silently.

`auto` picks Triton for CUDA tensors and the PyTorch reference elsewhere. An implementation asked for by
name either runs or raises `BackendUnavailable` saying what is missing.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import warnings
from collections import Counter

import torch

from rtm_kernels.errors import BackendUnavailable, one_of

IMPLS = ("auto", "reference", "triton")

launches: Counter[str] = Counter()
"""Kernel name -> number of launches in this process; tests read it to prove which kernel ran."""


def triton_interpreted() -> bool:
    """Whether Triton runs, or would run once imported, in its interpreter, which accepts CPU tensors."""
    if "triton" in sys.modules:
        import triton

        return bool(triton.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def why_not_triton(device: torch.device) -> str | None:
    """What keeps the Triton kernels from running on tensors of `device`, or None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cpu":
        if triton_interpreted():
            return None
        return "the tensors are on cpu, and Triton kernels need a CUDA device (or TRITON_INTERPRET=1 to interpret them)"
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and Triton kernels need a CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 0):
        return f"compute capability {major}.{minor} is below 8.0"
    return None


@functools.cache
def warn_once(message: str, stacklevel: int = 3) -> None:
    """A `RuntimeWarning`, the first time that it is given."""
    warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)


def resolve(impl: str, device: torch.device) -> str:
    """The implementation that will run: `reference` or `triton`.

    Errors: `InputError` for an unknown name, `BackendUnavailable` for a named one that cannot run on `device`.
    """
    one_of("impl", impl, IMPLS)
    if impl == "reference" or (impl == "auto" and device.type != "cuda"):
        return "reference"
    reason = why_not_triton(device)
    if reason is None:
        return "triton"
    if impl == "triton":
        raise BackendUnavailable(f"impl='triton' cannot run: {reason}")
    warn_once(f"using the PyTorch reference on {device}: {reason}")
    return "reference"
