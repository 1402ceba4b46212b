"""PersistentRecursion: the buffers of one program, batch size and set of weights, and the launch over them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError, require
from rtm_kernels.impl import triton_interpreted, why_not_triton
from rtm_kernels.ops.halting.mixture import HaltingState, initial_state
from rtm_kernels.ops.launch import LaunchRow, launch, select
from rtm_kernels.program import INPUT, Program
from rtm_kernels.ranges import ranged
from rtm_kernels.recursion.head import HaltingHead, copy_state, reset_state
from rtm_kernels.recursion.persistent.instructions import instructions
from rtm_kernels.recursion.persistent.launch import KERNEL, TABLE
from rtm_kernels.recursion.persistent.pack import PackedWeights
from rtm_kernels.recursion.tape import MAX_TERMS, encode


def why_not_here(device: torch.device, dtype: torch.dtype, length: int) -> str | None:
    """What keeps the kernel from running in `dtype` at sequence length L on `device`, or None when it can."""
    reason = why_not_triton(device)
    if reason is not None:
        return reason
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the persistent kernel does not compute {dtype}"
    if dtype == torch.bfloat16 and triton_interpreted():
        return f"Triton's interpreter cannot compute {dtype}"
    try:
        select(TABLE, KERNEL, dtype, length)
    except BackendUnavailable as error:
        return str(error)
    return None


def multiprocessors(device: torch.device) -> int:
    """Programs of one launch: the multiprocessors of a GPU, and one in the interpreter, where none can wait."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


class PersistentRecursion:
    """Buffers and launch of the persistent kernel for one program, batch size and set of packed weights.

    `latents` [slots, B, L, D] are updated in place; `slot[name]` finds a latent, and slot 0 is the input x. All
    buffers are static, so a launch can be captured in a CUDA graph, and `weights.update` takes effect in the next
    launch. The bits of a sample's result depend neither on the rest of the batch nor on the grid size. Inference
    only. On the meta device nothing runs: the compile gate uses it.

    Args:
        batch: B. head: halting head and policy; without one the program runs and nothing halts.
        row: launch row, by default that of the table. grid: number of programs, all resident at once; by default
            one per multiprocessor.

    Errors: `BackendUnavailable` when the kernel cannot run on the device of the weights, in their dtype, or at L.
    """

    @torch.inference_mode(False)  # buffers that may be written in any mode
    def __init__(
        self,
        program: Program,
        weights: PackedWeights,
        batch: int,
        *,
        head: HaltingHead | None = None,
        row: LaunchRow | None = None,
        grid: int | None = None,
    ) -> None:
        device, dtype, layout = weights.data.device, weights.data.dtype, weights.layout
        reason = why_not_here(device, dtype, layout.length) if device.type != "meta" else None
        if reason is not None:
            raise BackendUnavailable(f"the persistent kernel cannot run: {reason}")
        require(batch >= 0, "batch", batch, "at least 0")
        self.program, self.weights, self.head, self.batch = program, weights, head, batch
        self.loaded = batch
        self.row = select(TABLE, KERNEL, dtype, layout.length) if row is None else row
        self.grid = multiprocessors(device) if grid is None else grid
        tape = encode(program)
        self.plan = instructions(tape, weights.stack_layers)
        self.slot = {name: i for i, name in enumerate(tape.slots)}
        self.tape, self.written, self.output = self.plan.rows.to(device), self.plan.written.to(device), tape.output
        self.latents = torch.empty(len(tape.slots), batch, layout.length, layout.width, dtype=dtype, device=device)
        self.busy = torch.ones(batch, dtype=torch.int32, device=device)
        self.barrier = torch.zeros(1, dtype=torch.int64, device=device)
        self._allocate_scratch()
        self._allocate_halting()

    def _allocate_scratch(self) -> None:
        slots, batch, length, width = self.latents.shape
        make, blocks = self.latents.new_empty, self.row.blocks
        self.mixed = make(batch, length, width)
        self.inner = make(batch, length, self.weights.layout.inner_width)
        self.partials = make(slots, batch, length, -(width // -blocks["DOWN_D"]), dtype=torch.float32)
        self.mixed_partials = make(batch, length, -(width // -blocks["MIX_D"]), dtype=torch.float32)

    def _allocate_halting(self) -> None:
        _, batch, length, width = self.latents.shape
        device, head = self.latents.device, self.head
        units = 1 if head is None else head.units(length)
        self.state = initial_state(batch, units, device)
        self.logits = torch.zeros(batch, units, 2, dtype=torch.float32, device=device)
        self.min_steps = torch.ones(batch, dtype=torch.int32, device=device)
        self.head_weight = torch.zeros(1, dtype=torch.float32, device=device)
        settles = head is not None and head.policy == "settle"
        self.previous = self.latents.new_empty((batch, length, width) if settles else (1,))
        if head is not None:
            self.head_weight = head.packed(width, device)
            self.min_steps[:] = head.min_steps

    @property
    def scratch(self) -> tuple[Tensor, ...]:
        """Buffers whose content never matters between launches."""
        return self.mixed, self.inner, self.partials, self.mixed_partials

    def load(self, latents: Mapping[str, Tensor], x: Tensor, state: HaltingState | None = None) -> None:
        """Copy latents, input x [B, L, D] and halting state in; without a state every sample starts afresh.

        Fewer samples than the batch of this object may come, without a state: the places behind them stay idle.

        Errors: `InputError` for a tensor of another shape, or a latent that is missing and read before it is written.
        """
        needed = list(self.program.carried)
        if self.head is not None and (self.head.policy == "settle" or self.program.output not in self._written()):
            needed.append(self.program.output)
        missing = sorted(set(needed) - set(latents))
        if missing:
            raise InputError(f"latents={sorted(latents)} is not allowed: {', '.join(missing)} is read and not given")
        self.loaded = x.shape[0]
        require(self.loaded <= self.batch, "batch", self.loaded, f"at most {self.batch}")
        shape = (self.loaded, *self.latents.shape[2:])
        for name, value in {**latents, INPUT: x}.items():
            if name in self.slot:
                require(tuple(value.shape) == shape, name, tuple(value.shape), f"[B, L, D] = {shape}")
                self.latents[self.slot[name], : self.loaded].copy_(value)
        reset_state(self.state, self.loaded) if state is None else copy_state(self.state, state)
        self.busy.copy_(self.state.active_samples)
        if self.head is not None and self.head.policy == "settle":
            self.previous[: self.loaded].copy_(latents[self.program.output])

    def values(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latents `given` to `load` and those written since, by name; views [B, L, D] of those on the tape."""
        names = dict.fromkeys((*given, *self._written()))
        return {
            name: self.latents[self.slot[name], : self.loaded] if name in self.slot else given[name] for name in names
        }

    def _written(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(step.dst for step in self.program.steps))

    @ranged(lambda self, *_: f"recursion {self.program.name}, persistent")
    def step(self, act_steps: int = 1) -> None:
        """One launch: up to `act_steps` ACT steps, fewer once every sample has halted.

        Without a head the program runs `act_steps` times.
        """
        from rtm_kernels.recursion.persistent.kernel import recursion_kernel

        if self.batch == 0:
            return
        head, state, layout = self.head, self.state, self.weights.layout
        _, mix_down, gate_up, down, layer_size = layout.offsets
        with torch.cuda.device_of(self.latents):
            launch(
                recursion_kernel, self.row, (self.grid,),
                self.latents, self.partials, self.mixed, self.mixed_partials, self.inner, self.busy, self.barrier,
                self.logits, state.steps, state.active, state.accumulated, state.weight, state.remainder, self.previous,
                self.weights.data, self.tape, self.written, self.head_weight, self.min_steps,
                self.batch, len(self.tape), len(self.written), self.output, act_steps,
                head.max_steps if head else 0, self.weights.eps, head.tolerance if head else 0.0,
                L=layout.length, D=layout.width, INNER_L=layout.inner_len, INNER_D=layout.inner_width,
                MIX_DOWN_AT=mix_down, GATE_UP_AT=gate_up, DOWN_AT=down, LAYER_SIZE=layer_size, MAX_TERMS=MAX_TERMS,
                NORM_HIDDEN=self.weights.norm_axis == "hidden",
                POLICY=head.policy if head else "none", POOL=head.pool if head else "first",
                launch_cooperative_grid=True,
            )  # fmt: skip
