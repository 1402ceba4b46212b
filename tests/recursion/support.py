"""Small stacks, states and the error budget that the tests of the executors share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rtm_kernels import program as programs
from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.program import INPUT, Program, Step
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.graph import WARM_UPS, Tensors
from rtm_kernels.recursion.persistent.pack import PackedLayers
from rtm_kernels.recursion.persistent.runner import PersistentRecursion

NEW = Program(
    "a model of tomorrow",
    (
        Step("plan", (INPUT, INPUT), ("memory",), stack="think"),
        Step("memory", ("memory", "plan", "memory"), (INPUT, "plan", "draft"), stack="recall"),
        Step("draft", ("plan",), stack="write"),
        Step("plan", ("draft", "plan"), ("draft",) * 8, stack="recall"),
        Step("answer", ("memory",), ("plan", "draft"), stack="write"),
        Step("memory", ("answer",), stack="think"),
    ),
    output="answer",
)
"""Four latents of which two are carried, an output written once, eight terms in a sum, three stacks out of order."""

PROGRAMS = [
    (NEW, "sequence"),
    (NEW, "hidden"),
    (NEW, "attention"),
    (programs.trm(1, 2), "sequence"),
    (programs.trm(1, 2), "attention"),
    (programs.trm_singlez(1, 1), "sequence"),
    (programs.trm_hier6(1, 2), "sequence"),
    (programs.hrm(1, 1), "sequence"),
    (programs.rsm(1, 1), "hidden"),
    (programs.rins(2), "sequence"),
    (programs.rtm(2), "sequence"),
    (programs.averaged(programs.rtm(2), 0.25), "sequence"),
    (programs.transformer(), "sequence"),
]
"""Programs, and the kind of their blocks: the axis that MLP mixers normalise, or attention."""


def small_block(length: int, width: int, inner: tuple[int, int], kind: str) -> FusedTRMBlock:
    """A block whose MLPs have inner widths `inner` (sequence, channel), so that interpreting it is quick."""
    if kind == "attention":
        block = FusedTRMBlock(width, mixer=kind, num_heads=2, causal=True, qk_norm=True, impl="reference")
    else:
        block = FusedTRMBlock(width, length, norm_axis=kind, impl="reference")
    mlps = [(block.mlp, width, inner[1]), *([] if kind == "attention" else [(block.mlp_t, length, inner[0])])]
    for mlp, n, hidden in mlps:
        mlp.gate_up_proj.weight = nn.Parameter(torch.randn(2 * hidden, n) * n**-0.5)
        mlp.down_proj.weight = nn.Parameter(torch.randn(n, hidden) * hidden**-0.5)
    return block


def small_stacks(
    names: tuple[str, ...],
    length: int,
    width: int,
    inner: tuple[int, int] = (20, 40),
    norm_axis: str = "sequence",
    layers: int = 1,
) -> dict[str, nn.Module]:
    """Stacks of small blocks with random weights, always the same."""
    torch.manual_seed(len(names))
    return {
        name: Stack([small_block(length, width, inner, norm_axis) for _ in range(layers)]).requires_grad_(False)
        for name in names
    }


def in_double(stacks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies of the stacks in float64."""
    return {name: copy.deepcopy(stack).double() for name, stack in stacks.items()}


def random_state(program: Program, batch: int, length: int, width: int) -> tuple[dict[str, Tensor], Tensor]:
    """Carried latents and input [B, L, D], random and always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, length, width)
    latents = {name: torch.randn(shape, generator=generator) for name in program.carried}
    return latents, torch.randn(shape, generator=generator)


def assert_within_budget(
    got: Mapping[str, Tensor],
    program: Program,
    latents: Mapping[str, Tensor],
    x: Tensor,
    stacks: Mapping[str, nn.Module],
) -> None:
    """Every latent's error is at most twice the reference's in the same dtype plus four roundings per step.

    Both errors are against the reference in float64, in the maximum and in the Frobenius norm.
    """
    base, band = reference.run(program, latents, x, stacks), 4 * len(program) * torch.finfo(x.dtype).eps
    truth = reference.run(program, {n: t.double() for n, t in latents.items()}, x.double(), in_double(stacks))
    assert set(got) == set(truth)
    for name, true in truth.items():
        assert got[name].shape == true.shape and got[name].dtype == x.dtype, name
        for size in (lambda t: t.abs().max(), torch.linalg.vector_norm):
            error, allowed = size(got[name] - true), 2 * size(base[name] - true) + band * size(true)
            assert error <= allowed, f"{name} after {len(program)} steps: error {error:.3g}, allowed {allowed:.3g}"


def run_persistent(
    program: Program, latents: Mapping[str, Tensor], x: Tensor, weights: PackedLayers, **options: Any
) -> dict[str, Tensor]:
    """`program` in one launch whose scratch memory holds NaN; `options` are those of `PersistentRecursion`."""
    recursion = PersistentRecursion(program, weights, **options)
    loaded = recursion.load(latents, x)
    for buffer in (loaded._mixed, loaded._inner, loaded._partials, loaded._mixed_partials, loaded.q, loaded.change):
        if buffer is not None:
            buffer.fill_(torch.nan)
    loaded.step()
    if x.is_cuda:
        torch.cuda.synchronize()
    recursion.check()
    found = loaded.values(latents)
    return found | {name: t for name, t in (("q", loaded.q), ("change", loaded.change)) if t is not None}


def bits(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The bytes of every tensor, for comparisons in which NaN equals NaN and -0.0 differs from 0.0."""
    return {name: t.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}


class Recorder:
    """Stands in for `CudaGraphs`: a replay runs the recorded function over the same memory."""

    def __init__(self) -> None:
        self.runs = 0
        self.inside = False

    def capture(self, fn: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        assert self.inside
        generator = torch.get_rng_state()
        for _ in range(WARM_UPS):
            fn()
        with torch.inference_mode(False):  # memory that a replay may write in any mode, as that of a graph
            outputs = {name: torch.full_like(t, torch.nan if t.is_floating_point() else 77) for name, t in fn().items()}
        torch.set_rng_state(generator)

        def replay() -> None:
            assert self.inside
            self.runs += 1
            for name, value in fn().items():
                outputs[name].copy_(value)

        return replay, outputs

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False

    def pool_bytes(self) -> int:
        return 3 << 20
