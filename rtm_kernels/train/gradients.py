"""Forward and backward pass of an objective, eager or as CUDA graphs, and what is measured in it besides the loss."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from rtm_kernels.carry import Carry
from rtm_kernels.losses import CONFIDENCE, DELTA, Head
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.recursion.graph import CudaGraphs, Tensors
from rtm_kernels.recursion.train_graph import LEAF, TrainGraph
from rtm_kernels.train.update import Rows

Sums = dict[str, Tensor]
DEPTH = "depth_"
"""Metrics `depth_d`: samples that halted after d ACT steps."""
LATENT, DATA, SUM = "latent.", "data.", "sum."
"""Prefixes of a carry's parts and of a step's metrics as named tensors, which enter and leave a graph or a file."""


class Gradients:
    """Adds the gradients of `loss / scale` to `p.grad`; with `capture` as replayed graphs, bit for bit the same.

    `key` names what decides the operations: the stage, and what `head.draw()` gave. The first call of a key runs
    eagerly, to see which parameters take part; the second captures; further ones replay.
    """

    def __init__(self, model: RecursiveReasoner, head: Head, deepest: int, capture: CudaGraphs | None) -> None:
        self.model, self.head, self.deepest, self.capture = model, head, deepest, capture
        self._used: dict[Hashable, list[nn.Parameter]] = {}
        self._graphs: dict[Hashable, TrainGraph] = {}

    def __call__(self, key: Hashable, carry: Carry, batch: Tensors, scale: float) -> tuple[Carry, Sums, Rows | None]:
        """The carry after one part of a batch, the sums of its metrics, and its puzzle rows if puzzles are embedded."""
        if self.capture is None or key not in self._used:
            return self._eagerly(key, carry, batch, scale)
        if key not in self._graphs:
            sizes = (len(carry.halted),)
            self._graphs[key] = TrainGraph(
                lambda named: self._loss(named, scale), self._used[key], sizes=sizes, leaves=self._leaves,
                capture=self.capture,
            )  # fmt: skip
        found = self._graphs[key](batch | pack(carry))
        after = unpack(found)
        return after, part(found, SUM), self._rows(after, list(part(found, LEAF).values()))

    def _leaves(self) -> list[Tensor]:
        return [self.model.puzzle_emb.local_weights] if self.model.config.puzzle_emb_ndim > 0 else []

    def _rows(self, after: Carry, gradients: Sequence[Tensor]) -> Rows | None:
        return (after.current_data["puzzle_identifiers"], gradients[0]) if gradients else None

    def _compute(self, carry: Carry, batch: Tensors) -> tuple[Carry, Tensor, Sums]:
        carry = self.head.enter(carry, batch)
        after, loss, metrics, outputs, _ = self.head(("q_halt_logits",), carry=carry, batch=batch)
        observed = observe(self.model, carry, after, outputs, self.deepest)
        return after, loss, {**metrics, **observed, "loss": loss.detach()}

    def _eagerly(self, key: Hashable, carry: Carry, batch: Tensors, scale: float) -> tuple[Carry, Sums, Rows | None]:
        after, loss, sums = self._compute(carry, batch)
        parameters = list(self.model.parameters())
        before = [p.grad for p in parameters]
        self.model.zero_grad(set_to_none=True)
        (loss / scale).backward()
        self._used[key] = [p for p in parameters if p.grad is not None]
        for parameter, held in zip(parameters, before, strict=True):
            if held is not None:
                parameter.grad = held if parameter.grad is None else held + parameter.grad
        return after, sums, self._rows(after, [leaf.grad for leaf in self._leaves() if leaf.grad is not None])

    def _loss(self, named: Tensors, scale: float) -> tuple[Tensor, Tensors]:
        carry = unpack(named)
        after, loss, sums = self._compute(carry, {name: named[name] for name in carry.current_data})
        return loss / scale, {**pack(after), **{f"{SUM}{name}": value for name, value in sums.items()}}


def pack(carry: Carry) -> Tensors:
    """The parts of a carry as named tensors."""
    latents = {f"{LATENT}{name}": value for name, value in carry.latents.items()}
    data = {f"{DATA}{name}": value for name, value in carry.current_data.items()}
    return {**latents, **data, "steps": carry.steps, "halted": carry.halted}


def unpack(tensors: Tensors) -> Carry:
    """The carry that `pack` named; other tensors are left out."""
    return Carry(part(tensors, LATENT), tensors["steps"], tensors["halted"], part(tensors, DATA))


def part(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def depth_counts(steps: Tensor, halted: Tensor, deepest: int) -> Sums:
    """`depth_1` ... `depth_deepest`: how many of `halted` [B] have taken so many `steps` [B], without a sync."""
    depths = torch.arange(1, deepest + 1, device=steps.device)
    counts = ((steps[:, None] == depths) & halted[:, None]).sum(0)
    return {f"{DEPTH}{d}": counts[d - 1] for d in range(1, deepest + 1)}


@torch.no_grad()
def observe(model: RecursiveReasoner, before: Carry, after: Carry, outputs: dict[str, Tensor], deepest: int) -> Sums:
    """Sums over the batch of what `DEPTH`, `CONFIDENCE` and `DELTA` name, where the objective has them.

    `outputs` are the head's: `q_halt_logits` [B], or `steps` [B] of a head that runs all of a sample's steps at once.
    """
    if "steps" in outputs:
        steps = outputs["steps"]
        return depth_counts(steps, torch.ones_like(steps, dtype=torch.bool), deepest)
    if "q_halt_logits" not in outputs:
        return {}
    sums = depth_counts(after.steps, after.halted, deepest)
    sums[CONFIDENCE] = torch.sigmoid(outputs["q_halt_logits"]).sum()
    y = model.program.output
    if y in before.latents:
        fresh = model.initial_latents(len(before.halted))[y]
        previous = torch.where(before.halted.view(-1, 1, 1), fresh, before.latents[y])
        sums[DELTA] = relative_change(after.latents[y], previous).sum()
    return sums
