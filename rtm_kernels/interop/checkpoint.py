"""Official pickled checkpoints, read without running what they contain."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.interop.official import strip_prefixes

SAFE_TORCH = TorchVersion("2.10")
"""First torch whose weights_only loader has no known way to run code (CVE-2025-32434, CVE-2026-24747)."""


def load_official_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict of a checkpoint that the official TRM, HRM or RSM training wrote, prefixes removed, on CPU.

    TRM and HRM save the state dict itself, RSM a dict that holds it as `model_state`. Only tensors and plain
    containers are unpickled (`torch.load(weights_only=True)`); there is no other way in.

    Errors: `BackendUnavailable` before torch 2.10; `InputError` for a file that is missing, is no such checkpoint,
    or holds anything else than dense tensors.
    """
    if TorchVersion(torch.__version__) < SAFE_TORCH:
        raise BackendUnavailable(f"pickled checkpoints need torch >= {SAFE_TORCH}; this is torch {torch.__version__}")
    name = os.fspath(path)
    try:
        content: Any = torch.load(name, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"checkpoint {name!r} cannot be read: {error.strerror or error}") from error
    except UnpicklingError as error:
        raise InputError(f"checkpoint {name!r} is refused: it holds more than tensors and plain containers") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"checkpoint {name!r} is truncated or not a torch file") from error
    if isinstance(content, Mapping) and isinstance(content.get("model_state"), Mapping):
        content = content["model_state"]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"checkpoint {name!r} holds no state dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise InputError(f"checkpoint {name!r} is refused: {key!r} is not a dense tensor")
    return strip_prefixes(content)
