"""The persistent executor: a whole ACT step, or any program, in one launch, and the buffers of that launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError, require
from rtm_kernels.impl import why_not_triton
from rtm_kernels.ops.launch import LaunchRow, launch, multiprocessors, select, tuned
from rtm_kernels.program import INPUT, Program
from rtm_kernels.ranges import ranged
from rtm_kernels.recursion.persistent.pack import PackedLayers, Stacks, why_not_stacks
from rtm_kernels.recursion.tape import MAX_TERMS, layer_rows, numbers, why_not_program

KERNEL = "persistent_recursion"


def _blocks(
    length: int, mix: tuple[int, int], up: tuple[int, int, int], down: tuple[int, int, int], norm_rows: int = 8
) -> dict[str, int]:
    names = ("BLOCK_L", "MIX_D", "MIX_I", "UP_M", "UP_I", "UP_K", "DOWN_M", "DOWN_D", "DOWN_K", "NORM_R")
    return dict(zip(names, (length, *mix, *up, *down, norm_rows), strict=True))


TABLE = tuned("persistent", (
    LaunchRow(KERNEL, "hopper", 16, 128, _blocks(128, (16, 64), (64, 32, 128), (64, 32, 128)), 4, 3),
    LaunchRow(KERNEL, "hopper", 16, 256, _blocks(256, (16, 32), (64, 32, 64), (64, 16, 128)), 8, 3),
    LaunchRow(KERNEL, "hopper", 32, 128, _blocks(128, (16, 16), (64, 32, 32), (64, 16, 32)), 8, 1),
    LaunchRow(KERNEL, "portable", 16, 128, _blocks(128, (16, 32), (64, 32, 64), (64, 16, 64)), 8, 2,
              waiver="ptxas stops at 128 registers: 32 bytes on the stack with norm_axis=hidden; sm_120 up to 72"),
    LaunchRow(KERNEL, "portable", 16, 256, _blocks(256, (16, 32), (64, 32, 64), (64, 16, 64)), 8, 2,
              waiver="sm_89 with Triton 3.6 keeps 16 bytes on the stack; sm_80 and Triton 3.9 none"),
    LaunchRow(KERNEL, "portable", 32, 128, _blocks(128, (16, 16), (32, 32, 32), (32, 16, 32)), 8, 1),
    LaunchRow(KERNEL, "interpreter", 0, 16, _blocks(16, (32, 64), (32, 64, 32), (32, 32, 64)), 4, 1),
    LaunchRow(KERNEL, "interpreter", 0, 128, _blocks(128, (64, 64), (128, 128, 64), (128, 64, 128), 64), 4, 1),
))  # fmt: skip
"""`limit` is the sequence length L, the longest one of a family the longest that it runs. One program runs per
multiprocessor. The token mix works on tiles of `MIX_D` channels, all L rows and `MIX_I` inner columns at a time; the
gate-up phase on `UP_M` rows x `UP_I` inner columns x `UP_K`; the down phase on `DOWN_M` rows x `DOWN_D` channels x
`DOWN_K`; the norm and the halting phase on `NORM_R` rows."""

Head = tuple[Tensor, Tensor]
"""Weight [2, D] and bias [2] of a halting head, of any float dtype and read where they lie."""


def why_not(program: Program, stacks: Stacks, device: torch.device, dtype: torch.dtype, length: int) -> str | None:
    """What keeps the persistent kernel from running `program` on latents [B, L, D], or None when it can."""
    used = {name: stacks[name] for name in program.stacks if name in stacks}
    return why_not_program(program) or why_not_stacks(used) or _why_not_here(device, dtype, length)


def _why_not_here(device: torch.device, dtype: torch.dtype, length: int) -> str | None:
    """What keeps the kernel from running in `dtype` at sequence length L on `device`, or None when it can."""
    reason = why_not_triton(device)
    if reason is not None:
        return reason
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the persistent kernel does not compute {dtype}"
    try:
        select(TABLE, KERNEL, dtype, length)
    except BackendUnavailable as error:
        return str(error)
    return None


class PersistentRecursion:
    """Buffers and launch of the persistent kernel for one program and set of packed weights.

    `latents` [n, B, L, D] of the batch loaded last are updated in place. A launch also writes `q` [B, L, 2] float32,
    the halting head at every position of the output latent, and `change` [B] float32, |dy| / |y| of that latent;
    `q` is None without a head, and `change` where the program does not carry its output. All buffers are static, so a
    launch can be captured in a CUDA graph. The bits of a sample's result depend neither on the rest of the batch nor
    on the grid size. Inference only. On the meta device nothing runs: the compile gate uses it.

    Args:
        batch: the most samples that `load` takes. head: the halting head.
        row: launch row, by default that of the table. grid: number of programs, all resident at once; by default
            one per multiprocessor, and one in the interpreter, where none can wait.

    Errors: `BackendUnavailable` when the kernel cannot run on the device of the weights, in their dtype, or at L.
    """

    @torch.inference_mode(False)  # buffers that may be written in any mode
    def __init__(
        self,
        program: Program,
        weights: PackedLayers,
        batch: int,
        *,
        head: Head | None = None,
        row: LaunchRow | None = None,
        grid: int | None = None,
    ) -> None:
        device, dtype, layout = weights.data.device, weights.data.dtype, weights.layout
        reason = _why_not_here(device, dtype, layout.length) if device.type != "meta" else None
        if reason is not None:
            raise BackendUnavailable(f"the persistent kernel cannot run: {reason}")
        require(batch >= 0, "batch", batch, "at least 0")
        self.program, self.weights, self.batch = program, weights, batch
        self.row = select(TABLE, KERNEL, dtype, layout.length) if row is None else row
        self.grid = multiprocessors(device, 1) if grid is None else grid
        self._number = numbers(program)
        self._written = tuple(dict.fromkeys(step.dst for step in program.steps))
        self.tape = layer_rows(program, weights.stack_layers).to(device)
        self.normed = torch.tensor([self._number[n] for n in self._written], dtype=torch.int32, device="cpu").to(device)
        self._barrier = torch.zeros(1, dtype=torch.int64, device=device)
        self._allocate(head)
        self._view(batch)

    def _allocate(self, head: Head | None) -> None:
        data, blocks, batch, layout = self.weights.data, self.row.blocks, self.batch, self.weights.layout
        rows, width = batch * layout.length, layout.width
        self._memory = data.new_empty(len(self._number) * rows * width)
        self._mixed = data.new_empty(rows * width)
        self._inner = data.new_empty(rows * layout.inner_width)
        parts = len(self._number) * -(width // -blocks["DOWN_D"])
        self._partials = data.new_empty(rows * parts, dtype=torch.float32)
        self._mixed_partials = data.new_empty(rows * -(width // -blocks["MIX_D"]), dtype=torch.float32)
        self._carries_output = self.program.output in self.program.carried
        self._previous = data.new_empty(batch if self._carries_output else 0, layout.length, width)
        self._change = data.new_empty(batch, dtype=torch.float32)
        self._q = data.new_empty(0 if head is None else batch, layout.length, 2, dtype=torch.float32)
        self._head = None
        if head is not None:
            weight, bias = (t.detach().contiguous() for t in head)
            shapes = (tuple(weight.shape), tuple(bias.shape))
            require(shapes == ((2, width), (2,)), "head", shapes, f"[2, D={width}] and [2]")
            self._head = weight, bias

    def _view(self, samples: int) -> None:
        shape = (len(self._number), samples, self.weights.layout.length, self.weights.layout.width)
        self.latents = self._memory[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape)

    @property
    def q(self) -> Tensor | None:
        """The halting head at every position, [B, L, 2]; overwritten by the next launch."""
        return None if self._head is None else self._q[: self.latents.shape[1]]

    @property
    def change(self) -> Tensor | None:
        """|dy| / |y| of the output latent, [B]; overwritten by the next launch."""
        return self._change[: self.latents.shape[1]] if self._carries_output else None

    def load(self, latents: Mapping[str, Tensor], x: Tensor) -> None:
        """Copy latents and input x [B, L, D] in, for at most `batch` samples.

        Errors: `InputError` for a tensor of another shape, or a latent that is missing and read before it is written.
        """
        missing = sorted(set(self.program.carried) - set(latents))
        if missing:
            raise InputError(f"latents={sorted(latents)} is not allowed: {', '.join(missing)} is read and not given")
        require(x.shape[0] <= self.batch, "batch", x.shape[0], f"at most {self.batch}")
        self._view(x.shape[0])
        shape = tuple(self.latents.shape[1:])
        for name, value in {**latents, INPUT: x}.items():
            if name in self._number:
                require(tuple(value.shape) == shape, name, tuple(value.shape), f"[B, L, D] = {shape}")
                self.latents[self._number[name]].copy_(value)
        if self._carries_output:
            self._previous[: len(x)].copy_(latents[self.program.output])

    def values(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latents `given` to `load` and those written since, by name; views [B, L, D] of those on the tape."""
        names = dict.fromkeys((*given, *self._written))
        return {name: self.latents[self._number[name]] if name in self._number else given[name] for name in names}

    @ranged(lambda self: f"recursion {self.program.name}, persistent")
    def step(self) -> None:
        """One launch: the whole program, the halting head and the change of the output latent."""
        from rtm_kernels.recursion.persistent.kernel import recursion_kernel

        batch, layout = self.latents.shape[1], self.weights.layout
        if batch == 0:
            return
        _, mix_down, gate_up, down, layer_size = layout.offsets
        weight, bias = self._head or (self._q, self._q)
        with torch.cuda.device_of(self.latents):
            launch(
                recursion_kernel, self.row, (self.grid,),
                self.latents, self._q, self._change, self._partials, self._mixed, self._mixed_partials, self._inner,
                self._barrier, self.weights.data, self.tape, self.normed, self._previous, weight, bias,
                batch, len(self.tape), len(self.normed), self._number[self.program.output], self.weights.eps,
                L=layout.length, D=layout.width, INNER_L=layout.inner_len, INNER_D=layout.inner_width,
                MIX_DOWN_AT=mix_down, GATE_UP_AT=gate_up, DOWN_AT=down, LAYER_SIZE=layer_size, MAX_TERMS=MAX_TERMS,
                NORM_HIDDEN=self.weights.norm_axis == "hidden", HAS_HEAD=self._head is not None,
                HAS_CHANGE=self._carries_output,
                launch_cooperative_grid=True,
            )  # fmt: skip


class Launched(NamedTuple):
    """What one launch left."""

    latents: dict[str, Tensor]
    """[B, L, D], those given and those written."""
    q: Tensor | None
    """float32 [B, L, 2], the halting head at every position of the output latent; None without a head."""
    change: Tensor | None
    """float32 [B], |dy| / |y| of the output latent; None where the program does not carry it."""


class PersistentExecutor:
    """`recursion.reference.run` for one program and its stacks, then the halting head, one launch per call.

    Weights are packed when it is built, in `dtype` (by default that of the weights); the head is read where it lies.
    Buffers are allocated for powers of two of samples when they are first needed. Inference only: results carry no
    gradient.

    Errors: `InputError` for a stack that is missing; `BackendUnavailable`, see `why_not`.
    """

    def __init__(
        self, program: Program, stacks: Stacks, dtype: torch.dtype | None = None, head: Head | None = None
    ) -> None:
        missing = [name for name in program.stacks if name not in stacks]
        if missing:
            raise InputError(f"stacks={sorted(stacks)} is not allowed: the program applies {', '.join(missing)}")
        reason = why_not_program(program)
        if reason is not None:
            raise BackendUnavailable(f"the persistent kernel cannot run: {reason}")
        self.program, self._head = program, head
        self.weights = PackedLayers({name: stacks[name] for name in program.stacks}, dtype)
        self._by_size: dict[int, PersistentRecursion] = {}

    def run(self, latents: Mapping[str, Tensor], x: Tensor) -> Launched:
        """One pass of the program from latents and input x [B, L, D]; nothing that is given is modified.

        Errors: `InputError` when a gradient is asked for, a latent is missing, or a shape is wrong.
        """
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*latents.values(), x)):
            raise InputError("requires_grad=True is not allowed: the persistent kernel has no backward; use no_grad()")
        size = 1 << (len(x) - 1).bit_length() if len(x) else 0
        if size not in self._by_size:
            self._by_size[size] = PersistentRecursion(self.program, self.weights, size, head=self._head)
        recursion = self._by_size[size]
        recursion.load(latents, x)
        recursion.step()
        values = {name: value.clone() for name, value in recursion.values(latents).items()}
        return Launched(values, *(None if t is None else t.clone() for t in (recursion.q, recursion.change)))
