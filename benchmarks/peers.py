"""The official structure in the ways that people run it, and other libraries: what this package is compared with."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import official
from benchmarks.cases import COMPILED, SHORT, TRAINING
from benchmarks.problem import Inputs, Problem, clone

Layer = Callable[[Inputs], Tensor]
StepFunction = Callable[[Inputs], tuple[Inputs, Tensor, Tensor | None]]
"""One ACT step: inputs to (inputs with the new latents, logits, q logits)."""


def _model(problem: Problem, *, cast: bool = False, compiled: str | None = None, kernels: str = "") -> Any:
    model = official.inner(problem)
    if cast and problem.case.task not in TRAINING:
        official.precast(model, getattr(torch, problem.config.forward_dtype))
    if kernels == "liger":
        official.use_liger(model)
    if compiled is not None:
        for name in problem.config.layers:
            setattr(model, name, torch.compile(getattr(model, name), mode=compiled, dynamic=False))
    return model


def layer(problem: Problem, *, compiled: str | None = None, **options: Any) -> Layer:
    """One layer, or half of one."""
    model = _model(problem, **options)
    half: Any = official.HalfLayer(model.L_level.layers[0], problem.case.task)
    if compiled is not None:
        half = torch.compile(half, mode=compiled, dynamic=False)
    cos_sin = model.cos_sin()
    return lambda inputs: half(inputs, cos_sin)


def step(problem: Problem, **options: Any) -> tuple[StepFunction, nn.Module]:
    """One ACT step, and the module whose parameters are trained."""
    model = _model(problem, **options)
    return partial(official.act_step, model), model


def reduced_step(problem: Problem, dtype: str) -> tuple[StepFunction, nn.Module]:
    """One ACT step of a float32 problem with weights and latents in `dtype`."""
    case = replace(problem.case, dtype=dtype)
    run, model = step(replace(problem, case=case, model=clone(problem.model, forward_dtype=dtype)), cast=True)
    kind = getattr(torch, dtype)

    def reduced(inputs: Inputs) -> tuple[Inputs, Tensor, Tensor | None]:
        return run({k: v.to(kind) if v.is_floating_point() else v for k, v in inputs.items()})

    return reduced, model


def onnx_layer(problem: Problem) -> Layer:
    """One layer, or half of one, exported and run by ONNX Runtime."""
    model = official.inner(problem).requires_grad_(False)
    half, cos_sin = official.HalfLayer(model.L_level.layers[0], problem.case.task), model.cos_sin()
    run = onnx_session(lambda inputs: (half(inputs, cos_sin),), problem.inputs[0], ("out",))
    return lambda inputs: run(inputs)[0]


def onnx_step(problem: Problem) -> tuple[StepFunction, nn.Module]:
    """One ACT step, exported and run by ONNX Runtime."""
    model = official.inner(problem).requires_grad_(False)

    def flat(inputs: Inputs) -> tuple[Tensor, ...]:
        new, logits, q = official.act_step(model, inputs)
        return new["z_H"], new["z_L"], logits, q

    run = onnx_session(flat, problem.inputs[0], ("new_z_H", "new_z_L", "logits", "q"))

    def act_step(inputs: Inputs) -> tuple[Inputs, Tensor, Tensor]:
        z_h, z_l, logits, q = run(inputs)
        return {**inputs, "z_H": z_h, "z_L": z_l}, logits, q

    return act_step, model


def onnx_session(
    function: Callable[[Inputs], Sequence[Tensor]], example: Inputs, outputs: Sequence[str]
) -> Callable[[Inputs], list[Tensor]]:
    """`function` as an ONNX Runtime session of default optimisations, with as many threads as PyTorch has now."""
    import onnxruntime

    names = sorted(example)

    class Flat(nn.Module):
        def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
            return tuple(function(dict(zip(names, values, strict=True))))

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        named: dict[str, Any] = {"input_names": names, "output_names": list(outputs)}
        values = tuple(example[name] for name in names)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter that needs no further package is the older one
            torch.onnx.export(Flat(), values, path, dynamo=False, opset_version=17, **named)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    used = [i.name for i in session.get_inputs()]  # inputs that the graph does not read are not its inputs

    def run(inputs: Inputs) -> list[Tensor]:
        return [torch.from_numpy(out) for out in session.run(None, {name: inputs[name].numpy() for name in used})]

    return run


def absent(*packages: str) -> str | None:
    """Which of `packages` are not installed, or None."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def why_not_official(problem: Problem) -> str | None:
    """Why the official structure cannot do `problem`, or None; likewise for the other functions of this name."""
    return official.why_not(problem.config)


def why_not_precast(problem: Problem) -> str | None:
    reason = "the weights are already float32" if problem.case.dtype == "float32" else None
    reason = "weights are trained in float32" if problem.case.task in TRAINING else reason
    return why_not_official(problem) or reason


def why_not_compiled(problem: Problem) -> str | None:
    case = problem.case
    slow = case.task not in ("block", "act_step") or case.batch > 1 or case.model in ("hrm", "bundled")
    if case.device == "cuda":
        slow = (case.model, case.task, case.batch) not in COMPILED
    reason = "compiling it on this many cores takes the time of the run" if slow and case.model not in SHORT else None
    return why_not_official(problem) or reason


def why_not_liger(problem: Problem) -> str | None:
    reason = absent("liger_kernel") if problem.case.device == "cuda" else "it needs a CUDA device"
    return reason or why_not_official(problem)


def why_not_flash(problem: Problem) -> str | None:
    case = problem.case
    if case.device != "cuda" or case.config.mixer != "attention":
        return "it is attention on a CUDA device"
    if case.dtype == "float32":
        return "it computes in float16 or bfloat16"
    return "the channel half has no attention" if case.task == "channel" else absent("flash_attn")


def why_not_onnx(problem: Problem) -> str | None:
    case = problem.case
    if case.device != "cpu" or case.dtype != "float32":
        return "measured in float32 on the CPU"
    if case.task in TRAINING:
        return "it runs inference"
    return absent("onnx", "onnxruntime") or why_not_official(problem)


def why_not_reduced(problem: Problem) -> str | None:
    wanted = problem.case.model in SHORT and problem.case.task == "act_step"
    return None if wanted else "reduced formats are measured in the ACT steps of `python -m benchmarks.run --peers`"
