"""Forward and backward pass of an objective in CUDA graphs, one for each stage and each program that it draws."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from rtm_kernels.model import Carry, RecursiveReasoner
from rtm_kernels.recursion.graph import Capture, Tensors
from rtm_kernels.recursion.train_graph import LEAF, TrainGraph
from rtm_kernels.train.observe import Sums, observe
from rtm_kernels.train.update import Rows

LATENT, DATA, SUM = "latent ", "data ", "sum "
"""Prefixes of a carry's parts and of a step's metrics, which enter and leave a graph as named tensors."""


def compute(
    model: RecursiveReasoner, head: nn.Module, carry: Carry, part: Tensors, deepest: int
) -> tuple[Carry, Tensor, Sums]:
    """The loss of `head` on one part of a batch, summed over it, the carry after it, and sums of its metrics."""
    after, loss, metrics, outputs, _ = head(("q_halt_logits",), carry=carry, batch=part)
    return after, loss, {**metrics, **observe(model, carry, after, outputs, deepest), "loss": loss.detach()}


class CapturedLoss:
    """Called as `compute` is, and adds the gradients of `loss / scale` to `p.grad`, bit for bit as an eager call.

    `key` names what decides the operations: the stage, and what `head.draw()` gave. The first call of a key runs
    eagerly, to see which parameters take part; the second captures; further ones replay.
    """

    def __init__(self, model: RecursiveReasoner, head: nn.Module, deepest: int, capture: Capture) -> None:
        self.model, self.head, self.deepest, self.capture = model, head, deepest, capture
        self._used: dict[Hashable, list[nn.Parameter]] = {}
        self._graphs: dict[Hashable, TrainGraph] = {}

    def __call__(self, key: Hashable, carry: Carry, part: Tensors, scale: float) -> tuple[Carry, Sums, Rows | None]:
        """The carry after one part, the sums of its metrics, and its puzzle rows if the model embeds puzzles."""
        if key not in self._used:
            return self._eagerly(key, carry, part, scale)
        if key not in self._graphs:
            sizes = (len(carry.halted),)
            self._graphs[key] = TrainGraph(
                lambda batch: self._loss(batch, scale), self._used[key], sizes=sizes, leaves=self._leaves,
                capture=self.capture,
            )  # fmt: skip
        found = self._graphs[key](_pack(carry, part))
        after = Carry(_part(found, LATENT), found["steps"], found["halted"], _part(found, DATA))
        return after, _part(found, SUM), self._rows(after, list(_part(found, LEAF).values()))

    def _leaves(self) -> list[Tensor]:
        return [self.model.puzzle_emb.local_weights] if self.model.config.puzzle_emb_ndim > 0 else []

    def _rows(self, after: Carry, gradients: Sequence[Tensor]) -> Rows | None:
        return (after.current_data["puzzle_identifiers"], gradients[0]) if gradients else None

    def _eagerly(self, key: Hashable, carry: Carry, part: Tensors, scale: float) -> tuple[Carry, Sums, Rows | None]:
        after, loss, sums = compute(self.model, self.head, carry, part, self.deepest)
        parameters = list(self.model.parameters())
        found = torch.autograd.grad(loss / scale, [*parameters, *self._leaves()], allow_unused=True)
        gradients, rows = found[: len(parameters)], found[len(parameters) :]
        self._used[key] = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return after, sums, self._rows(after, rows)

    def _loss(self, batch: Tensors, scale: float) -> tuple[Tensor, Tensors]:
        carry = Carry(_part(batch, LATENT), batch["steps"], batch["halted"], _part(batch, DATA))
        part = {name: value for name, value in batch.items() if name in carry.current_data}
        after, loss, sums = compute(self.model, self.head, carry, part, self.deepest)
        return loss / scale, {**_pack(after, {}), **{f"{SUM}{name}": value for name, value in sums.items()}}


def _pack(carry: Carry, part: Tensors) -> Tensors:
    return {
        **part,
        **{f"{LATENT}{name}": value for name, value in carry.latents.items()},
        **{f"{DATA}{name}": value for name, value in carry.current_data.items()},
        "steps": carry.steps,
        "halted": carry.halted,
    }


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
