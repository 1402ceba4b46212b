"""What runs one ACT step of a model for the engine, behind one small interface."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, one_of, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.launch import family
from rtm_kernels.ranges import ranged
from rtm_kernels.recursion import choice, fused, graph, native, reference, symmetric
from rtm_kernels.recursion.native_weights import HeadWeights, StackWeights
from rtm_kernels.recursion.persistent.executor import PersistentExecutor
from rtm_kernels.recursion.persistent.executor import why_not as why_not_persistent
from rtm_kernels.recursion.tape import why_not_program

Latents = dict[str, Tensor]


class ActStep(NamedTuple):
    """What one ACT step found: latents [B, L, D], at least the carried ones and the output, and of each sample

    logits [B, seq_len, V] of the tokens, and q float32 [B, 2] of the halting head, None without one. What an executor
    leaves None of the others, halting computes from these: answers int32 [B, seq_len], the first of the largest
    logits; finite bool [B], False where a latent, a logit or q is NaN or infinite; change float32 [B], |dy| / |y| of
    the output latent; token_q float32 [B, L, 2], the halting head at every position.
    """

    latents: Latents
    logits: Tensor
    q: Tensor | None
    answers: Tensor | None = None
    finite: Tensor | None = None
    change: Tensor | None = None
    token_q: Tensor | None = None


Act = Callable[[Mapping[str, Tensor], Tensor], ActStep]
"""One ACT step, see `Executor.step`."""


class Executor(Protocol):
    """Runs ACT steps of one model. `batch_invariant`: a sample's bits are the same in batches of any size."""

    name: str
    batch_invariant: bool

    @property
    def recorded(self) -> Act | None:
        """`step` as launches that a CUDA graph may record, or None when the host takes part in it."""
        ...

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        """One ACT step from latents and x [B, L, D]; the latents given are not modified."""
        ...


class ProgramExecutor:
    """The program op by op, with `stacks` as `reference.run` takes them, followed by the model's heads."""

    batch_invariant = False

    def __init__(
        self, name: str, model: RecursiveReasoner, stacks: Mapping[str, reference.ApplyStack], records: bool = False
    ) -> None:
        self.name, self._model, self._stacks, self._records = name, model, stacks, records

    @property
    def recorded(self) -> Act | None:
        """See `Executor.recorded`."""
        return self._launch if self._records else None

    @ranged("ACT step")
    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        """See `Executor.step`."""
        return self._launch(latents, x)

    @torch.no_grad()
    def _launch(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        values = reference.run(self._model.program, latents, x, self._stacks)
        return ActStep(values, *self._model.heads(values[self._model.program.output]))


class Native:
    """Program and heads in C++; a sample's bits are the same in any batch and with any number of threads."""

    batch_invariant, recorded = True, None

    def __init__(self, name: str, model: RecursiveReasoner, precision: str) -> None:
        stacks = {
            stack: StackWeights.from_module(model.get_submodule(stack), model.cos_sin())
            for stack in model.config.layers
        }
        self.name, self._has_q = name, model.config.has_q_head
        self._carries_output = model.program.output in model.program.carried
        self._executor = native.NativeExecutor(model.program, stacks, _head_weights(model), precision=precision)

    @ranged("ACT step")
    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        """See `Executor.step`."""
        found = self._executor.step(latents, x)
        return ActStep(
            found.latents, found.logits, found.halting[:, 0] if self._has_q else None, found.answers, found.finite,
            found.change if self._carries_output else None, found.halting if self._has_q else None,
        )  # fmt: skip


class Symmetric:
    """Program and heads in C++, at the cost of what symmetric weights are made of; invariant as `Native` is."""

    name, batch_invariant, recorded = "symmetric", True, None

    def __init__(self, model: RecursiveReasoner) -> None:
        self._program, self._has_q = symmetric.inference(model), model.config.has_q_head
        self._output = model.program.output
        self._heads = native.NativeExecutor(model.program[:0], {}, heads=_head_weights(model))

    @ranged("ACT step")
    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        """See `Executor.step`."""
        values = {**latents, **self._program.run(latents, x)}
        found = self._heads.step({self._output: values[self._output]}, x)
        q = found.halting if self._has_q else None
        return ActStep(values, found.logits, None if q is None else q[:, 0], found.answers, token_q=q)


class Persistent:
    """Program, halting head and the change of the output latent in one launch of the persistent kernel."""

    name, batch_invariant = "persistent", False

    def __init__(self, model: RecursiveReasoner) -> None:
        head = (model.q_head.weight, model.q_head.bias) if model.config.has_q_head else None
        self._model = model
        self._executor = PersistentExecutor(model.program, _modules(model), model.dtype, head)

    @property
    def recorded(self) -> Act:
        """See `Executor.recorded`."""
        return self.step

    @ranged("ACT step")
    @torch.no_grad()
    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        """See `Executor.step`."""
        latents, q, change = self._executor.run(latents, x)
        logits = self._model.token_logits(latents[self._model.program.output])
        return ActStep(latents, logits, None if q is None else q[:, 0], change=change, token_q=q)


class GraphExecutor(ProgramExecutor):
    """The fused ops and the heads of a whole ACT step, captured once per batch bucket and replayed.

    Weights are read where they lie. A batch beyond the largest bucket runs in parts. `capture` is that of
    `recursion.graph.GraphRunner`.
    """

    def __init__(self, model: RecursiveReasoner, capture: graph.Capture | None = None) -> None:
        super().__init__("graph", model, fused.stacks_of(_modules(model), model.cos_sin()), records=True)
        self._capture = capture
        self._runner: graph.GraphRunner | None = None

    @ranged("ACT step")
    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        """See `Executor.step`."""
        program = self._model.program
        carried = {name: latents[name] for name in program.carried}
        parts = zip(*(t.split(graph.BUCKETS[-1]) for t in (x, *carried.values())), strict=True)
        found = [self._part(part[0], dict(zip(carried, part[1:], strict=True))) for part in parts]
        whole = found[0] if len(found) == 1 else {name: torch.cat([part[name] for part in found]) for name in found[0]}
        results = dict.fromkeys((*program.carried, program.output))
        return ActStep({name: whole[name] for name in results}, whole["logits"], whole.get("q"))

    def _part(self, x: Tensor, carried: Latents) -> graph.Tensors:
        if self._runner is None or len(x) > self._runner.buckets[-1]:
            self._runner = graph.GraphRunner(self._named, max_batch=max(1, len(x)), capture=self._capture)
        return self._runner({"x": x, **carried})

    def _named(self, inputs: graph.Tensors) -> graph.Tensors:
        step = self._launch({name: inputs[name] for name in self._model.program.carried}, inputs["x"])
        return {**step.latents, "logits": step.logits, **({} if step.q is None else {"q": step.q})}


class ByBatch:
    """`auto` on a GPU: each batch goes to the path that the launch table `recursion.choice` names for its size."""

    name, batch_invariant = "auto", False

    def __init__(self, paths: Mapping[str, Executor]) -> None:
        self._paths = paths

    @property
    def recorded(self) -> Act | None:
        """The step of the path for the size that is being recorded."""
        acts = {name: path.recorded for name, path in self._paths.items()}
        if None in acts.values():
            return None
        return lambda latents, x: self._path(acts, len(x))(latents, x)

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        """See `Executor.step`."""
        return self._path(self._paths, len(x)).step(latents, x)

    @staticmethod
    def _path(paths: Mapping[str, Any], batch: int) -> Any:
        return paths[choice.choose_row(batch, family()).path]


class Backend(NamedTuple):
    """How to build an executor for a model, and what keeps it from running that model (None when it can)."""

    build: Callable[[RecursiveReasoner], Executor]
    why_not: Callable[[RecursiveReasoner], str | None]


def _head_weights(model: RecursiveReasoner) -> HeadWeights:
    q = (model.q_head.weight, model.q_head.bias) if model.config.has_q_head else None
    return HeadWeights(tokens=model.lm_head.weight, halting=q, prefix=model.config.prefix_len)


def _modules(model: RecursiveReasoner) -> dict[str, torch.nn.Module]:
    return {name: model.get_submodule(name) for name in model.program.stacks}


def _reference(model: RecursiveReasoner) -> Executor:
    return ProgramExecutor("reference", model, model.stacks())


def _triton(model: RecursiveReasoner) -> Executor:
    return ProgramExecutor("triton", model, fused.stacks_of(_modules(model), model.cos_sin()), records=True)


def _native(precision: str) -> Backend:
    def build(model: RecursiveReasoner) -> Executor:
        return Native(native_name(precision), model, precision)

    def why_not(model: RecursiveReasoner) -> str | None:
        if model.device.type != "cpu":
            return f"the model is on {model.device.type}, and it runs on cpu"
        if model.config.forward_dtype != "float32":
            return f"the model computes in {model.config.forward_dtype}, and it in float32"
        return why_not_program(model.program) or native.why_not() or native.why_not_precision(precision)

    return Backend(build, why_not)


def native_name(precision: str) -> str:
    """The name of the native executor that multiplies in `precision`."""
    return "native" if precision == "float32" else f"native-{precision}"


def _why_not_triton(model: RecursiveReasoner) -> str | None:
    return fused.why_not(model.device, model.dtype)


def _why_not_graph(model: RecursiveReasoner) -> str | None:
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}, and CUDA graphs need a CUDA device"
    return graph.why_not() or _why_not_triton(model)


def _why_not_persistent(model: RecursiveReasoner) -> str | None:
    return why_not_persistent(model.program, _modules(model), model.device, model.dtype, model.config.latent_len)


EXECUTORS: dict[str, Backend] = {
    "symmetric": Backend(Symmetric, symmetric.why_not),
    "native": _native("float32"),
    "persistent": Backend(Persistent, _why_not_persistent),
    "graph": Backend(GraphExecutor, _why_not_graph),
    "triton": Backend(_triton, _why_not_triton),
    "reference": Backend(_reference, lambda model: None),
    **{native_name(p): _native(p) for p in native.PRECISIONS if p != "float32"},
}
"""Executors by name: C++ on the CPU, for symmetric weights and for any; one cooperative launch, replayed CUDA graphs,
and op by op, all with Triton; plain PyTorch. The first three pack the weights when they are built."""

PREFERRED = {"cpu": ("symmetric", "native", "reference"), "cuda": (*choice.PATHS, "triton", "reference")}
"""Device -> what `auto` considers there, the best first. Triton's interpreter is never taken unasked."""


def with_precision(name: str, precision: str) -> str:
    """The executor that `executor=name, precision=precision` asks for.

    Errors: `InputError` for an unknown precision, and for one that the named executor does not offer.
    """
    one_of("precision", precision, native.PRECISIONS)
    if precision == "float32":
        return name
    require(name in ("auto", "native"), "executor", name, f"auto or native with precision={precision!r}")
    return native_name(precision)


def executor(name: str, model: RecursiveReasoner, batch_size: int | None = None) -> Executor:
    """The executor `name` for `model`.

    `auto` takes the best that can run it on its device. On a GPU that is, for each batch, the persistent kernel or the
    graph, as the launch table says; `batch_size` pins the choice to that size, for callers whose results must not
    depend on how a batch shrinks. What it could not take it says once.

    Errors: `InputError` for an unknown name, `BackendUnavailable` for a named one that cannot run here.
    """
    one_of("executor", name, ("auto", *EXECUTORS))
    if name == "auto":
        return _auto(model, batch_size)
    reason = EXECUTORS[name].why_not(model)
    if reason is not None:
        raise BackendUnavailable(f"executor={name!r} cannot run: {reason}")
    return EXECUTORS[name].build(model)


def _auto(model: RecursiveReasoner, batch_size: int | None) -> Executor:
    reasons = {name: EXECUTORS[name].why_not(model) for name in PREFERRED.get(model.device.type, ("reference",))}
    runnable = [name for name, reason in reasons.items() if reason is None]
    if reasons.get("native") is not None and native.why_not() is not None:
        _warn_once(f"using the slower PyTorch executor: {native.why_not()}")
    if reasons.get("triton") is not None:
        _warn_once(f"using the slower PyTorch executor: {reasons['triton']}")
    if not set(choice.PATHS) <= set(runnable):
        return EXECUTORS[runnable[0]].build(model)
    if batch_size is not None:
        return EXECUTORS[choice.choose_row(batch_size, family()).path].build(model)
    return ByBatch({path: EXECUTORS[path].build(model) for path in choice.PATHS})


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=5)
