"""The CPU executor of programs: packed weights, fused layers and heads, no Python between steps (csrc/cpu).

A sample's result has the same bits in any batch and with any number of threads. Latents are float32, and so are the
products unless `precision` says otherwise; no autograd.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtm_kernels.errors import BackendUnavailable, InputError, one_of, require
from rtm_kernels.program import INPUT, Program
from rtm_kernels.recursion import library
from rtm_kernels.recursion.library import Layer, Model, address, addresses, empty
from rtm_kernels.recursion.reference import ActStep
from rtm_kernels.recursion.sources import digest
from rtm_kernels.recursion.tape import encode

CSRC = Path(__file__).resolve().parents[2] / "csrc" / "cpu"
"""Where the sources of the library lie in a checkout; an installed package has none."""


@functools.cache
def why_not() -> str | None:
    """What keeps the native executor from running here, or None when it can."""
    name = f"the library rtm_kernels/{library.PATH.name}"
    if not library.PATH.exists():
        return f"{name} is not compiled (that needs a C++ compiler when the package is installed)"
    try:
        sources = library.loaded().rtm_sources().decode()
    except (OSError, AttributeError) as error:
        return f"{name} does not load: {error}"
    if CSRC.is_dir() and sources != digest(CSRC):
        return f"{name} is older or newer than {CSRC} (`make native` builds it anew)"
    return None


PRECISIONS = ("float32", "bfloat16", "int8")
"""Formats of the operands of the products; everything else is float32.

`int8`: weights with a scale for each output (and for each 512 of a longer row), activations with a scale for each
token (channel mix) or channel (token mix), found as they come. `bfloat16`: both rounded to nearest even.
"""

INSTRUCTIONS = {"float32": "float32", "bfloat16": "AVX512-BF16", "int8": "AVX512-VNNI"}


def isas(precision: str = "float32") -> tuple[str, ...]:
    """Instruction sets of this processor that compute in `precision`, the fastest first.

    Of `avx512`, `avx2` and `portable` for float32, `avx512_bf16` for bfloat16, `avx512_vnni` for int8.
    Errors: `BackendUnavailable` without the compiled library.
    """
    one_of("precision", precision, PRECISIONS)
    reason = why_not()
    if reason is not None:
        raise BackendUnavailable(f"the native executor cannot run: {reason}")
    return tuple(library.loaded().rtm_isas(precision.encode()).decode().split(",")[:-1])


def why_not_precision(precision: str) -> str | None:
    """What keeps the native executor from computing in `precision` here, or None when it can."""
    one_of("precision", precision, PRECISIONS)
    reason = why_not()
    if reason is None and not isas(precision):
        reason = f"precision={precision!r} needs the {INSTRUCTIONS[precision]} instructions, which this processor lacks"
    return reason


MLP_MIXER = ("mlp_t.gate_up_proj.weight", "mlp_t.down_proj.weight")
ATTENTION = ("self_attn.qkv_proj.weight", "self_attn.o_proj.weight")
CONV = ("mlp.dwconv.weight", "mlp.dwconv.bias")
CHANNEL = ("mlp.gate_up_proj.weight", "mlp.down_proj.weight")


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """What reads the output latent y after an ACT step, in float32 at every position: y w^T + bias.

    `tokens` [V, D] gives the logits of the vocabulary at the positions from `prefix` on, `halting` a weight [K, D] and
    a bias [K] (or None) the halting logits. Either may be None.
    """

    tokens: Tensor | None = None
    halting: tuple[Tensor, Tensor | None] | None = None
    prefix: int = 0

    @property
    def width(self) -> int:
        """D. Errors: `InputError` without any weight."""
        weights = [w for w in (self.tokens, None if self.halting is None else self.halting[0]) if w is not None]
        require(bool(weights), "heads", None, "weights of stacks or of heads")
        return int(weights[0].shape[-1])

    def stacked(self, width: int) -> tuple[Tensor, Tensor, int]:
        """Weight [V + K, D] and bias [V + K] of both heads, and V. Errors: `InputError` for another width or bias."""
        tokens = empty(0, width) if self.tokens is None else float32(self.tokens)
        weight, bias = (empty(0, width), None) if self.halting is None else self.halting
        bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
        for name, value in (("tokens", tokens), ("halting", weight)):
            require(value.ndim == 2 and value.shape[1] == width, name, tuple(value.shape), f"a weight [N, D={width}]")
        require(tuple(bias.shape) == (len(weight),), "bias", tuple(bias.shape), f"one for each of {len(weight)} rows")
        require(self.prefix >= 0, "prefix", self.prefix, "at least 0")
        both = torch.cat((tokens, float32(weight))), torch.cat((torch.zeros_like(tokens[:, 0]), float32(bias)))
        return both[0].contiguous(), both[1].contiguous(), len(tokens)


class NativeExecutor:
    """Executes `program` with the weights of `stacks`, packed once; later changes of the weights are not seen.

    A stack is a module whose `layers` are `FusedTRMBlock`s; `cos_sin` are RoPE tables [L, head_dim] of their attention.
    `heads` read the output latent after an ACT step; a program without steps has them alone. `isa` names an
    instruction set of `isas(precision)`, or `auto` for the fastest; `precision` is one of `PRECISIONS`. Several threads
    may call at once.
    Errors: `BackendUnavailable` without the compiled library or the instructions that `precision` needs,
    `InputError` for weights that do not fit together.
    """

    def __init__(
        self,
        program: Program,
        stacks: Mapping[str, nn.Module],
        heads: HeadWeights | None = None,
        *,
        cos_sin: tuple[Tensor, Tensor] | None = None,
        isa: str = "auto",
        precision: str = "float32",
    ) -> None:
        supported = isas(precision)
        reason = why_not_precision(precision)
        if reason is not None:
            raise BackendUnavailable(f"the native executor cannot run: {reason}")
        one_of("isa", isa, ("auto", *supported))
        for name in program.stacks:
            require(name in stacks, "stacks", sorted(stacks), f"weights of the stack {name!r} are needed")
        self.program, self.names, self.precision = program, program.latents, precision
        self.isa = supported[0] if isa == "auto" else isa
        self.heads, self._tables = heads or HeadWeights(), [float32(table) for table in cos_sin or ()]
        blocks = [block for stack in stacks.values() for block in stack.get_submodule("layers").children()]
        self.hidden_size = int(blocks[0].get_parameter(CHANNEL[1]).shape[0]) if blocks else self.heads.width
        self.seq_len: int | None = None
        sizes = self.hidden_size, len(self.names)
        self._model = Model("native", self.isa.encode(), precision.encode(), *sizes, tape=encode(program))
        for number, name in enumerate(program.stacks):
            for block in stacks[name].get_submodule("layers").children():
                self._add_layer(number, name, block)
        weight, bias, self._tokens = self.heads.stacked(self.hidden_size)
        rows, output = len(weight), self.names.index(program.output)
        read = address(weight, (rows, self.hidden_size)), address(bias, (rows,))
        self._model("set_heads", output, rows, self._tokens, self.heads.prefix, *read)

    def _add_layer(self, number: int, stack: str, block: Any) -> None:
        width, heads, reduced = self.hidden_size, block.num_heads, self.precision != "float32"
        channel = _swiglu_weights(block, CHANNEL, stack, width)
        weights = dict(zip(("gate_up", "down"), channel, strict=True))
        inner, taps = channel[1].shape[1], 0
        if block.channel_mixer != "swiglu":
            taps = block.get_parameter(CONV[0]).shape[-1]
            kernel = (taps, taps) if block.channel_mixer == "conv2d" else (taps,)
            conv = _checked(block, CONV, stack, ((inner, 1, *kernel), (inner,)))
            weights |= zip(("conv", "conv_bias"), conv, strict=True)
        if block.mixer == "none":
            require(taps > 0, "channel_mixer", block.channel_mixer, "conv or conv2d without a mixer")
        elif block.mixer == "mlp":
            require(taps == 0, "channel_mixer", block.channel_mixer, "swiglu with the MLP mixer")
            self._fix_length(stack, int(block.get_parameter(MLP_MIXER[1]).shape[0]))
            mixer = _swiglu_weights(block, MLP_MIXER, stack, self.seq_len or 0)
            weights |= zip(("mixer_gate_up", "mixer_down"), mixer, strict=True)
        else:
            attention = _checked(block, ATTENTION, stack, ((3 * width, width), (width, width)))
            weights |= zip(("qkv", "out"), attention, strict=True)
            if self._tables:
                self._check_tables(stack, width // heads)
                weights |= zip(("cos", "sin"), self._tables, strict=True)
        layer = Layer(
            **{name: weight.data_ptr() for name, weight in weights.items()}, F=inner, L=self.seq_len or 0,
            mixer_F=weights["mixer_down"].shape[1] if block.mixer == "mlp" else 0, heads=heads, conv_width=taps,
            prefix=block.prefix_len, eps=block.eps, causal=block.causal, qk_norm=block.qk_norm,
            conv_grid=block.channel_mixer == "conv2d", norm_hidden=block.norm_axis == "hidden", reduced=reduced,
        )  # fmt: skip
        self._model("add_layer", number, ctypes.byref(layer))

    def _check_tables(self, stack: str, head_dim: int) -> None:
        shapes, wanted = [tuple(table.shape) for table in self._tables], (len(self._tables[0]), head_dim)
        require(shapes == [wanted] * 2, "cos_sin", shapes, f"two tables [L, head_dim={head_dim}]")
        require(head_dim % 2 == 0, "head_dim", head_dim, "even with rotary positions")
        self._fix_length(stack, wanted[0])

    def _fix_length(self, stack: str, length: int) -> None:
        known = self.seq_len
        require(known in (None, length), f"{stack}: L", length, f"other layers have L={known}")
        self.seq_len = length

    def run(
        self, latents: Mapping[str, Tensor], x: Tensor, begin: int = 0, end: int | None = None
    ) -> dict[str, Tensor]:
        """Steps [begin, end) of the program from `latents` with input embedding `x`; returns the new latents.

        All [B, L, D] float32 on the CPU, as `recursion.reference.run`; nothing is modified in place.
        Errors: `InputError` for a shape, dtype or device that does not fit, or a latent that is read but missing.
        """
        end = len(self.program) if end is None else end
        require(0 <= begin <= end <= len(self.program), "begin, end", (begin, end), f"0 to {len(self.program)}")
        buffers, new = self._buffers(self.program[begin:end], latents, x)
        x = x.contiguous()
        at = addresses(buffers, [x.shape] * len(buffers)), address(x, x.shape), *x.shape[:2]
        self._model("run", *at, begin, end, torch.get_num_threads())
        return {**latents, **new}

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        """One ACT step: the whole program from `latents` with input embedding `x`, then the heads.

        Errors: those of `run`.
        """
        buffers, new = self._buffers(self.program, latents, x)
        prefix, tokens = self.heads.prefix, self._tokens
        require(prefix <= x.shape[1], "prefix", prefix, f"at most L={x.shape[1]}")
        x, (B, L) = x.contiguous(), x.shape[:2]
        width = tokens + (0 if self.heads.halting is None else len(self.heads.halting[0]))
        logits, answers = empty(B, L, width), empty(B, L - prefix if tokens else 0, dtype=torch.int32)
        finite, change = empty(B, dtype=torch.bool), empty(B)
        at = addresses(buffers, [x.shape] * len(buffers)), address(x, x.shape), B, L
        seen = (address(t, t.shape, t.dtype) for t in (logits, answers, finite, change))
        self._model("act_step", *at, *seen, torch.get_num_threads())
        q = None if self.heads.halting is None else logits[..., tokens:]
        moved = change if self.program.output in self.program.carried else None
        first = None if q is None else q[:, 0]
        return ActStep({**latents, **new}, logits[:, prefix:, :tokens], first, answers, finite, moved, q)

    def _buffers(
        self, part: Program, latents: Mapping[str, Tensor], x: Tensor
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """A tensor for every latent, fresh where `part` writes it, and those that it writes by name."""
        self._check(INPUT, x, x)
        for name in part.carried:
            require(name in latents, "latents", sorted(latents), f"the program reads {name!r} first")
        written = {step.dst for step in part.steps}
        buffers = []
        for name in self.names:
            value = latents.get(name)
            if value is None:
                buffers.append(torch.zeros_like(x, memory_format=torch.contiguous_format))
                continue
            self._check(name, value, x)
            fresh = name in written
            buffers.append(value.detach().clone(memory_format=torch.contiguous_format) if fresh else value.contiguous())
        return buffers, {name: value for name, value in zip(self.names, buffers, strict=True) if name in written}

    def _check(self, name: str, value: Tensor, x: Tensor) -> None:
        if value.dtype != torch.float32 or value.device.type != "cpu":
            raise InputError(f"{name} is {value.dtype} on {value.device}; the native executor needs float32 on cpu")
        if torch.is_grad_enabled() and value.requires_grad:
            raise InputError(f"{name} requires grad; the native executor has no autograd (use torch.no_grad())")
        length = x.shape[1] if self.seq_len is None and x.ndim == 3 else self.seq_len
        if value.ndim != 3 or value.shape != (x.shape[0], length, self.hidden_size):
            raise InputError(
                f"{name} has shape {tuple(value.shape)}; expected [B={x.shape[0] if x.ndim else '?'}, "
                f"L={length}, D={self.hidden_size}]"
            )


def _swiglu_weights(block: nn.Module, names: Sequence[str], stack: str, width: int) -> list[Tensor]:
    """gate_up [2F, width] and down [width, F] of a layer. Errors: `InputError` for shapes that do not fit together."""
    inner = int(block.get_parameter(names[1]).shape[-1])
    return _checked(block, names, stack, ((2 * inner, width), (width, inner)))


def _checked(block: nn.Module, names: Sequence[str], stack: str, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Weights of a layer in float32, contiguous on the CPU. Errors: `InputError` for another shape."""
    weights = [block.get_parameter(name) for name in names]
    for name, weight, shape in zip(names, weights, shapes, strict=True):
        require(tuple(weight.shape) == shape, f"{stack}: {name}.shape", tuple(weight.shape), f"{shape}")
    return [float32(weight) for weight in weights]


def float32(weight: Tensor) -> Tensor:
    """`weight` as float32, contiguous on the CPU."""
    return weight.detach().to(device="cpu", dtype=torch.float32).contiguous()
