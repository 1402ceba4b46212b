"""TrainGraph: forward, backward and optimiser of one training step on static buffers, replayed from CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from rtm_kernels.errors import require
from rtm_kernels.recursion.graph import Capture, GraphRunner, Tensors

Loss = Callable[[Tensors], tuple[Tensor, Tensors]]
"""Named batch tensors [B, ...] to the scalar loss, and named results of any shape: metrics, the new carry."""

GRADIENT, LEAF = "gradient ", "leaf gradient "
"""Prefixes under which the gradients leave the graph, of parameters and of what `leaves` gives."""


class TrainGraph:
    """The entry point of training: `loss(batch)` and its gradients, and the optimiser's step, as one graph per size.

    Without optimisers a call does what `loss(batch)[0].backward()` does: gradients are added to `p.grad`, which
    clipping, finiteness checks, all-reduce and any optimiser then work on as always. With optimisers the call is the
    whole step, and `p.grad` is not touched. Either way the results are copies, the loss under `"loss"`, and replays
    have the bits of eager calls. What one step hands to the next (a carry) goes in as batch tensors and comes out as
    results. Random numbers of the CUDA generator go on from call to call as they would without a graph.

    A size is captured when it first comes, with one log line; the batches of a stage have one size, so list those.
    Capturing leaves no trace in parameters, optimiser state, `mutates` and the generator.

    Args:
        loss: must not wait for the GPU (`.item()`, `nonzero`) and must do the same operations in every call.
        parameters: those that get gradients; all of them must take part in the loss.
        optimizers: captured optimisers over `parameters`. On a GPU their groups need `capturable=True`, and `lr` as a
            tensor on the device, which a schedule fills in place: a number would stay what it was when captured.
        leaves: called after `loss`; leaf tensors that it made and whose gradients become the results `leaf gradient 0`,
            …: the rows of a puzzle embedding, `lambda: [model.puzzle_emb.local_weights]`, for its sparse optimiser.
        sizes: ascending batch sizes, each with its own graph. mutates: other tensors that `loss` updates in place.
        capture: the recorder, by default CUDA graphs on the device of the first batch.

    Errors: `InputError` for a batch of another size or an optimiser that cannot be captured; `BackendUnavailable`
    without a CUDA device.
    """

    def __init__(
        self,
        loss: Loss,
        parameters: Iterable[Tensor],
        optimizers: Sequence[Optimizer] = (),
        *,
        sizes: Sequence[int],
        leaves: Callable[[], Sequence[Tensor]] = tuple,
        mutates: Iterable[Tensor] = (),
        capture: Capture | None = None,
    ) -> None:
        self._loss, self._optimizers, self._parameters = loss, tuple(optimizers), tuple(parameters)
        self._leaves = leaves
        for optimizer in self._optimizers:
            _require_capturable(optimizer)
            fill_state(optimizer)
        # an optimiser may hold on to where the gradients lie
        self._in_place = [torch.empty_like(p) for p in self._parameters] if self._optimizers else []
        kept = dict.fromkeys((*self._parameters, *mutates, *(t for o in self._optimizers for t in state_of(o))))
        self._runner = GraphRunner(
            self._step, max_batch=sizes[-1], buckets=sizes, mutates=kept, exact=True, capture=capture
        )

    @property
    def captured(self) -> tuple[int, ...]:
        """Batch sizes captured so far."""
        return self._runner.captured

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensors:
        """One step on `batch`; `loss` and the results of the loss function."""
        results = self._runner(batch)
        for i, parameter in enumerate(self._parameters):
            gradient = results.pop(f"{GRADIENT}{i}", None)
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return results

    def _step(self, batch: Tensors) -> Tensors:
        with torch.enable_grad():
            loss, results = self._loss(batch)
            leaves = tuple(self._leaves())
            gradients = torch.autograd.grad(loss, (*self._parameters, *leaves))
        found = {"loss": loss.detach(), **{name: value.detach() for name, value in results.items()}}
        found |= {f"{LEAF}{i}": gradient for i, gradient in enumerate(gradients[len(self._parameters) :])}
        gradients = gradients[: len(self._parameters)]
        if not self._optimizers:
            return {**found, **{f"{GRADIENT}{i}": gradient for i, gradient in enumerate(gradients)}}
        before = [parameter.grad for parameter in self._parameters]
        for parameter, gradient, place in zip(self._parameters, gradients, self._in_place, strict=True):
            parameter.grad = place.copy_(gradient)
        for optimizer in self._optimizers:
            optimizer.step()
        for parameter, kept in zip(self._parameters, before, strict=True):
            parameter.grad = kept
        return found


def _groups(optimizer: Optimizer) -> Iterator[tuple[dict[str, object], list[Tensor]]]:
    for group in optimizer.param_groups:
        yield group, group["params"]


def _require_capturable(optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    for group, parameters in _groups(optimizer):
        if any(parameter.is_cuda for parameter in parameters):
            capturable, rate = group.get("capturable"), group["lr"]
            require(capturable is True, f"capturable of {name}", capturable, "True, or step it after the call")
            on_device = isinstance(rate, Tensor) and rate.is_cuda
            require(on_device, f"lr of {name}", rate, "a tensor on the device, which the schedule fills")


def state_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """Every tensor that the optimiser keeps."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


@torch.no_grad()
def fill_state(optimizer: Optimizer) -> None:
    """Let the optimiser allocate what it keeps per parameter, at zero, where it has not yet."""
    new = [p for _, parameters in _groups(optimizer) for p in parameters if not optimizer.state.get(p)]
    if not new:
        return
    every = [p for _, parameters in _groups(optimizer) for p in parameters]
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
