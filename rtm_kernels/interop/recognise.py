"""Whether a live module holds the blocks of official TRM, HRM, RSM, URM or EqR code, in structure, code and values."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from rtm_kernels.errors import InputError

LOOKED_FOR = (
    "modules with `layers`, a ModuleList of blocks that have mlp.gate_up_proj, mlp.down_proj, norm_eps, and either "
    "self_attn.qkv_proj and self_attn.o_proj or mlp_t.gate_up_proj and mlp_t.down_proj"
)
STACKS = (("hidden_states", "input_injection"), ("hidden_states", "injection"), ("hidden_states",))
"""Parameters of the forward of a stack of TRM and HRM, of RSM, and of single-z TRM, cos_sin left out."""

VOCABULARY = """
    self_attn mlp mlp_t qkv_proj o_proj gate_up_proj down_proj layers norm_eps config hidden_size head_dim output_size
    num_heads num_key_value_heads causal norm_over_hidden weight bias cos_sin hidden_states injection input_injection
    variance_epsilon rms_norm apply_rotary_pos_emb rotate_half rotate cos sin q k v query key value x eps is_causal dim
    keepdim torch F nn functional einops rearrange scaled_dot_product_attention flash_attn_func silu linear cat rsqrt
    float float32 to type_as dtype shape size view reshape transpose permute contiguous chunk split unbind unsqueeze
    square pow mean isinstance tuple map input dwconv act _apply_rope apply_rotary_pos_emb_2d int is_cuda
    colored_exception ValueError RuntimeError None
"""
"""Names that the forward of an official block or of its parts reads, calls or passes by keyword."""


def holds_blocks(module: nn.Module) -> bool:
    """Whether `module` has `layers` with at least one block to look at closer."""
    layers = dict(module.named_children()).get("layers")  # the wrapper of torch.compile passes on other attributes
    if not isinstance(layers, nn.ModuleList):
        return False
    return any(hasattr(layer, "mlp") and (hasattr(layer, "self_attn") or hasattr(layer, "mlp_t")) for layer in layers)


def check_blocks(name: str, stack: nn.Module, taken: tuple[str, ...]) -> None:
    """Refuse a stack whose structure or code differs from the official one; `taken` are attributes it may not have.

    A probe sees neither dropout, nor a window longer than itself, nor a limit that it does not reach, nor what only
    training does. So the code is compared: each name and number in the forward of a block and its parts has to be one
    that the official code has.

    Errors: `InputError` naming the module and what differs.
    """
    mixes = all(hasattr(getattr(layer, "mlp", None), "dwconv") for layer in stack.layers)  # type: ignore[union-attr]
    if not is_stack(stack) and not mixes and not hasattr(stack, "lambda_"):
        signature = inspect.signature(type(stack).forward)
        raise InputError(f"{name}.forward{signature} is not that of an official stack: {' or '.join(map(str, STACKS))}")
    odd = [part for part in stack._modules if part != "layers"] or _odd_code(stack)
    if odd and is_stack(stack):  # URM and EqR keep their own forward
        raise InputError(f"{name} is not an official stack (it has {', '.join(odd)}); looked for {LOOKED_FOR}")
    for index, layer in enumerate(stack.layers):  # type: ignore[arg-type]
        if difference := _difference(layer, taken):
            raise InputError(f"{name}.layers.{index} is not an official block ({difference}); looked for {LOOKED_FOR}")


def _difference(layer: Any, taken: tuple[str, ...]) -> str:
    """How a module differs from an official block, or an empty string."""
    if not hasattr(layer, "mlp"):
        return "it has no mlp"
    attends = hasattr(layer, "self_attn")
    mixer = ("self_attn.qkv_proj", "self_attn.o_proj") if attends else ("mlp_t.gate_up_proj", "mlp_t.down_proj")
    linears = {"mlp.gate_up_proj", "mlp.down_proj", *mixer}
    weights = {f"{part}.weight" for part in linears}
    if hasattr(layer.mlp, "dwconv"):
        weights |= {"mlp.dwconv.weight", "mlp.dwconv.bias"}
        linears |= {f"mlp.{part}" for part in ("dwconv", "act") if hasattr(layer.mlp, part)}
    parts = {"", *linears, *(part.partition(".")[0] for part in linears)}
    present = {name for name, module in layer.named_modules() if not _does_nothing(module)}
    present |= {name for name, _ in (*layer.named_parameters(), *layer.named_buffers())}
    if differing := sorted((parts | weights) ^ present):
        return f"its weights and modules differ in {', '.join(differing)}"
    if kinds := {type(weight).__name__ for weight in layer.parameters()} - {"Parameter", "DTensor"}:
        return f"its weights are {', '.join(sorted(kinds))}"
    if not isinstance(getattr(layer, "norm_eps", None), float):
        return "it has no norm_eps"
    if own := [option for option in taken if hasattr(layer, option)]:
        return f"it has {', '.join(own)} of its own"
    if attends:
        heads = getattr(layer.self_attn, "num_heads", None)
        if not isinstance(heads, int) or getattr(layer.self_attn, "num_key_value_heads", heads) != heads:
            return "its self_attn lacks num_heads, or has fewer key and value heads"
    for part in sorted(parts):
        if odd := _odd_code(layer.get_submodule(part)):
            return f"the forward of {part or 'the block'} has {', '.join(odd)}"
    return ""


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (
        isinstance(module, torch.nn.modules.dropout._DropoutNd | nn.AlphaDropout) and module.p == 0
    )


def _odd_code(module: nn.Module) -> list[str]:
    """What the forward of `module` says that no official forward does: names, numbers, or a wrapper."""
    if "forward" in vars(module):
        return ["a forward of its own instance"]
    if isinstance(module, torch.jit.ScriptModule):
        return ["a TorchScript graph"]
    if type(module) in (nn.Linear, nn.Conv1d, nn.SiLU):
        return []
    if type(module).__call__ is not nn.Module.__call__:
        return ["a __call__ of its own"]
    if hasattr(type(module).forward, "__wrapped__"):
        return ["a decorator"]
    allowed = {*VOCABULARY.split(), *(name for name, part in module._modules.items() if part and _does_nothing(part))}
    odd = set()
    for code, scope in _codes(module):
        said = (word for word in (*_says(code), *code.co_freevars) if not isinstance(scope.get(word), types.ModuleType))
        odd |= {word for word in said if word not in allowed}
    return sorted(odd)


def _codes(module: nn.Module) -> Iterator[tuple[types.CodeType, dict[str, Any]]]:
    """The code of `forward` and of the Python functions it names, each with its globals; packages are left out."""
    found: set[types.CodeType] = set()
    left: list[Any] = [type(module).forward]
    while left:
        function = inspect.unwrap(left.pop())
        if function.__code__ in found or function.__module__.partition(".")[0] in ("torch", "einops", "flash_attn"):
            continue
        found.add(function.__code__)
        scope = {**function.__globals__, **vars(type(module))}
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        yield function.__code__.replace(co_consts=(*function.__code__.co_consts, *defaults)), scope
        names = [name for name in function.__code__.co_names if name != "colored_exception"]
        modules = [scope[name] for name in names if isinstance(scope.get(name), types.ModuleType)]
        named = [scope.get(name) for name in names]
        named += [getattr(place, name, None) for place in (type(module), *modules) for name in names]
        left += [value for value in named if isinstance(value, types.FunctionType)]


def _says(code: types.CodeType) -> Iterator[str]:
    """Names read or passed by keyword, and numbers but small whole ones, of a code object and those within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _says(constant)
        elif isinstance(constant, tuple) and constant and all(isinstance(item, str) for item in constant):
            yield from constant
        elif isinstance(constant, int | float) and constant not in range(-3, 4):
            yield str(constant)


def is_stack(module: nn.Module) -> bool:
    """Whether the module only applies its blocks to a sum; those of URM and EqR do more."""
    return parameters(module) in STACKS and not hasattr(module, "lambda_")


def call(stack: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The stack, or its blocks one after the other, on a probe input."""
    if is_stack(stack):
        return cast(Tensor, stack(**inputs))
    hidden: Tensor = inputs["hidden_states"]
    for layer in stack.layers:  # type: ignore[union-attr]
        hidden = layer(cos_sin=inputs["cos_sin"], hidden_states=hidden)
    return hidden


def parameters(stack: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of the stack's forward, without cos_sin."""
    found = list(inspect.signature(type(stack).forward).parameters.values())[1:]
    return tuple(p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "cos_sin")


def probe_inputs(stack: nn.Module) -> dict[str, Any]:
    """Random inputs [2, L, D] and rotary tables for a stack; bfloat16 for attention on CUDA, where flash needs it.

    Drawn on the CPU whatever the default device: official scripts build their models within `torch.device("cuda")`.
    """
    layer: Any = stack.layers[0]  # type: ignore[index]
    attends, weight = hasattr(layer, "self_attn"), layer.mlp.down_proj.weight
    width, device, length = weight.shape[0], weight.device, 6 if attends else layer.mlp_t.down_proj.weight.shape[0]
    dtype = torch.bfloat16 if attends and device.type == "cuda" else torch.float32
    draw = functools.partial(
        torch.randn, generator=torch.Generator("cpu").manual_seed(0), device="cpu", dtype=torch.float32
    )
    names = parameters(stack) if is_stack(stack) else ("hidden_states",)
    inputs: dict[str, Any] = {name: draw(2, length, width).to(device, dtype) for name in names}
    inputs["cos_sin"] = None
    if attends:
        head_dim = layer.self_attn.o_proj.weight.shape[1] // layer.self_attn.num_heads
        angles = draw(length, head_dim).to(device)
        inputs["cos_sin"] = (angles.cos(), angles.sin())
    return inputs


def with_values(stack: nn.Module) -> nn.Module:
    """The stack to probe: itself, or a copy of random weights on the CPU where its own are on the meta device."""
    if not next(stack.parameters()).is_meta:
        return stack
    made = copy.deepcopy(stack).to_empty(device="cpu")
    generator = torch.Generator("cpu").manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    return made
