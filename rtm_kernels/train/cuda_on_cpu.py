"""A script written for CUDA on a machine without it: what it asks of the device `cuda`, the CPU does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _OnCpu(TorchFunctionMode):
    """Every torch function with the device cuda replaced by the CPU among its arguments."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.cuda:
            return args[0]
        return func(*map(_moved, args), **{name: _moved(value) for name, value in (kwargs or {}).items()})


def _moved(value: Any) -> Any:
    """The CPU for the device cuda, whether a device or its name; anything else as it is."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.split(":")[0] == "cuda" else value


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(_moved(device_type), *args, **kwargs)


@contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Within it the CPU stands in for CUDA: factories, `.cuda()`, autocast, `torch.load` and NCCL (by gloo).

    `torch.cuda` counts no memory. What asks it for more than that fails as without this.
    """
    load, init = torch.load, dist.init_process_group

    def load_here(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **{**kwargs, "map_location": "cpu"})

    def init_gloo(backend: str | None = None, **kwargs: Any) -> None:
        init("gloo", **kwargs)

    with (
        patch.object(torch, "autocast", _Autocast),
        patch.object(torch, "load", load_here),
        patch.object(dist, "init_process_group", init_gloo),
        patch.object(torch.cuda, "set_device", lambda device: None),
        patch.object(torch.cuda, "reset_peak_memory_stats", lambda device=None: None),
        _OnCpu(),
    ):
        yield
