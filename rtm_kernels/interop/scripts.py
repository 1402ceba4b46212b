"""Run an official training script unedited, with stand-ins for missing packages and fused blocks."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from rtm_kernels.errors import InputError, require
from rtm_kernels.interop.accelerate import Accelerated, accelerate
from rtm_kernels.ops.adam_atan2.api import AdamATan2


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False
) -> Tensor:
    """The call of the package flash_attn by PyTorch's SDPA: softmax(q k^T · scale) v.

    q, k, v and the result: [B, S, H, Dh], as the official models call it. Errors: `InputError` for other shapes.
    """
    require(q.shape == k.shape == v.shape, "shapes", (q.shape, k.shape, v.shape), "q, k and v of one shape")
    query, key, value = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, is_causal=causal, scale=softmax_scale)
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
        sys.modules[name] = ModuleType(name, "A stand-in of rtm_kernels")
        vars(sys.modules[name]).update(STAND_INS[name])
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
        layers = getattr(child, "layers", None)
        if child is None or isinstance(child, Accelerated) or not isinstance(layers, nn.ModuleList):
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


def run_script(script: Path, arguments: list[str], *, accelerated: bool = True) -> list[str]:
    """Run `script` as `python script arguments` would, with stand-ins and fused blocks; returns what was accelerated.

    Errors: `InputError` when there is no such file; whatever the script raises.
    """
    require(script.is_file(), "script", str(script), "a Python file, e.g. the pretrain.py of an official checkout")
    report: list[str] = []
    with (
        patch.object(sys, "argv", [str(script), *arguments]),
        patch.object(sys, "path", [str(script.resolve().parent), *sys.path]),
        standing_in(missing()),
        accelerating(report) if accelerated else nullcontext(),
    ):
        runpy.run_path(str(script), run_name="__main__")
    return report
