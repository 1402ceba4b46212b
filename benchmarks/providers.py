"""What is compared: the official structure as people run it, other libraries, and every executor of this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.cases import LATENT_TASKS, TRAINING
from benchmarks.peers import Layer, StepFunction
from benchmarks.problem import Inputs, Problem, Run, clone, loss
from rtm_kernels.engine.executor import EXECUTORS, executor
from rtm_kernels.impl import why_not_triton
from rtm_kernels.ops.adam_atan2.api import AdamATan2
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm
from rtm_kernels.program import INPUT, Program, Step
from rtm_kernels.recursion import native

ONE_LAYER = Program("layer", (Step("h", ("h",), ("y", INPUT)),), output="h")


WhyNot = Callable[[Problem], str | None]


@dataclass(frozen=True)
class Provider:
    """How one implementation does the tasks. `step` also returns the module whose parameters are trained."""

    name: str
    layer: Callable[[Problem], Layer] | None
    """None where it runs whole ACT steps alone; `why_not` then refuses the other tasks."""
    step: Callable[[Problem], tuple[StepFunction, nn.Module]]
    unable: WhyNot = lambda problem: None
    graph: bool = False
    """Whether its calls are captured in a CUDA graph and replayed."""
    leeway: float = 1.0
    """Factor on the error budget of the gate."""
    reduced: bool = False
    """Whether it computes in a smaller format than the case asks for, which the gate allows an error of a tenth."""

    def why_not(self, problem: Problem) -> str | None:
        """Why it cannot do `problem` here, or None."""
        if self.graph and problem.case.device != "cuda":
            return "CUDA graphs need a CUDA device"
        return self.unable(problem)


def run_of(provider: Provider, problem: Problem) -> Run:
    """The task of the problem as `provider` does it."""
    task = problem.case.task
    if task in LATENT_TASKS:
        assert provider.layer is not None, provider.name
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


def _compiled_step(problem: Problem) -> tuple[StepFunction, nn.Module]:
    model = clone(problem.model)
    return _with_embedding(model, torch.compile(model.act_step, dynamic=False)), model


def _why_not_compiled(problem: Problem) -> str | None:
    """The reference is compiled where the official structure, which `official_compiled` takes, does not exist."""
    return None if problem.config.channel_mixer == "conv2d" else "official_compiled is measured"


def _with_embedding(model: Any, act_step: Callable[..., Any]) -> StepFunction:
    names = model.program.carried

    def step(inputs: Inputs) -> tuple[Inputs, Tensor, Tensor | None]:
        x = model.embed(inputs["inputs"], inputs["puzzle_identifiers"])
        latents, logits, q, *_ = act_step({name: inputs[name] for name in names}, x)
        return {**inputs, **{name: latents[name] for name in names}}, logits, q

    return step


def _native_layer(problem: Problem) -> Layer:
    stack = nn.ModuleDict({"layers": nn.ModuleList([_first_block(problem.model)])})
    run = native.NativeExecutor(ONE_LAYER, {"L_level": stack}, cos_sin=problem.model.cos_sin()).run
    return lambda inputs: run({"h": inputs["h"], "y": inputs["y"]}, inputs["x"])["h"]


def _why_not_ours(problem: Problem) -> str | None:
    on_cpu = why_not_triton(torch.device("cpu")) or "interpreted, so not timed"
    return None if problem.case.device == "cuda" else on_cpu


def _why_not_flash(problem: Problem) -> str | None:
    return peers.why_not_flash(problem) or _why_not_ours(problem)


def _official(name: str, why_not: WhyNot, graph: bool = False, **options: Any) -> Provider:
    """The official structure; a captured one has its weights cast beforehand where they are not trained."""
    options |= {"cast": True} if graph else {}
    return Provider(name, partial(peers.layer, **options), partial(peers.step, **options), why_not, graph=graph)


def _ours(name: str, why_not: WhyNot, **options: Any) -> Provider:
    layer = lambda problem: half_layer(problem, **options)[0]  # noqa: E731
    return Provider(name, layer, partial(_ours_step, **options), why_not)


def _executor(
    name: str, executor_name: str, layer: Callable[[Problem], Layer] | None = None, reduced: bool = False
) -> Provider:
    """An executor of the engine, as the solver takes it; `layer` runs a single layer where it can."""

    def step(problem: Problem) -> tuple[StepFunction, nn.Module]:
        return _with_embedding(problem.model, executor(executor_name, problem.model).step), problem.model

    def why_not(problem: Problem) -> str | None:
        tasks = ("act_step", "solve") if layer is None else ("act_step", "solve", "block")
        if problem.case.task not in tasks:
            return f"it runs whole {'layers' if 'block' in tasks else 'ACT steps'}, without gradients"
        reason = peers.why_not_reduced(problem) if reduced else None
        return reason or EXECUTORS[executor_name].why_not(problem.model)

    return Provider(name, layer, step, why_not, reduced=reduced)


def _graphed(provider: Provider) -> Provider:
    return replace(provider, name=f"{provider.name}_graph", graph=True)


BASELINE = _official("official_eager", peers.why_not_official)
REFERENCE = _ours("rtm_reference", lambda problem: None, impl="reference")
TRITON = _ours("rtm_triton", _why_not_ours, impl="triton")
BEST = _graphed(TRITON)
PERSISTENT = _executor("rtm_persistent", "persistent")
NATIVE = _executor("rtm_native", "native", _native_layer)

PROVIDERS: tuple[Provider, ...] = (
    BASELINE,
    _official("official_precast", peers.why_not_precast, cast=True),
    _official("official_liger", peers.why_not_liger, kernels="liger"),
    _official("official_compiled", peers.why_not_compiled, compiled="default"),
    _official("official_compiled_graph", peers.why_not_compiled, graph=True, compiled="default"),
    _official("official_autotuned_graph", peers.why_not_compiled, graph=True, compiled="max-autotune-no-cudagraphs"),
    Provider("official_bfloat16", None, partial(peers.reduced_step, dtype="bfloat16"), peers.why_not_reduced,
             reduced=True),
    Provider("onnxruntime", peers.onnx_layer, peers.onnx_step, peers.why_not_onnx, leeway=4.0),
    REFERENCE,
    Provider("rtm_reference_compiled", None, _compiled_step, _why_not_compiled),
    TRITON,
    _ours("rtm_triton_flash", _why_not_flash, impl="triton", attention="flash"),
    BEST,
    _executor("rtm_graph_runner", "graph"),
    PERSISTENT,
    _graphed(PERSISTENT),
    NATIVE,
    _executor("rtm_native_bfloat16", "native-bfloat16", reduced=True),
    _executor("rtm_native_int8", "native-int8", reduced=True),
    _executor("rtm_symmetric", "symmetric"),
)  # fmt: skip
"""The baseline of every ratio comes first. A compiled one compiles its stacks of layers, in which all time is spent.
ONNX Runtime approximates exp, which a recursion magnifies; without its leeway it would be refused, and not compared."""
