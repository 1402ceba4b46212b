"""Run an official training script unedited, with stand-ins for missing packages and fused blocks."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode

from rtm_kernels.errors import InputError, require
from rtm_kernels.interop.accelerate import Accelerated, accelerate
from rtm_kernels.ops.adam_atan2.api import AdamATan2


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False
) -> Tensor:
    """The call of the package flash_attn by PyTorch's SDPA: softmax(q k^T · scale) v.

    q [B, S, H, Dh], k, v [B, T, Hkv, Dh] with H a multiple of Hkv; returns [B, S, H, Dh]. A causal mask is aligned to
    the last key, as there. Errors: `InputError` for heads that do not divide.
    """
    require(q.shape[2] % k.shape[2] == 0, "k.shape[2]", k.shape[2], f"a divisor of the {q.shape[2]} heads of q")
    query, key, value = (t.transpose(1, 2) for t in (q, k, v))
    mask = None
    if causal and q.shape[1] != k.shape[1]:
        mask = q.new_ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool()
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout_p, is_causal=causal and mask is None, scale=softmax_scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )  # fmt: skip
    return out.transpose(1, 2).contiguous()  # HRM takes a view of it, and not every kernel of SDPA leaves it so


STAND_INS: dict[str, dict[str, object]] = {
    "adam_atan2": {"AdamATan2": AdamATan2},
    "flash_attn": {"flash_attn_func": flash_attn_func},
}
"""Package of the official requirements -> what stands in for the names that official code imports from it."""


def missing() -> dict[str, str]:
    """Packages of `STAND_INS` that cannot be imported here, and why."""
    found = {}
    for name in STAND_INS:
        try:
            importlib.import_module(name)
        except Exception as error:
            found[name] = str(error)
    return found


@contextmanager
def standing_in(names: dict[str, str]) -> Iterator[None]:
    """Inside, the packages `names` can be imported, with the content of `STAND_INS`."""
    for name in names:
        module = ModuleType(name, "A stand-in of rtm_kernels")
        for key, value in STAND_INS[name].items():
            setattr(module, key, value)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


@contextmanager
def accelerating(report: list[str]) -> Iterator[None]:
    """Inside, every stack of official blocks is accelerated when it becomes part of a model; `report` names them.

    A stack that computes something else stays as it is, and `report` says so.
    """

    def hook(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        if (
            child is None
            or isinstance(child, Accelerated)
            or not isinstance(getattr(child, "layers", None), nn.ModuleList)
        ):
            return
        label = f"{type(parent).__name__}.{name}"
        try:
            accelerate(child)
            report.append(label)
        except InputError as error:
            report.append(f"{label} not ({error})")

    handle = register_module_module_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


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
    """Inside, the CPU stands in for CUDA: factories, `.cuda()`, autocast, `torch.load` and NCCL (by gloo).

    `torch.cuda` reports no memory. Any other use of CUDA fails as usual.
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


def run_script(script: Path, arguments: list[str], *, accelerated: bool = True, on_cpu: bool = False) -> list[str]:
    """Run `script` as `python script arguments` would, with stand-ins and fused blocks; returns what was accelerated.

    `on_cpu` answers its calls for CUDA with the CPU (`cuda_on_cpu`).

    Errors: `InputError` when there is no such file; whatever the script raises.
    """
    require(script.is_file(), "script", str(script), "a Python file, e.g. the pretrain.py of an official checkout")
    report: list[str] = []
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[:] = [str(script), *arguments], [str(script.resolve().parent), *sys.path]
    try:
        with ExitStack() as around:
            around.enter_context(standing_in(missing()))
            if on_cpu:
                around.enter_context(cuda_on_cpu())
            if accelerated:
                around.enter_context(accelerating(report))
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before
    return report
