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
from rtm_kernels.ops.halting.reference import peak
from rtm_kernels.ops.launch import family
from rtm_kernels.ranges import ranged
from rtm_kernels.recursion import choice, fused, graph, native, reference, symmetric
from rtm_kernels.recursion.persistent.executor import PersistentExecutor
from rtm_kernels.recursion.persistent.executor import why_not as why_not_persistent
from rtm_kernels.recursion.reference import Act, ActStep
from rtm_kernels.recursion.tape import why_not_program


class Executor(Protocol):
    """Runs ACT steps of one model. `batch_invariant`: a sample's bits are the same in batches of any size."""

    name: str
    batch_invariant: bool

    @property
    def step(self) -> Act:
        """One ACT step."""
        ...

    @property
    def recorded(self) -> Act | None:
        """`step` as launches that a CUDA graph may record, or None when the host takes part in it."""
        ...


class Simple:
    """An executor whose step is one function."""

    def __init__(self, name: str, step: Act, recorded: Act | None = None, batch_invariant: bool = False) -> None:
        self.name, self.recorded, self.batch_invariant = name, recorded, batch_invariant
        self.step: Act = ranged("ACT step")(step)


class GraphExecutor:
    """The fused ops and the heads of a whole ACT step, captured once per batch bucket and replayed.

    Weights are read where they lie. A batch beyond the largest bucket runs in parts. `capture` is that of
    `recursion.graph.GraphRunner`.
    """

    name, batch_invariant = "graph", False

    def __init__(self, model: RecursiveReasoner, capture: graph.Capture | None = None) -> None:
        self._program, self._capture, self.recorded = model.program, capture, _fused(model)
        self._runner: graph.GraphRunner | None = None

    @ranged("ACT step")
    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        """See `Executor.step`."""
        program = self._program
        carried = {name: latents[name] for name in program.carried}
        parts = zip(*(t.split(graph.BUCKETS[-1]) for t in (x, *carried.values())), strict=True)
        found = [self._part(part[0], dict(zip(carried, part[1:], strict=True))) for part in parts]
        whole = found[0] if len(found) == 1 else {name: torch.cat([part[name] for part in found]) for name in found[0]}
        results = dict.fromkeys((*program.carried, program.output))
        return ActStep({name: whole[name] for name in results}, whole["logits"], whole.get("q"))

    def _part(self, x: Tensor, carried: graph.Tensors) -> graph.Tensors:
        if self._runner is None or len(x) > self._runner.buckets[-1]:
            self._runner = graph.GraphRunner(self._named, max_batch=max(1, len(x)), capture=self._capture)
        return self._runner({"x": x, **carried})

    def _named(self, inputs: graph.Tensors) -> graph.Tensors:
        step = self.recorded({name: inputs[name] for name in self._program.carried}, inputs["x"])
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


def _head(model: RecursiveReasoner) -> tuple[Tensor, Tensor] | None:
    return (model.q_head.weight, model.q_head.bias) if model.config.has_q_head else None


def _head_weights(model: RecursiveReasoner) -> native.HeadWeights:
    return native.HeadWeights(tokens=model.lm_head.weight, halting=_head(model), prefix=model.config.prefix_len)


def _modules(model: RecursiveReasoner) -> dict[str, torch.nn.Module]:
    return {name: model.get_submodule(name) for name in model.program.stacks}


def _op_by_op(model: RecursiveReasoner, stacks: Mapping[str, reference.ApplyStack]) -> Act:
    """The program with `stacks` as `reference.run` takes them, followed by the model's heads."""

    @torch.no_grad()
    def step(latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        values = reference.run(model.program, latents, x, stacks)
        return ActStep(values, *model.heads(values[model.program.output]))

    return step


def _fused(model: RecursiveReasoner) -> Act:
    return _op_by_op(model, fused.stacks_of(_modules(model), model.cos_sin()))


def _triton(model: RecursiveReasoner) -> Executor:
    step = _fused(model)
    return Simple("triton", step, recorded=step)


def _persistent(model: RecursiveReasoner) -> Executor:
    """Program, halting head and the change of the output latent in one launch of the persistent kernel."""
    kernel = PersistentExecutor(model.program, _modules(model), model.dtype, _head(model))

    @torch.no_grad()
    def step(latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        values, q, change = kernel.run(latents, x)
        logits = model.token_logits(values[model.program.output])
        return ActStep(values, logits, None if q is None else q[:, 0], change=change, token_q=q)

    return Simple("persistent", step, recorded=step)


def _symmetric(model: RecursiveReasoner) -> Executor:
    """Program and heads in C++, at the cost of what symmetric weights are made of."""
    program, output = symmetric.inference(model), model.program.output
    heads = native.NativeExecutor(model.program[:0], {}, _head_weights(model))
    others = [name for name in model.program.carried if name != output]  # the heads see the output alone

    def step(latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        values = {**latents, **program.run(latents, x)}
        found = heads.step({output: values[output]}, x)
        finite = found.finite
        assert finite is not None  # the C++ heads say it
        for name in others:
            finite = finite & peak(values[name]).isfinite()
        return found._replace(latents=values, finite=finite)

    return Simple("symmetric", step, batch_invariant=True)


def _native(precision: str) -> Backend:
    """Program and heads in C++; a sample's bits are the same in any batch and with any number of threads."""
    name = native_name(precision)

    def build(model: RecursiveReasoner) -> Executor:
        executor = native.NativeExecutor(
            model.program, _modules(model), _head_weights(model), cos_sin=model.cos_sin(), precision=precision
        )
        return Simple(name, executor.step, batch_invariant=True)

    def why_not(model: RecursiveReasoner) -> str | None:
        if model.device.type != "cpu":
            return f"the model is on {model.device.type}, and it runs on cpu"
        if model.config.forward_dtype != "float32":
            return f"the model computes in {model.config.forward_dtype}, and it in float32"
        mixer, channel = model.config.mixer, model.config.channel_mixer
        if (mixer, channel) == ("none", "swiglu") or (mixer == "mlp" and channel != "swiglu"):
            return f"it has no layers of mixer={mixer!r}, channel_mixer={channel!r}"
        if model.config.pos_encodings == "rope2d":
            return "it has no rotary positions of a grid"
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
    "symmetric": Backend(_symmetric, symmetric.why_not),
    "native": _native("float32"),
    "persistent": Backend(_persistent, _why_not_persistent),
    "graph": Backend(GraphExecutor, _why_not_graph),
    "triton": Backend(_triton, _why_not_triton),
    "reference": Backend(lambda model: Simple("reference", _op_by_op(model, model.stacks())), lambda model: None),
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
