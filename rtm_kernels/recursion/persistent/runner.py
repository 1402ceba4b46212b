"""The persistent executor: a whole ACT step, or any program, in one launch with buffers of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError, require
from rtm_kernels.impl import why_not_triton
from rtm_kernels.ops.launch import LaunchRow, entries, launch, multiprocessors, select, tuned
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
        _row(device, dtype, length)
    except BackendUnavailable as error:
        return str(error)
    return None


def _row(device: torch.device, dtype: torch.dtype, length: int) -> LaunchRow:
    with torch.cuda.device_of(torch.empty(0, device=device)):
        return select(TABLE, KERNEL, dtype, length)


def measured_batch(
    device: torch.device, dtype: torch.dtype, length: int, width: int, found: Sequence[Mapping[str, Any]] | None = None
) -> int:
    """The most samples [B, L, D] whose ACT step this kernel was measured to do faster than a graph on this very GPU.

    0 where `ops/tuned.json` says nothing of this GPU, dtype, L and D; `python -m benchmarks.choose --write` measures.
    """
    if device.type != "cuda":
        return 0
    where = {"gpu": torch.cuda.get_device_name(device), "shape": [length, width], "bits": 8 * dtype.itemsize}
    rows = (e for e in (entries() if found is None else found) if e["kernel"] == KERNEL and "batch" in e["measured"])
    return max((e["measured"]["batch"] for e in rows if where.items() <= {**e, **e["measured"]}.items()), default=0)


class PersistentRecursion:
    """The persistent kernel for one program and set of packed weights, and what its launches only read.

    `load` makes the buffers of a batch. The bits of a sample's result depend neither on the rest of the batch nor on
    the grid size. Inference only. On the meta device nothing runs: the compile gate uses it.

    Args:
        head: the halting head.
        row: launch row, by default that of the table. grid: number of programs, all resident at once; by default
            one per multiprocessor, and one in the interpreter, where none can wait.

    Errors: `BackendUnavailable` when the kernel cannot run on the device of the weights, in their dtype, or at L.
    """

    @torch.inference_mode(False)  # buffers that may be written in any mode
    def __init__(
        self,
        program: Program,
        weights: PackedLayers,
        *,
        head: Head | None = None,
        row: LaunchRow | None = None,
        grid: int | None = None,
    ) -> None:
        device, dtype, layout = weights.data.device, weights.data.dtype, weights.layout
        reason = _why_not_here(device, dtype, layout.length) if device.type != "meta" else None
        if reason is not None:
            raise BackendUnavailable(f"the persistent kernel cannot run: {reason}")
        self.program, self.weights = program, weights
        self.row = _row(device, dtype, layout.length) if row is None else row
        self.grid = multiprocessors(device, 1) if grid is None else grid
        self.number = numbers(program)
        self.written = tuple(dict.fromkeys(step.dst for step in program.steps))
        self.tape = layer_rows(program, weights.stack_layers).to(device)
        self.normed = torch.tensor([self.number[n] for n in self.written], dtype=torch.int32, device="cpu").to(device)
        self.failed = torch.zeros(1, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
        self.head = None
        if head is not None:
            weight, bias = (t.detach().contiguous() for t in head)
            shapes = (tuple(weight.shape), tuple(bias.shape))
            require(shapes == ((2, layout.width), (2,)), "head", shapes, f"[2, D={layout.width}] and [2]")
            self.head = weight, bias

    def load(self, latents: Mapping[str, Tensor], x: Tensor) -> Loaded:
        """Buffers that hold latents and input x [B, L, D]; nothing that is given is modified.

        Errors: `InputError` for a tensor of another shape, or a latent that is missing and read before it is written.
        """
        missing = sorted(set(self.program.carried) - set(latents))
        if missing:
            raise InputError(f"latents={sorted(latents)} is not allowed: {', '.join(missing)} is read and not given")
        shape = (x.shape[0], self.weights.layout.length, self.weights.layout.width)
        given = {name: t for name, t in {**latents, INPUT: x}.items() if name in self.number}
        for name, value in given.items():
            require(tuple(value.shape) == shape, name, tuple(value.shape), f"[B, L, D] = {shape}")
        return Loaded(self, given)

    def check(self) -> None:
        """Refuse the results of launches that the host has waited for where one of them gave up; waits for nothing.

        Errors: `BackendUnavailable`, once for each time.
        """
        if int(self.failed):  # in memory of the host
            self.failed.zero_()
            raise BackendUnavailable(
                "the persistent kernel gave up: a program of its grid did not arrive at a barrier; use executor='graph'"
            )


class Loaded:
    """A batch in buffers of its own, which no other call shares, and the launch over it.

    `latents` [n, B, L, D] are updated in place. A launch also writes `q` [B, L, 2] float32, the halting head at every
    position of the output latent, and `change` [B] float32, |dy| / |y| of that latent; `q` is None without a head, and
    `change` where the program does not carry its output.
    """

    @torch.inference_mode(False)
    def __init__(self, recursion: PersistentRecursion, given: Mapping[str, Tensor]) -> None:
        self.recursion, program, number = recursion, recursion.program, recursion.number
        data, blocks, layout = recursion.weights.data, recursion.row.blocks, recursion.weights.layout
        batch, length, width = len(given[INPUT]), layout.length, layout.width
        rows, names = batch * length, len(number)
        self.latents = data.new_empty(names, batch, length, width)
        for name, value in given.items():
            self.latents[number[name]].copy_(value)
        self._mixed = data.new_empty(rows * width)
        self._inner = data.new_empty(rows * layout.inner_width)
        self._partials = data.new_empty(rows * names * -(width // -blocks["DOWN_D"]), dtype=torch.float32)
        self._mixed_partials = data.new_empty(rows * -(width // -blocks["MIX_D"]), dtype=torch.float32)
        self._barrier = data.new_zeros(1, dtype=torch.int64)
        changes = program.output in program.carried
        self._previous = given[program.output].to(data.dtype).contiguous() if changes else data.new_empty(0)
        self.change = data.new_empty(batch, dtype=torch.float32) if changes else None
        self.q = None if recursion.head is None else data.new_empty(batch, length, 2, dtype=torch.float32)

    def values(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latents `given` to `load` and those written since, by name; views [B, L, D] of those on the tape."""
        number, names = self.recursion.number, dict.fromkeys((*given, *self.recursion.written))
        return {name: self.latents[number[name]] if name in number else given[name] for name in names}

    @ranged(lambda self: f"recursion {self.recursion.program.name}, persistent")
    def step(self) -> None:
        """One launch: the whole program, the halting head and the change of the output latent."""
        from rtm_kernels.recursion.persistent.kernel import recursion_kernel

        made, batch = self.recursion, self.latents.shape[1]
        layout, nothing = made.weights.layout, self._mixed_partials
        if batch == 0:
            return
        _, mix_down, gate_up, down, layer_size = layout.offsets
        weight, bias = made.head or (nothing, nothing)
        with torch.cuda.device_of(self.latents):
            launch(
                recursion_kernel, made.row, (made.grid,),
                self.latents, nothing if self.q is None else self.q, nothing if self.change is None else self.change,
                self._partials, self._mixed, self._mixed_partials, self._inner, self._barrier, made.failed,
                made.weights.data, made.tape, made.normed, self._previous, weight, bias,
                batch, len(made.tape), len(made.normed), made.number[made.program.output], made.weights.eps,
                L=layout.length, D=layout.width, INNER_L=layout.inner_len, INNER_D=layout.inner_width,
                MIX_DOWN_AT=mix_down, GATE_UP_AT=gate_up, DOWN_AT=down, LAYER_SIZE=layer_size, MAX_TERMS=MAX_TERMS,
                NORM_HIDDEN=made.weights.norm_axis == "hidden", HAS_HEAD=self.q is not None,
                HAS_CHANGE=self.change is not None,
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
    Each call has buffers of its own, so calls of several threads and streams do not meet. Inference only: results carry
    no gradient. `check` refuses results where a launch gave up.

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
        weights = PackedLayers({name: stacks[name] for name in program.stacks}, dtype)
        self.recursion = PersistentRecursion(program, weights, head=head)
        self.check = self.recursion.check

    def run(self, latents: Mapping[str, Tensor], x: Tensor) -> Launched:
        """One pass of the program from latents and input x [B, L, D]; nothing that is given is modified.

        Errors: `InputError` when a gradient is asked for, a latent is missing, or a shape is wrong.
        """
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*latents.values(), x)):
            raise InputError("requires_grad=True is not allowed: the persistent kernel has no backward; use no_grad()")
        loaded = self.recursion.load(latents, x)
        loaded.step()
        return Launched(loaded.values(latents), loaded.q, loaded.change)
