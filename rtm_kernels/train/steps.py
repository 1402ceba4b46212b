"""What every trainer shares: the update of a step or its refusal, and the state that a run is resumed from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rtm_kernels.carry import Carry
from rtm_kernels.errors import RTMError
from rtm_kernels.train.update import Average, CapturedUpdate, Rows, Update

Metrics = dict[str, float]
Sums = dict[str, Tensor]
PATIENCE = 3
"""Steps in a row whose gradient may be non-finite; the last of them ends the run."""


class Diverged(RTMError):
    """Several gradients in a row were not finite."""


class Steps:
    """The state of a run between its steps. What computes a step is a subclass."""

    step: Callable[[], Metrics]
    """Takes one optimiser step."""
    work: Callable[[], tuple[float, float]]
    """How many of `unit` the last step took, and its useful FLOPs, both on this rank's share."""
    unit = "samples"
    recipe: Any
    model: nn.Module
    device: torch.device
    stream: Any
    update: Update
    optimizers: list[torch.optim.Optimizer]
    average: Average
    captured_update: CapturedUpdate | None = None
    rank, world_size = 0, 1
    step_count = skipped = in_a_row = 0
    step_seconds = 0.0
    """How long the last step took, set by who runs it."""
    last_good: str | None = None
    """Where the last state that can be resumed from was saved."""
    position: str
    """The stream's position before the batch of the next step, which may be drawn already."""
    _drawn: dict[str, Tensor] | None = None

    def __init__(self) -> None:
        self.carries: dict[tuple[int, int], Carry] = {}
        """The carry of each part of a batch, by the part and the length of its puzzles."""

    def move_to(self, position: str) -> None:
        """Go on with the batches from a position of the stream."""
        self.stream.load_state(position)
        self.position, self._drawn = position, None

    def _finish(self, sums: Sums, rows: Rows | None) -> tuple[Metrics, float]:
        """Apply the update, or skip it if a gradient is not finite; sums of metrics and the gradient's norm."""
        self.update.schedule(self.step_count)
        capture = self.captured_update if self.average.started else None
        found = self.update.clip(rows) if capture is None else capture(rows)
        *totals, norm, bad = torch.cat((torch.stack([*sums.values()]), found)).tolist()  # one wait for the device
        if bad:
            self._skip()
        else:
            if capture is None:
                self.update.apply(rows)
                self.model.zero_grad(set_to_none=True)
            self.in_a_row = 0
        return dict(zip(sums, totals, strict=True)), norm

    def _skip(self) -> None:
        """Keep the weights and restart from fresh latents, because the latents may be what is not finite."""
        self.model.zero_grad(set_to_none=True)
        self.carries = {}
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == PATIENCE:
            good = self.last_good or "none was saved"
            raise Diverged(
                f"the gradient was not finite in {PATIENCE} steps in a row, up to step {self.step_count}; "
                f"last good state: {good}"
            )
