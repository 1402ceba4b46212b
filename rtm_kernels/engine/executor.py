"""What runs one ACT step of a model for the engine, behind one small interface."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rtm_kernels.block import CosSin, FusedTRMBlock, Stack
from rtm_kernels.errors import BackendUnavailable, one_of, require
from rtm_kernels.impl import warn_once
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.reference import peak
from rtm_kernels.ops.launch import choose
from rtm_kernels.ops.shared import Recursion, shared_weights
from rtm_kernels.program import SEED
from rtm_kernels.ranges import ranged
from rtm_kernels.recursion import graph, native, reference, symmetric
from rtm_kernels.recursion.persistent.runner import PersistentExecutor, measured_batch
from rtm_kernels.recursion.persistent.runner import why_not as why_not_persistent
from rtm_kernels.recursion.reference import Act, ActStep
from rtm_kernels.recursion.tape import why_not_program


@dataclass(eq=False)
class Executor:
    """Runs ACT steps of one model.

    `step` takes one; `recorded` is the same as launches that a CUDA graph may record, or None when the host takes part.
    `batch_invariant`: a sample's bits are the same in batches of any size. `check`, called when the host has waited for
    steps, raises where one of them failed on the device.
    """

    name: str
    step: Act
    recorded: Act | None = None
    batch_invariant: bool = False
    check: Callable[[], None] = lambda: None


class Backend(NamedTuple):
    """How to build an executor for a model, and what keeps it from running that model (None when it can)."""

    build: Callable[[RecursiveReasoner], Executor]
    why_not: Callable[[RecursiveReasoner], str | None]


def _head(model: RecursiveReasoner) -> tuple[Tensor, Tensor] | None:
    return (model.q_head.weight, model.q_head.bias) if model.config.has_q_head else None


def _head_weights(model: RecursiveReasoner) -> native.HeadWeights:
    return native.HeadWeights(tokens=model.lm_head.weight, halting=_head(model), prefix=model.config.prefix_len)


def _modules(model: RecursiveReasoner) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in model.program.stacks}


def _op_by_op(model: RecursiveReasoner, stacks: Mapping[str, reference.ApplyStack]) -> Act:
    """The program with `stacks` as `reference.run` takes them, followed by the model's heads."""

    @torch.no_grad()
    def step(latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        values = reference.run(model.program, latents, x, stacks)
        return ActStep(values, *model.heads(values[model.program.output]))

    return step


def by_triton(stacks: Mapping[str, nn.Module], cos_sin: CosSin | None = None) -> dict[str, reference.ApplyStack]:
    """`stacks` with every op of their `FusedTRMBlock`s by Triton, as `reference.run` calls them.

    A stack without `layers` (a linear adapter) stays as it is. The weights are shared, not copied: what is changed in
    place or loaded later is seen.
    """

    def bind(stack: nn.Module) -> reference.ApplyStack:
        layers = getattr(stack, "layers", None)
        ours = stack if layers is None else Stack([_layer_by_triton(layer) for layer in layers])
        return lambda state, injection: ours(state, injection, cos_sin)

    return {name: bind(stack) for name, stack in stacks.items()}


def _layer_by_triton(layer: nn.Module) -> FusedTRMBlock:
    other = copy.copy(layer)  # shares parameters and submodules
    assert isinstance(other, FusedTRMBlock)
    other.impl = "triton"
    return other


def _fused(model: RecursiveReasoner) -> Act:
    """Op by op, with weights that stay cast: what a graph records reads them and casts nothing."""
    step, kept = _op_by_op(model, by_triton(_modules(model), model.cos_sin())), Recursion()

    def act(latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        with shared_weights(kept):
            return step(latents, x)

    return act


def _triton(model: RecursiveReasoner) -> Executor:
    step = _fused(model)
    return Executor("triton", step, recorded=step)


def replayed(model: RecursiveReasoner, capture: graph.CudaGraphs | None = None) -> Executor:
    """The fused ops and the heads of a whole ACT step, captured once per batch bucket and replayed.

    Weights are cast when a batch size is captured: build it anew when they change. A batch beyond the largest bucket
    runs in parts. `capture` is that of `recursion.graph.GraphRunner`.
    """
    act, program, runners = _fused(model), model.program, list[graph.GraphRunner]()

    def named(inputs: graph.Tensors) -> graph.Tensors:
        step = act({name: inputs[name] for name in names}, inputs["x"])
        return {**step.latents, "logits": step.logits, **({} if step.q is None else {"q": step.q})}

    names = (*program.carried, SEED) if model.config.noise else program.carried

    def run(x: Tensor, *carried: Tensor) -> graph.Tensors:
        if not runners or len(x) > runners[0].buckets[-1]:
            runners[:] = [graph.GraphRunner(named, max_batch=max(1, len(x)), capture=capture)]
        return runners[0]({"x": x, **dict(zip(names, carried, strict=True))})

    def step(latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        given = (x, *(latents[name] for name in names))
        found = [run(*part) for part in zip(*(t.split(graph.BUCKETS[-1]) for t in given), strict=True)]
        whole = found[0] if len(found) == 1 else {name: torch.cat([part[name] for part in found]) for name in found[0]}
        results = dict.fromkeys((*program.carried, program.output))
        return ActStep({name: whole[name] for name in results}, whole["logits"], whole.get("q"))

    return Executor("graph", step, recorded=act)


def by_batch(small: Executor, large: Executor, most: int) -> Executor:
    """`auto` on a GPU: batches of at most `most` samples go to `small`, the others to `large`, while recorded too."""

    def chosen(first: Act, second: Act) -> Act:
        return lambda latents, x: (first if len(x) <= most else second)(latents, x)

    recorded = None
    if small.recorded is not None and large.recorded is not None:
        recorded = chosen(small.recorded, large.recorded)
    return Executor("auto", chosen(small.step, large.step), recorded, check=small.check)


def _persistent(model: RecursiveReasoner) -> Executor:
    """Program, halting head and the change of the output latent in one launch of the persistent kernel."""
    kernel = PersistentExecutor(model.program, _modules(model), model.dtype, _head(model))

    @torch.no_grad()
    def step(latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        values, q, change = kernel.run(latents, x)
        logits = model.token_logits(values[model.program.output])
        return ActStep(values, logits, None if q is None else q[:, 0], change=change, token_q=q)

    return Executor("persistent", step, recorded=step, check=kernel.check)


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

    return Executor("symmetric", step, batch_invariant=True)


def _native(precision: str) -> Backend:
    """Program and heads in C++; a sample's bits are the same in any batch and with any number of threads."""
    name = native_name(precision)

    def build(model: RecursiveReasoner) -> Executor:
        executor = native.NativeExecutor(
            model.program, _modules(model), _head_weights(model), cos_sin=model.cos_sin(), precision=precision
        )
        return Executor(name, executor.step, batch_invariant=True)

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
    try:
        choose("triton", model.device, model.dtype)
    except BackendUnavailable as error:
        return str(error).removeprefix("impl='triton' cannot run: ")
    return None


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
    "graph": Backend(replayed, _why_not_graph),
    "triton": Backend(_triton, _why_not_triton),
    "reference": Backend(lambda model: Executor("reference", _op_by_op(model, model.stacks())), lambda model: None),
    **{native_name(p): _native(p) for p in native.PRECISIONS if p != "float32"},
}
"""Executors by name: C++ on the CPU, for symmetric weights and for any; one cooperative launch, replayed CUDA graphs,
and op by op, all with Triton; plain PyTorch. All but the last keep the weights as they were when they were built."""

PREFERRED = {"cpu": ("symmetric", "native", "reference"), "cuda": ("persistent", "graph", "triton", "reference")}
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

    `auto` takes the best that can run it on its device. On a GPU that is the graph, or for small batches the persistent
    kernel where `ops/tuned.json` holds that this GPU was faster so (`measured_batch`); `batch_size` pins the choice to
    that size, for callers whose results must not depend on how a batch shrinks. What it could not take it says once.

    Errors: `InputError` for an unknown name, `BackendUnavailable` for a named one that cannot run here.
    """
    one_of("executor", name, ("auto", *EXECUTORS))
    if name == "auto":
        return _auto(model, batch_size)
    reason = EXECUTORS[name].why_not(model)
    if reason is not None:
        raise BackendUnavailable(f"executor={name!r} cannot run: {reason}")
    return _build(name, model)


def _build(name: str, model: RecursiveReasoner) -> Executor:
    made = EXECUTORS[name].build(model)
    made.step = ranged("ACT step")(made.step)
    return made


def _auto(model: RecursiveReasoner, batch_size: int | None) -> Executor:
    reasons = {name: EXECUTORS[name].why_not(model) for name in PREFERRED.get(model.device.type, ("reference",))}
    runnable = [name for name, reason in reasons.items() if reason is None]
    if reasons.get("native") is not None and native.why_not() is not None:
        warn_once(f"using the slower PyTorch executor: {native.why_not()}", 5)
    if reasons.get("triton") is not None:
        warn_once(f"using the slower PyTorch executor: {reasons['triton']}", 5)
    if runnable[:2] != ["persistent", "graph"]:
        return _build(runnable[0], model)
    most = measured_batch(model.device, model.dtype, model.config.latent_len, model.config.hidden_size)
    if most == 0 or batch_size is not None:
        return _build("persistent" if batch_size is not None and batch_size <= most else "graph", model)
    return by_batch(_build("persistent", model), _build("graph", model), most)
