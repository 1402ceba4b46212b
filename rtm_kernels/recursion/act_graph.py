"""ACT steps with halting, captured once and repeated in place until every sample has halted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields

import torch
from torch import Tensor

from rtm_kernels.errors import InputError, one_of
from rtm_kernels.ops.halting.reference import HaltingState, initial_state
from rtm_kernels.program import Program
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.act_step import act_step_, require_latents
from rtm_kernels.recursion.conditional import while_active
from rtm_kernels.recursion.graph import Capture, CudaGraphs
from rtm_kernels.recursion.head import HaltingHead, copy_state, reset_state

LOOPS = ("poll", "while")
"""`poll`: the host reads one flag between replays; `while`: the device decides, and the run is one launch."""


class ActGraph:
    """The ACT steps of a fixed batch, in place over static buffers; one CUDA graph is one ACT step.

    Samples that have halted keep their latents and halting state, so a sample's result and halting step are those of
    running it alone with the same bucket. Weights are read where they lie. Inference only.

    Args:
        stacks: as `recursion.reference.run` takes them. latents, x: the first inputs [B, L, D]; they fix shapes, and
            every latent that the program carries, and its output under the policy `settle`, must be there.
        loop: one of `LOOPS`. capture: the recorder, by default CUDA graphs on the device of x.

    Errors: `BackendUnavailable` without a CUDA device or, for `while`, without what `conditional.why_not` names.
    """

    def __init__(
        self,
        program: Program,
        stacks: Mapping[str, reference.Stack],
        head: HaltingHead,
        latents: Mapping[str, Tensor],
        x: Tensor,
        *,
        loop: str = "poll",
        capture: Capture | None = None,
    ) -> None:
        one_of("loop", loop, LOOPS)
        self.program, self.stacks, self.head, self.loop = program, stacks, head, loop
        require_latents(program, head, latents)
        self._capture = CudaGraphs(x.device) if capture is None else capture
        self.x = torch.empty_like(x)
        self.latents = {name: torch.empty_like(x) for name in dict.fromkeys((*program.latents, *latents))}
        units = head.units(x.shape[1])
        self.state = initial_state(len(x), units, x.device)
        self.logits = torch.zeros(len(x), units, 2, dtype=torch.float32, device=x.device)
        self.steps = torch.zeros(1, dtype=torch.int32, device=x.device)
        self._replay: Callable[[], None] | None = None
        self._until_halted: Callable[[], None] = self._poll
        self.load(latents, x)

    def load(self, latents: Mapping[str, Tensor], x: Tensor, state: HaltingState | None = None) -> None:
        """Copy latents, input and halting state in; latents that are not given become 0, and without a state all
        samples start afresh."""
        self.x.copy_(x)
        for name, buffer in self.latents.items():
            buffer.copy_(latents[name]) if name in latents else buffer.zero_()
        reset_state(self.state, len(self.x)) if state is None else copy_state(self.state, state)

    def step(self) -> None:
        """One ACT step: one replay."""
        replay = self._captured()
        with self._capture.exclusive():
            replay()

    def run(self) -> int:
        """ACT steps until every sample has halted, at most `head.max_steps`; returns how many were taken."""
        self._captured()
        with self._capture.exclusive():
            self._until_halted()
            return int(self.steps.item())

    def _poll(self) -> None:
        replay = self._captured()
        taken = 0
        while taken < self.head.max_steps and bool(self.state.active.any()):
            replay()
            taken += 1
        self.steps.fill_(taken)

    def _captured(self) -> Callable[[], None]:
        if self._replay is not None:
            return self._replay
        tensors = [self.logits, *self.latents.values(), *(getattr(self.state, f.name) for f in fields(HaltingState))]
        before = [tensor.clone() for tensor in tensors]
        with self._capture.exclusive():
            if self.loop == "while":
                if not isinstance(self._capture, CudaGraphs):
                    raise InputError("loop='while' is not allowed: it nests CUDA graphs, and `capture` records others")
                graph, _ = self._capture.record(self._act_step)
                self._replay = graph.replay
                self._until_halted = while_active(graph, self.state.active, self.steps, self.head.max_steps)
            else:
                self._replay, _ = self._capture.capture(self._act_step)
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        return self._replay

    def _act_step(self) -> dict[str, Tensor]:
        act_step_(self.program, self.stacks, self.head, self.latents, self.x, self.state, self.logits)
        return {}
