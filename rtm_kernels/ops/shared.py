"""Weights that the calls of a recursion share: cast and packed once, their gradients one product over all calls.

Within `shared_weights()` an op does not give a gradient of its weights. Its backward leaves the rows that the product
needs (the half layer's input and the gradients of what it computed) in slots of one buffer, and the weights' own node
of the graph, which autograd runs after the last call, multiplies the whole buffer at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

STACK_BYTES = 512 << 20
"""Rows that one pair of weights keeps before it multiplies them; a product over more rows gains nothing."""

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class SharedOp:
    """What the shared path needs of an op. `options` are the op's other arguments, the same in both directions.

    pack(*weights, dtype): the weights as the kernels read them, detached.
    forward(x, *packed, injection, *options): y and what else the backward reads, saved.
    slots(x, *packed, *options): the shapes that input_grad fills for weight_grad, each with the batch first.
    input_grad(dy, y, *saved, x, *packed, injection, *options, slots): the gradient of x and of every injection term.
    weight_grad(slots, *packed, *options): the gradients of the packed weights in float32 or wider.
    unpack(*grads, *weights): the same in the shapes and dtypes of the weights.
    """

    pack: Callable[..., Tensors]
    forward: Callable[..., Tensors]
    slots: Callable[..., Sequence[tuple[int, ...]]]
    input_grad: Callable[..., Tensor]
    weight_grad: Callable[..., Tensors]
    unpack: Callable[..., Tensors]


class Shared:
    """The weights of one op in the compute dtype, and the rows that its calls left for their gradients."""

    def __init__(self, op: SharedOp, weights: Tensors, dtype: torch.dtype, options: tuple[Any, ...]):
        self.op, self.weights, self.options = op, weights, options
        with torch.no_grad():
            self.packed = op.pack(*weights, dtype)
        self.calls = 0
        self._forget(-1)

    def _forget(self, task: int) -> None:
        self.task, self.used = task, 0
        self.buffers: list[Tensor] = []
        self.sums: Tensors | None = None

    def take(self, like: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """The slots of one more call. Rows of a backward pass that never asked for these weights are dropped."""
        task = torch._C._current_graph_task_id()
        if task != self.task:
            self._forget(task)
        fits = [tuple(b.shape[1:]) for b in self.buffers] == list(shapes) and self.used < len(self.buffers[0])
        if not fits:
            self._multiply()
            size = like.element_size() * sum(torch.Size(shape).numel() for shape in shapes)
            count = max(1, min(self.calls, STACK_BYTES // max(1, size)))
            if [tuple(b.shape) for b in self.buffers] != [(count, *shape) for shape in shapes]:
                self.buffers = [like.new_empty(count, *shape) for shape in shapes]
        self.used += 1
        return [buffer[self.used - 1] for buffer in self.buffers]

    def _multiply(self) -> None:
        if not self.used:
            return
        rows = [buffer[: self.used].flatten(0, 1) for buffer in self.buffers]
        grads = self.op.weight_grad(rows, *self.packed, *self.options)
        before = self.sums
        self.sums = grads if before is None else tuple(a + b for a, b in zip(before, grads, strict=True))
        self.used = 0

    def finish(self) -> tuple[Tensor | None, ...]:
        """The gradients of the weights from every call of this backward pass."""
        if torch._C._current_graph_task_id() != self.task:
            return (None,) * len(self.weights)
        self._multiply()
        sums = self.sums
        self._forget(-1)
        return (None,) * len(self.weights) if sums is None else self.op.unpack(*sums, *self.weights)


class _Collect(torch.autograd.Function):
    """The node of the weights: an empty tensor that every call depends on, so that it runs after all of them."""

    @staticmethod
    def forward(ctx: Any, shared: Shared, *weights: Tensor) -> Tensor:
        ctx.shared = shared
        ctx.set_materialize_grads(False)
        return weights[0].new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, anchor: None) -> tuple[Any, ...]:
        return None, *ctx.shared.finish()


class _Call(torch.autograd.Function):
    """One call of an op under shared weights, differentiable in x and the injection."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, shared: Shared, x: Tensor, *injection: Tensor) -> Tensor:
        y, *saved = shared.op.forward(x, *shared.packed, injection, *shared.options)
        ctx.shared, ctx.terms = shared, len(injection)
        ctx.save_for_backward(y, x, *injection, *saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        shared: Shared = ctx.shared
        y, x, *others = ctx.saved_tensors
        injection, saved = others[: ctx.terms], others[ctx.terms :]
        node = ctx.next_functions[0][0]
        slots: list[Tensor] = []
        if node is not None and torch._C._will_engine_execute_node(node):
            slots = shared.take(x, shared.op.slots(x, *shared.packed, *shared.options))
        dh = shared.op.input_grad(dy, y, *saved, x, *shared.packed, injection, *shared.options, slots)
        return None, None, dh, *(dh,) * ctx.terms


def versions(weights: Iterable[Tensor]) -> tuple[tuple[int, int | None], ...]:
    """What changes when a weight is replaced or written in place; a weight that inference made has no version."""
    return tuple((id(w), None if w.is_inference() else w._version) for w in weights)


class Recursion:
    """The shared weights of every op that was called within one `shared_weights()`."""

    def __init__(self) -> None:
        self._shared: dict[Any, Shared] = {}
        self._anchors: dict[Any, Tensor] = {}

    def call(self, op: SharedOp, x: Tensor, injection: Tensors, weights: Tensors, options: tuple[Any, ...]) -> Tensor:
        """The op on x, differentiable in all that it is given."""
        held = versions(weights)
        key = (id(op), held, x.dtype, *(id(o) if isinstance(o, Tensor) else o for o in options))
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = Shared(op, weights, x.dtype, options)
        if not torch.is_grad_enabled():
            return op.forward(x, *shared.packed, injection, *options)[0]
        if key not in self._anchors:
            self._anchors[key] = _Collect.apply(shared, *weights)
        shared.calls += 1
        y: Tensor = _Call.apply(self._anchors[key], shared, x, *injection)
        return y


_current: ContextVar[Recursion | None] = ContextVar("rtm_kernels_recursion", default=None)


@contextlib.contextmanager
def shared_weights(kept: Recursion | None = None) -> Iterator[None]:
    """A context in which the Triton ops cast and pack each weight once and compute its gradient by one product.

    Gradients equal those of separate calls up to the order of a float32 sum, the same in every run. Of each pair of
    weights the backward keeps at most `STACK_BYTES` of rows (those of one call at least) before it multiplies them.
    Contexts nest: the outer one serves. While torch.compile traces, and for the reference, it does nothing. With `kept`
    the weights stay cast from one context to the next, for as long as they are not changed.
    """
    if torch.compiler.is_compiling() or _current.get() is not None:
        yield
        return
    token = _current.set(kept or Recursion())
    try:
        yield
    finally:
        _current.reset(token)


def recursion() -> Recursion | None:
    """The recursion whose weights are shared now, or None.

    None also where saved tensors are hooked: a checkpoint computes its part again in the backward pass, perhaps outside
    of the context, and has to save the same tensors then.
    """
    if torch.compiler.is_compiling() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return None
    return _current.get()
