"""The persistent kernel: latents, the halting head and the change of the output after an ACT step in one launch."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rtm_kernels import program as programs
from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.ops.launch import select
from rtm_kernels.program import Program
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.persistent.pack import PackedLayers
from rtm_kernels.recursion.persistent.runner import KERNEL, TABLE, Loaded, PersistentExecutor, PersistentRecursion
from tests.cases.case import HALVES, MOST, SIZES, Case, Op, Tensors, Tuned, latent_shape
from tests.ops.support import swiglu_weights

SMALL = (
    (2, 9, 24, (20, 40), "sequence", programs.trm(1, 1)),
    (3, 5, 40, (18, 50), "hidden", programs.rtm(1)),
)
GATE = (  # B, L, D, inner widths over L and D, norm axis, program
    (2, 9, 24, (20, 40), "sequence", programs.trm(1, 1)),
    (3, 7, 17, (5, 33), "hidden", programs.trm(1, 2)),
    (2, 5, 40, (18, 50), "hidden", programs.rtm(1)),
    (5, 9, 24, (20, 40), "sequence", programs.trm_singlez(1, 1)),
    (3, 9, 24, (20, 40), "hidden", programs.transformer()),
    (1, 97, 48, (96, 80), "sequence", programs.transformer()),
    (1, 17, 33, (33, 31), "hidden", programs.trm_hier6(1, 1)),
    (4, 1, 16, (8, 8), "sequence", programs.hrm(1, 1)),
    (2, 13, 40, (70, 100), "sequence", programs.rins(1)),
    (7, 3, 65, (16, 65), "hidden", programs.rsm(1, 1)),
    (2, 16, 64, (64, 128), "hidden", programs.transformer()),
    (17, 2, 8, (8, 8), "sequence", programs.transformer()),
)
LAUNCHES = (  # L, dtype, norm axis, has a halting head
    (97, torch.bfloat16, "sequence", True),
    (97, torch.bfloat16, "hidden", True),
    (97, torch.bfloat16, "sequence", False),
    (97, torch.float16, "hidden", True),
    (97, torch.float32, "sequence", True),
    (97, torch.float32, "hidden", True),
    (196, torch.bfloat16, "hidden", True),
)
DRAWN = (programs.trm(1, 1), programs.trm_singlez(1, 1), programs.hrm(1, 1), programs.rtm(2), programs.transformer(),
         programs.rins(2), programs.rsm(1, 1))  # fmt: skip
WEIGHTS = ("mlp_t", "mlp")


def _make(
    batch: int, length: int, width: int, inner: tuple[int, int], program: Program, g: torch.Generator
) -> dict[str, Tensor]:
    shape = (batch, length, width)
    tensors = {f"z.{name}": torch.randn(shape, generator=g) for name in (*program.carried, program.output)}
    tensors["x"] = torch.randn(shape, generator=g)
    for stack in program.stacks:
        for mlp, n, hidden in zip(WEIGHTS, (length, width), inner, strict=True):
            weights = swiglu_weights(n, hidden, g)
            tensors |= {f"{stack}.{mlp}.{name}": w.detach() for name, w in weights.items()}
    tensors["head"] = torch.randn(2, width, generator=g) / width**0.5
    tensors["bias"] = 0.1 * torch.randn(2, generator=g)
    return tensors


def _stacks(program: Program, t: Tensors, norm_axis: str) -> dict[str, nn.Module]:
    _, length, width = t["x"].shape
    stacks = {}
    for name in program.stacks:
        block = FusedTRMBlock(width, length, norm_axis=norm_axis, impl="reference")
        for mlp in WEIGHTS:
            module = block.get_submodule(mlp)
            module.gate_up_proj.weight = nn.Parameter(t[f"{name}.{mlp}.gate_up_weight"], requires_grad=False)
            module.down_proj.weight = nn.Parameter(t[f"{name}.{mlp}.down_weight"], requires_grad=False)
        stacks[name] = Stack([block])
    return stacks


def _latents(t: Tensors) -> dict[str, Tensor]:
    return {n[2:]: v for n, v in t.items() if n.startswith("z.")}


def _call(norm_axis: str, program: Program, impl: str, t: Tensors) -> tuple[Tensor, ...]:
    stacks, latents, output = _stacks(program, t, norm_axis), _latents(t), program.output
    if impl == "triton":
        executor = PersistentExecutor(program, stacks, t["x"].dtype, (t["head"], t["bias"]))
        values, q, change = executor.run(latents, t["x"])
    else:
        values = reference.run(program, latents, t["x"], stacks)
        wide = values[output].to(torch.promote_types(t["x"].dtype, torch.float32))
        q = F.linear(wide, t["head"].to(wide.dtype), t["bias"].to(wide.dtype))
        change = relative_change(values[output], latents[output]) if output in program.carried else None
    if change is None:
        return *(values[name] for name in sorted(values)), q
    # one number per sample, no more exact than the latents that it is computed from: rounded as they are
    return *(values[name] for name in sorted(values)), q, change.to(t["x"].dtype)


def _launches(norm_axis: str, program: Program, t: Tensors) -> Callable[[], Tensor]:
    x, made = t["x"], {}
    weights = PackedLayers(_stacks(program, t, norm_axis), x.dtype)

    def step() -> Tensor:
        row = select(TABLE, KERNEL, x.dtype, x.shape[1])  # another one where the tuner tries it
        if str(row) not in made:
            made[str(row)] = PersistentRecursion(program, weights, row=row).load(_latents(t), x)
        made[str(row)].step()
        return made[str(row)].latents

    return step


def persistent(batch: int, length: int, width: int, inner: tuple[int, int], norm_axis: str, program: Program) -> Case:
    """An ACT step of one program, with the halting head."""
    name = f"{program.name} {[batch, length, width]} F={list(inner)} {norm_axis}"
    make = partial(_make, batch, length, width, inner, program)
    return Case(
        "persistent", name, make, partial(_call, norm_axis, program), start=partial(_launches, norm_axis, program)
    )


def launch_persistent(
    batch: int, length: int, axis: str, headed: bool = True, dtype: torch.dtype = torch.float32,
    program: Program | None = None, layers: int = 1, grid: int | None = 1, launch: bool = True,
) -> Loaded:  # fmt: skip
    """One ACT step at D = 512 on meta tensors."""
    program = program or programs.transformer()
    with torch.device("meta"):
        stack = Stack([FusedTRMBlock(512, length, norm_axis=axis) for _ in range(layers)])
        head = (torch.empty(2, 512), torch.empty(2)) if headed else None
    weights = PackedLayers({name: stack for name in program.stacks}, dtype)
    x = torch.empty(batch, length, 512, dtype=dtype, device="meta")
    loaded = PersistentRecursion(program, weights, head=head, grid=grid).load(dict.fromkeys(program.carried, x), x)
    if launch:
        loaded.step()
    return loaded


def draw(rng: random.Random) -> tuple[Case, torch.dtype]:
    batch, length, width = latent_shape(rng, MOST // 4)
    if length > 128:
        return draw(rng)
    dtype = rng.choice(HALVES)
    inner = (rng.choice(SIZES[:16]), rng.choice(SIZES[:16]))
    axis, program = rng.choice(("sequence", "hidden")), rng.choice(DRAWN)
    return persistent(batch, length, width, inner, axis, program), dtype


OP = Op(
    gate=[persistent(*row) for row in GATE],
    small=[persistent(*row) for row in SMALL],
    drawn=[draw],
    launched={
        f"persistent L={length} {str(dtype)[6:]} {axis}{' head' * headed}": partial(
            launch_persistent, 4, length, axis, headed, dtype, programs.trm(3, 6), 2, None)
        for length, dtype, axis, headed in LAUNCHES
    },
    by_batch={
        "persistent": partial(launch_persistent, length=97, axis="sequence"),
        "persistent hidden": partial(launch_persistent, length=97, axis="hidden"),
    },
    tuned=[
        Tuned("persistent-sudoku", lambda b: persistent(
            b, 97, 512, (512, 1536), "sequence", programs.trm(3, 6)), 1)
    ],
    tables={"persistent": TABLE},
)  # fmt: skip
