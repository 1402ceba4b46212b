"""A captured step repeated on the device by a conditional WHILE node, from the extension `rtm_kernels._cuda`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable

MINIMUM = 12040
"""CUDA 12.4, the first version with WHILE nodes, of the driver and of the runtime the extension is built with."""


def why_not() -> str | None:
    """What keeps WHILE nodes from running here, or None when they can."""
    try:
        extension = importlib.import_module("rtm_kernels._cuda")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "rtm_kernels._cuda":
            return "the extension rtm_kernels._cuda is not compiled (it needs nvcc when the package is installed)"
        return f"the extension rtm_kernels._cuda does not load: {error}"
    for what, version in (("runtime", extension.runtime_version), ("driver", extension.driver_version())):
        if version < MINIMUM:
            return f"the CUDA {what} is version {version}, and WHILE nodes need {MINIMUM}"
    return None if torch.cuda.is_available() else "no CUDA device is available"


def while_active(graph: torch.cuda.CUDAGraph, active: Tensor, steps: Tensor, max_steps: int) -> Callable[[], None]:
    """A launch that replays `graph` while any element of `active` is set, at most `max_steps` times.

    `active` is a contiguous bool tensor on the device that the graph clears in place; `steps` [1] int32 receives how
    often it ran. `graph`, captured with `keep_graph=True`, and the tensors must outlive the launches.

    Errors: `BackendUnavailable` when WHILE nodes cannot run.
    """
    reason = why_not()
    if reason is not None:
        raise BackendUnavailable(f"a WHILE node cannot run: {reason}")
    extension: Any = importlib.import_module("rtm_kernels._cuda")
    loop = extension.WhileGraph(
        step=graph.raw_cuda_graph(), active=active.data_ptr(), count=active.numel(), steps=steps.data_ptr(),
        max_steps=max_steps,
    )  # fmt: skip
    return lambda: loop.launch(torch.cuda.current_stream(active.device).cuda_stream)
