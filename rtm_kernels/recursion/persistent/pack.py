"""The weights of every layer of every stack in one buffer, so that a layer is an offset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rtm_kernels.errors import BackendUnavailable, InputError, require

Stacks = Mapping[str, nn.Module | Iterable[nn.Module]]
"""Stack name -> a module whose `layers` are `FusedTRMBlock`s, or the layers themselves."""

ROW_MULTIPLE = 8
"""Rows of a packed weight start at multiples of this many elements: 16 bytes in bfloat16."""

SECTION_MULTIPLE = 64


@dataclass(frozen=True)
class Layout:
    """Where the four weights of a layer lie, in elements from the start of the layer.

    gate_up of the mixer [2 * inner_len, L] is at 0, its down [L, inner_len] at `mix_down`, the channel's gate_up
    [2 * inner_width, D] at `gate_up` and its down [D, inner_width] at `down`. Rows are padded with zeros to a
    multiple of `ROW_MULTIPLE`.
    """

    length: int
    width: int
    inner_len: int
    inner_width: int

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The four weight shapes, in storage order."""
        return (
            (2 * self.inner_len, self.length), (self.length, self.inner_len),
            (2 * self.inner_width, self.width), (self.width, self.inner_width),
        )  # fmt: skip

    @property
    def offsets(self) -> tuple[int, ...]:
        """Starts of the four weights and, last, the size of a layer."""
        starts = [0]
        for rows, columns in self.shapes:
            starts.append(starts[-1] + round_up(rows * round_up(columns, ROW_MULTIPLE), SECTION_MULTIPLE))
        return tuple(starts)


def round_up(n: int, multiple: int) -> int:
    """The least multiple of `multiple` that is at least `n`."""
    return -(n // -multiple) * multiple


def why_not_stacks(stacks: Stacks) -> str | None:
    """What keeps the stacks from running in the persistent kernel, or None when they can."""
    for name, layers in stacks.items():
        for i, layer in enumerate(_layers(layers)):
            if not (hasattr(layer, "mlp_t") and hasattr(layer, "mlp")):
                return (
                    f"layer {i} of stack {name!r} has no MLP mixer (mlp_t); the persistent kernel has no attention, "
                    "use the graph or the fused executor"
                )
    return None


class PackedLayers:
    """The weights of all layers in one contiguous buffer [layers, layer_size] of the compute dtype, on their device.

    `norm_axis` and `eps` are those of the layers, which must agree.

    Errors: `BackendUnavailable` for a layer without an MLP mixer, `InputError` for layers of different shapes.
    """

    @torch.inference_mode(False)  # a buffer that may be written in any mode
    def __init__(self, stacks: Stacks, dtype: torch.dtype | None = None) -> None:
        reason = why_not_stacks(stacks)
        if reason is not None:
            raise BackendUnavailable(reason)
        names = [f"{name}.weight" for mlp in ("mlp_t", "mlp") for name in (f"{mlp}.gate_up_proj", f"{mlp}.down_proj")]
        layers = {
            stack: [tuple(layer.get_parameter(name) for name in names) for layer in _layers(blocks)]
            for stack, blocks in stacks.items()
        }
        flat = [(f"stacks[{name!r}][{i}]", w) for name, ws in layers.items() for i, w in enumerate(ws)]
        require(len(flat) > 0, "stacks", dict(stacks), "at least one layer")
        (length, inner_len), (width, inner_width) = (weight.shape for weight in flat[0][1][1::2])  # both down
        self.layout = Layout(length, width, inner_len, inner_width)
        self.norm_axis, self.eps = _norm(stacks)
        self.stack_layers: dict[str, range] = {}
        for name, stack_weights in layers.items():
            require(len(stack_weights) > 0, f"stacks[{name!r}]", [], "at least one layer")
            first = sum(len(r) for r in self.stack_layers.values())
            self.stack_layers[name] = range(first, first + len(stack_weights))
        self.data = flat[0][1][0].detach().new_zeros(len(flat), self.layout.offsets[-1], dtype=dtype)
        for index, (where, weights) in enumerate(flat):
            self._pack(index, weights, where)

    def _pack(self, index: int, weights: tuple[Tensor, ...], where: str) -> None:
        for start, shape, weight in zip(self.layout.offsets, self.layout.shapes, weights, strict=False):
            if tuple(weight.shape) != shape:
                raise InputError(f"{where} has a weight {tuple(weight.shape)}, and every layer must have {shape}")
            rows, columns = shape
            section = self.data[index, start : start + rows * round_up(columns, ROW_MULTIPLE)]
            section.view(rows, -1)[:, :columns].copy_(weight.detach())


def _layers(stack: nn.Module | Iterable[nn.Module]) -> Iterable[nn.Module]:
    return stack.get_submodule("layers") if isinstance(stack, nn.Module) else stack  # type: ignore[return-value]


def _norm(stacks: Stacks) -> tuple[str, float]:
    norms = {(str(layer.norm_axis), float(layer.eps)) for stack in stacks.values() for layer in _layers(stack)}  # type: ignore[arg-type]
    require(len(norms) == 1, "norm_axis, eps of the layers", sorted(norms), "the same for all layers")
    return norms.pop()
