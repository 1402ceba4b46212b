"""rtm_kernels: fused kernels for recursive reasoning models (TRM, HRM, RSM, RINS, RTM).

Names are imported on first use, so that `import rtm_kernels` touches neither CUDA, triton nor compiled code.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_OLDEST_TORCH = (2, 10)

_HOMES = {
    "FusedTRMBlock": "block",
    "ModelConfig": "config",
    "Program": "program",
    "RecursiveReasoner": "model",
    "Solver": "engine",
    "accelerate": "interop",
    "restore": "interop",
}

__all__ = ["FusedTRMBlock", "ModelConfig", "Program", "RecursiveReasoner", "Solver", "accelerate", "restore"]

if TYPE_CHECKING:
    from rtm_kernels.block import FusedTRMBlock
    from rtm_kernels.config import ModelConfig
    from rtm_kernels.engine import Solver
    from rtm_kernels.interop.accelerate import accelerate, restore
    from rtm_kernels.model import RecursiveReasoner
    from rtm_kernels.program import Program


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def _require_torch() -> None:
    oldest = ".".join(map(str, _OLDEST_TORCH))
    try:
        found = metadata.version("torch")
    except metadata.PackageNotFoundError:
        raise ImportError(f"rtm_kernels needs torch >= {oldest}, and torch is not installed") from None
    if tuple(int(part) for part in found.split(".")[:2]) < _OLDEST_TORCH:
        raise ImportError(f"rtm_kernels needs torch >= {oldest}, and this is torch {found}")


_require_torch()
