"""Who is compared: the official structure in the ways that people run it, other libraries, and every executor here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.cases import TRAINING, Case
from benchmarks.peers import Layer, StepFunction
from benchmarks.problem import LATENT_TASKS, Inputs, Problem, Run, clone, loss
from rtm_kernels.engine.executor import executor
from rtm_kernels.impl import why_not_triton
from rtm_kernels.ops.adam_atan2.api import AdamATan2
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm
from rtm_kernels.program import INPUT, Program, Step
from rtm_kernels.recursion import native
from rtm_kernels.recursion.native_weights import StackWeights

ONE_LAYER = Program("layer", (Step("h", ("h",), ("y", INPUT)),), output="h")


@dataclass(frozen=True)
class Provider:
    """How one implementation does the tasks. `step` also returns the module whose parameters are trained."""

    name: str
    layer: Callable[[Problem], Layer]
    step: Callable[[Problem], tuple[StepFunction, nn.Module]]
    why_not: Callable[[Case], str | None] = lambda case: None
    graph: bool = False
    """Whether its calls are captured in a CUDA graph and replayed."""
    leeway: float = 1.0
    """Factor on the error budget of the gate."""


def run_of(provider: Provider, problem: Problem) -> Run:
    """The task of the problem as `provider` does it."""
    task = problem.case.task
    if task in LATENT_TASKS:
        layer = provider.layer(problem)
        return torch.no_grad()(lambda inputs: (layer(inputs),))
    step, module = provider.step(problem)
    if task in TRAINING:
        return _train(step, module, updates=task == "train_step")
    names, count = problem.model.program.carried, problem.config.halt_max_steps if task == "solve" else 1

    def run(inputs: Inputs) -> list[Tensor]:
        for _ in range(count):
            inputs, logits, q = step(inputs)
        return [*(inputs[name] for name in names), logits, *([] if q is None else [q])]

    return torch.no_grad()(run)


def _train(step: StepFunction, module: nn.Module, updates: bool) -> Run:
    """Loss and gradients; with `updates` AdamATan2 then changes the weights, by gradients that lie in place."""
    named = {name.replace("_orig_mod.", ""): p for name, p in module.named_parameters()}
    parameters = [named[name] for name in sorted(named)]
    optimizer = AdamATan2(parameters, lr=1e-4, weight_decay=1.0) if updates else None
    in_place = [torch.empty_like(p) for p in parameters] if updates else []

    def run(inputs: Inputs) -> list[Tensor]:
        _, logits, q = step(inputs)
        value = loss(logits, q, inputs["labels"])
        gradients = torch.autograd.grad(value, parameters)
        if optimizer is not None:
            torch._foreach_copy_(in_place, gradients)
            for parameter, gradient in zip(parameters, in_place, strict=True):
                parameter.grad = gradient
            optimizer.step()
        return [value.detach(), *gradients]

    return run


def _first_block(model: nn.Module) -> Any:
    return model.get_submodule("L_level.layers.0")


def _ours_layer(problem: Problem, *, impl: str, attention: str = "sdpa") -> Layer:
    return half_layer(problem, impl, attention)[0]


def half_layer(problem: Problem, impl: str, attention: str = "sdpa") -> tuple[Layer, tuple[Tensor, ...]]:
    """The half layer or layer of a latent task, and the weights that it multiplies with."""
    model = clone(problem.model, impl=impl, attention=attention)
    block = _first_block(model)
    task, cos_sin = problem.case.task, model.cos_sin()
    channel = (block.mlp.gate_up_proj.weight, block.mlp.down_proj.weight)
    if task == "channel":
        return lambda inputs: swiglu_norm(inputs["h"], *channel, eps=block.eps, impl=impl), channel
    if task == "block":
        return lambda inputs: block(inputs["h"], (inputs["y"], inputs["x"]), cos_sin), tuple(block.parameters())
    if block.mixer == "mlp":
        weights = (block.mlp_t.gate_up_proj.weight, block.mlp_t.down_proj.weight)
        mixer = partial(mixer_norm, norm_axis=block.norm_axis, eps=block.eps, impl=impl)
    else:
        weights = (block.self_attn.qkv_proj.weight, block.self_attn.o_proj.weight)
        options = {"num_heads": block.num_heads, "cos_sin": cos_sin, "eps": block.eps, "attention": attention}
        mixer = partial(attention_norm, **options, impl=impl)
    return lambda inputs: mixer(inputs["h"], *weights, injection=(inputs["y"], inputs["x"])), weights


def _ours_step(problem: Problem, *, impl: str, attention: str = "sdpa") -> tuple[StepFunction, nn.Module]:
    model = clone(problem.model, impl=impl, attention=attention)
    return _with_embedding(model, model.act_step), model


def _with_embedding(model: Any, act_step: Callable[..., Any]) -> StepFunction:
    names = model.program.carried

    def step(inputs: Inputs) -> tuple[Inputs, Tensor, Tensor | None]:
        x = model.embed(inputs["inputs"], inputs["puzzle_identifiers"])
        latents, logits, q, *_ = act_step({name: inputs[name] for name in names}, x)
        return {**inputs, **{name: latents[name] for name in names}}, logits, q

    return step


def _native_layer(problem: Problem) -> Layer:
    stack = nn.ModuleDict({"layers": nn.ModuleList([_first_block(problem.model)])})
    weights = StackWeights.from_module(stack, problem.model.cos_sin())
    run = native.NativeExecutor(ONE_LAYER, {"L_level": weights}).run
    return lambda inputs: run({"h": inputs["h"], "y": inputs["y"]}, inputs["x"])["h"]


def _native_step(problem: Problem) -> tuple[StepFunction, nn.Module]:
    return _with_embedding(problem.model, executor("native", problem.model).step), problem.model


def _persistent_layer(problem: Problem) -> Layer:
    from rtm_kernels.recursion.persistent.executor import PersistentExecutor

    stacks = {"L_level": [_first_block(problem.model)]}
    run = PersistentExecutor(ONE_LAYER, stacks, problem.model.dtype).run
    return lambda inputs: run({"h": inputs["h"], "y": inputs["y"]}, inputs["x"]).latents["h"]


def _persistent_step(problem: Problem) -> tuple[StepFunction, nn.Module]:
    return _with_embedding(problem.model, executor("persistent", problem.model).step), problem.model


def _runner_step(problem: Problem) -> tuple[StepFunction, nn.Module]:
    """The package's own graph runner around the Triton ops: copies in and out included."""
    from rtm_kernels.recursion.graph import GraphRunner

    eager, model = _ours_step(problem, impl="triton")
    names, batch = problem.model.program.carried, problem.case.batch

    def flat(inputs: Inputs) -> dict[str, Tensor]:
        new, logits, q = eager(inputs)
        return {**{name: new[name] for name in names}, "logits": logits, **({} if q is None else {"q": q})}

    runner = GraphRunner(flat, max_batch=batch, buckets=(batch,))

    def step(inputs: Inputs) -> tuple[Inputs, Tensor, Tensor | None]:
        out = runner({name: inputs[name] for name in ("inputs", "puzzle_identifiers", *names)})
        return {**inputs, **{name: out[name] for name in names}}, out["logits"], out.get("q")

    return step, model


def _why_not_runner(case: Case) -> str | None:
    steps = case.task in ("act_step", "solve")
    return _why_not_graph(case, _why_not_ours) or (None if steps else "it replays whole ACT steps, without gradients")


def _why_not_graph(case: Case, inner: Callable[[Case], str | None]) -> str | None:
    return inner(case) if case.device == "cuda" else "CUDA graphs need a CUDA device"


def _why_not_ours(case: Case) -> str | None:
    return None if case.device == "cuda" else (why_not_triton(torch.device("cpu")) or "interpreted, so not timed")


def _why_not_native(case: Case) -> str | None:
    if case.device != "cpu" or case.dtype != "float32":
        return "it computes in float32 on the CPU"
    if case.task in ("mixer", "channel", *TRAINING):
        return "it runs whole layers, without gradients"
    return native.why_not()


def _why_not_persistent(case: Case) -> str | None:
    if case.device != "cuda":
        return "it needs a CUDA device"
    if case.task in ("mixer", "channel", *TRAINING):
        return "it runs whole layers, without gradients"
    from rtm_kernels.recursion.persistent.executor import why_not

    with torch.device("meta"):
        from rtm_kernels.model import RecursiveReasoner

        model = RecursiveReasoner(case.config)
    stacks = {name: model.get_submodule(name) for name in case.config.layers}
    return why_not(case.config.program, stacks, torch.device("cuda"), model.dtype, case.config.latent_len)


def _why_not_flash(case: Case) -> str | None:
    return peers.why_not_flash(case) or _why_not_ours(case)


def _official(name: str, why_not: Callable[[Case], str | None], graph: bool = False, **options: Any) -> Provider:
    """The official structure; with `graph`, one CUDA graph around the whole call, whose weights are cast beforehand
    where they are not trained."""
    if graph:
        why_not, options = partial(_why_not_graph, inner=why_not), {**options, "cast": True}
    return Provider(name, partial(peers.layer, **options), partial(peers.step, **options), why_not, graph=graph)


def _ours(name: str, why_not: Callable[[Case], str | None], **options: Any) -> Provider:
    return Provider(name, partial(_ours_layer, **options), partial(_ours_step, **options), why_not)


def _graphed(provider: Provider) -> Provider:
    why_not = partial(_why_not_graph, inner=provider.why_not)
    return Provider(f"{provider.name}_graph", provider.layer, provider.step, why_not, graph=True)


BASELINE = _official("official_eager", peers.why_not_official)
REFERENCE = _ours("rtm_reference", lambda case: None, impl="reference")
TRITON = _ours("rtm_triton", _why_not_ours, impl="triton")
PERSISTENT = Provider("rtm_persistent", _persistent_layer, _persistent_step, _why_not_persistent)
NATIVE = Provider("rtm_native", _native_layer, _native_step, _why_not_native)

PROVIDERS: tuple[Provider, ...] = (
    BASELINE,
    _official("official_precast", peers.why_not_precast, cast=True),
    _official("official_liger", peers.why_not_liger, kernels="liger"),
    _official("official_flash", peers.why_not_official_flash, cast=True, kernels="flash"),
    _official("official_compiled", peers.why_not_compiled, compiled="default"),
    _official("official_autotuned", peers.why_not_autotuned, compiled=peers.MAX_AUTOTUNE),
    _official("official_compiled_graph", peers.why_not_compiled, graph=True, compiled="default"),
    _official("official_autotuned_graph", peers.why_not_compiled, graph=True, compiled=peers.MAX_AUTOTUNE),
    Provider("onnxruntime", peers.onnx_layer, peers.onnx_step, peers.why_not_onnx, leeway=4.0),
    REFERENCE,
    TRITON,
    _ours("rtm_triton_flash", _why_not_flash, impl="triton", attention="flash"),
    _graphed(TRITON),
    Provider("rtm_graph_runner", TRITON.layer, _runner_step, _why_not_runner),
    PERSISTENT,
    _graphed(PERSISTENT),
    NATIVE,
)
"""The baseline of every ratio comes first. A compiled one compiles its stacks of layers, in which all time is spent.
ONNX Runtime approximates exp, which a recursion magnifies; it gets leeway, because refusing it would hide it."""
