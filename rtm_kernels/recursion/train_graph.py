"""TrainGraph: forward and backward of one training step on static buffers, replayed from CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from rtm_kernels.recursion.graph import CudaGraphs, GraphRunner, Tensors

Loss = Callable[[Tensors], tuple[Tensor, Tensors]]
"""Named batch tensors [B, ...] to the scalar loss, and named results of any shape: metrics, the new carry."""

GRADIENT, LEAF = "gradient ", "leaf gradient "
"""Prefixes under which the gradients leave the graph, of parameters and of what `leaves` gives."""


class TrainGraph:
    """`loss(batch)` and its gradients as one graph per batch size.

    A call does what `loss(batch)[0].backward()` does: gradients are added to `p.grad`. The results are copies, the
    loss under `"loss"`, and replays have the bits of eager calls. What one step hands to the next (a carry) goes in as
    batch tensors and comes out as results. Random numbers of the CUDA generator go on from call to call as they would
    without a graph. A size is captured when it first comes, with one log line.

    Args:
        loss: must not wait for the GPU (`.item()`, `nonzero`), must do the same operations in every call, and updates
            no tensor in place that it does not return.
        parameters: those that get gradients; all of them must take part in the loss.
        sizes: ascending batch sizes, each with its own graph.
        leaves: called after `loss`; leaf tensors that it made and whose gradients become the results `leaf gradient 0`,
            ...: the rows of a puzzle embedding, `lambda: [model.puzzle_emb.local_weights]`, for its sparse optimiser.
        capture: the recorder, by default CUDA graphs on the device of the first batch.

    Errors: `InputError` for a batch of another size; `BackendUnavailable` without a CUDA device.
    """

    def __init__(
        self,
        loss: Loss,
        parameters: Iterable[Tensor],
        *,
        sizes: Sequence[int],
        leaves: Callable[[], Sequence[Tensor]] = tuple,
        capture: CudaGraphs | None = None,
    ) -> None:
        self._loss, self._parameters, self._leaves = loss, tuple(parameters), leaves
        self._runner = GraphRunner(self._step, max_batch=sizes[-1], buckets=sizes, exact=True, capture=capture)

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensors:
        """One step on `batch`; `loss` and the results of the loss function."""
        results = self._runner(batch)
        for i, parameter in enumerate(self._parameters):
            gradient = results.pop(f"{GRADIENT}{i}")
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return results

    def _step(self, batch: Tensors) -> Tensors:
        with torch.enable_grad():
            loss, results = self._loss(batch)
            gradients = torch.autograd.grad(loss, (*self._parameters, *self._leaves()))
        count = len(self._parameters)
        found = {"loss": loss.detach(), **{name: value.detach() for name, value in results.items()}}
        found |= {f"{GRADIENT}{i}": gradient for i, gradient in enumerate(gradients[:count])}
        return found | {f"{LEAF}{i}": gradient for i, gradient in enumerate(gradients[count:])}


def state_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """Every tensor that the optimiser keeps."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


@torch.no_grad()
def fill_state(optimizer: Optimizer) -> None:
    """Let the optimiser allocate what it keeps per parameter, at zero, where it has not yet."""
    every = [p for group in optimizer.param_groups for p in group["params"]]
    new = [p for p in every if not optimizer.state.get(p)]
    if not new:
        return
    values, gradients = [p.clone() for p in new], [p.grad for p in every]
    for p in every:
        p.grad = None
    for p in new:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, value in zip(new, values, strict=True):
        p.copy_(value)
        for kept in optimizer.state[p].values():
            if isinstance(kept, Tensor):
                kept.zero_()
    for p, gradient in zip(every, gradients, strict=True):
        p.grad = gradient
