"""Cases of the C++ executor for mutation testing: its sources compiled without torch, held to the reference."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rtm_kernels.block import FusedTRMBlock
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.reference import initial_state
from tests.gates.interpret_gate import ratio
from tests.ops.support import swiglu_weights

HERE = Path(__file__).resolve().parent / "native"
POLICIES = ("fixed", "q", "q_continue", "settle", "cumulative_sequence")
MAX_STEPS = 3


@dataclass(frozen=True)
class NativeCase:
    """One block and halting policy; heads = 0 is the MLP mixer."""

    batch: int
    length: int
    width: int
    inner: int
    mixer_inner: int
    heads: int
    norm_axis: str
    causal: bool
    qk_norm: bool
    policy: str
    mean: bool = False


CASES = {
    "mixer": NativeCase(5, 9, 24, 40, 20, 0, "sequence", False, False, "q"),
    "hidden": NativeCase(6, 17, 33, 21, 13, 0, "hidden", False, False, "q_continue", mean=True),
    "long inner": NativeCase(2, 5, 12, 530, 140, 0, "sequence", False, False, "settle"),
    "attention": NativeCase(4, 13, 24, 40, 0, 3, "sequence", True, True, "cumulative_sequence"),
    "full attention": NativeCase(3, 21, 36, 17, 0, 2, "sequence", False, False, "fixed"),
}


def build(source: Path, folder: Path) -> ctypes.CDLL:
    """The portable kernels and the executor of `source` as a library."""
    files = [source / name for name in ("executor.cpp", "pack.cpp", "dispatch.cpp", "kernels_portable.cpp")]
    library = folder / "native.so"
    flags = ["-std=c++17", "-O0", "-w", "-ffp-contract=off", "-shared", "-fPIC"]
    command = [
        "g++",
        *flags,
        f"-I{HERE}",
        f"-I{source}",
        str(HERE / "driver.cpp"),
        *map(str, files),
        "-o",
        str(library),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(library))


def failures(source: Path, folder: Path, name: str) -> list[str]:
    """How the executor built from `source` leaves the budget in a case; empty when it does not."""
    case, library = CASES[name], build(source, folder)
    g = torch.Generator().manual_seed(0)
    tensors = _tensors(case, g)
    truth = _reference(case, {n: t.double() for n, t in tensors.items()})
    base = _reference(case, tensors)
    found = _native(case, tensors, library)
    worst = {i: ratio(*three) for i, three in enumerate(zip(found, base, truth, strict=True))}
    return [f"output {i}: {value:.3g} x budget" for i, value in worst.items() if value > 1]


def _tensors(case: NativeCase, g: torch.Generator) -> dict[str, Tensor]:
    shape = (case.batch, case.length, case.width)
    tensors = {name: torch.randn(shape, generator=g) for name in "yzx"}
    if case.heads:
        tensors["first"] = torch.randn(3 * case.width, case.width, generator=g) / case.width**0.5
        tensors["second"] = torch.randn(case.width, case.width, generator=g) / case.width**0.5
        cos, sin = rope_tables(case.length, case.width // case.heads, 10000.0)
        tensors |= {"cos": cos.contiguous(), "sin": sin.contiguous()}
    else:
        mixer = swiglu_weights(case.length, case.mixer_inner, g)
        tensors |= {"first": mixer["gate_up_weight"].detach(), "second": mixer["down_weight"].detach()}
    channel = swiglu_weights(case.width, case.inner, g)
    tensors |= {"gate_up": channel["gate_up_weight"].detach(), "down": channel["down_weight"].detach()}
    tensors["head"] = torch.randn(2, case.width, generator=g) / case.width**0.5
    tensors["bias"] = 0.1 * torch.randn(2, generator=g)
    return tensors


def _reference(case: NativeCase, t: dict[str, Tensor]) -> list[Tensor]:
    options = {"mixer": "attention", "num_heads": case.heads} if case.heads else {"mixer": "mlp"}
    block = FusedTRMBlock(
        case.width, case.length, norm_axis=case.norm_axis, causal=case.causal, qk_norm=case.qk_norm, impl="reference",
        **options,
    )  # fmt: skip
    names = ("self_attn.qkv_proj", "self_attn.o_proj") if case.heads else ("mlp_t.gate_up_proj", "mlp_t.down_proj")
    for name, key in zip(
        (*names, "mlp.gate_up_proj", "mlp.down_proj"), ("first", "second", "gate_up", "down"), strict=True
    ):
        block.get_submodule(name).weight = nn.Parameter(t[key], requires_grad=False)
    tables = (t["cos"], t["sin"]) if case.heads else None
    state, (y, z) = initial_state(case.batch), (t["y"], t["z"])
    headed = {"weight": t["head"], "bias": t["bias"], "pool": "mean" if case.mean else "first"}
    headed = {} if case.policy in ("settle", "fixed") else headed
    logits = torch.zeros(case.batch, 1, 2, dtype=torch.float32)
    for _ in range(MAX_STEPS):
        active = state.active_samples[:, None, None]
        new_z = block(z, (y, t["x"]), cos_sin=tables)
        new_y = block(y, (new_z,), cos_sin=tables)
        settle = {"previous": y, "tol": 1.25} if case.policy == "settle" else {}
        step = halting_step_(
            state, new_y, policy=case.policy, max_steps=MAX_STEPS, **headed, **settle, impl="reference"
        )
        y, z = torch.where(active, new_y, y), torch.where(active, new_z, z)
        logits = torch.where(active, step.logits, logits) if headed else logits
    return [y, z, state.steps.flatten(), logits.flatten(1)]


def _native(case: NativeCase, t: dict[str, Tensor], library: ctypes.CDLL) -> list[Tensor]:
    y, z = t["y"].clone(), t["z"].clone()
    steps, reason = (torch.zeros(case.batch, dtype=torch.int64) for _ in range(2))
    logits = torch.zeros(case.batch, 2)
    headed = case.policy not in ("settle", "fixed")

    def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())

    sizes = (case.batch, case.length, case.width, case.inner, case.mixer_inner, case.heads)
    flags = (case.norm_axis == "hidden", case.causal, case.qk_norm)
    library.solve(
        *map(ctypes.c_int64, (*sizes, *flags)),
        *(pointer(t.get(n)) for n in ("first", "second", "gate_up", "down", "cos", "sin")), pointer(y), pointer(z),
        pointer(t["x"]), ctypes.c_int64(POLICIES.index(case.policy)), ctypes.c_int64(case.mean),
        pointer(t["head"] if headed else None), pointer(t["bias"] if headed else None), ctypes.c_int64(1),
        ctypes.c_int64(MAX_STEPS), ctypes.c_float(1.25), pointer(steps), pointer(reason), pointer(logits),
    )  # fmt: skip
    return [y, z, steps.to(torch.int32), logits]
