"""FusedTRMBlock and its parts: official names, the formula written out, gradients, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rtm_kernels.block import FusedTRMBlock, Stack, trunc_normal
from rtm_kernels.errors import InputError
from rtm_kernels.ops.attention_norm.reference import rope_tables

B, L, D, HEADS = 3, 7, 24, 3
KINDS = {
    "mlp_sequence": {"mixer": "mlp", "norm_axis": "sequence"},
    "mlp_hidden": {"mixer": "mlp", "norm_axis": "hidden"},
    "attention": {"mixer": "attention", "num_heads": HEADS},
    "causal": {"mixer": "attention", "num_heads": HEADS, "causal": True},
    "qk_norm": {"mixer": "attention", "num_heads": HEADS, "qk_norm": True},
}


def make(kind: str, **changes) -> FusedTRMBlock:
    torch.manual_seed(0)
    return FusedTRMBlock(D, L, **{"expansion": 1, "impl": "reference"} | KINDS[kind] | changes)


def inputs(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape or (B, L, D), generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm(x: Tensor, dim: int, eps: float = 1e-5) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim, keepdim=True) + eps)


def swiglu(x: Tensor, weights) -> Tensor:
    up = x @ weights.gate_up_proj.weight.to(x.dtype).T
    inner = up.shape[-1] // 2
    gate = up[..., :inner]
    return (gate / (1 + torch.exp(-gate)) * up[..., inner:]) @ weights.down_proj.weight.to(x.dtype).T


def attend(x: Tensor, block: FusedTRMBlock, cos_sin=None) -> Tensor:
    """Attention head by head and row by row."""
    weights, width = block.self_attn, D // HEADS
    qkv = (x @ weights.qkv_proj.weight.to(x.dtype).T).view(*x.shape[:2], 3 * HEADS, width)
    out = torch.zeros(*x.shape[:2], HEADS, width, dtype=x.dtype)
    for head in range(HEADS):
        q, k, v = (qkv[:, :, head + part * HEADS] for part in range(3))
        if block.qk_norm:
            q, k = norm(q, -1), norm(k, -1)
        if cos_sin is not None:
            half = width // 2
            q, k = (t * cos_sin[0] + torch.cat((-t[..., half:], t[..., :half]), -1) * cos_sin[1] for t in (q, k))
        scores = q @ k.transpose(1, 2) / width**0.5
        if block.causal:
            scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -torch.inf)
        out[:, :, head] = torch.softmax(scores, -1) @ v
    return out.flatten(2) @ weights.o_proj.weight.to(x.dtype).T


def expected(block: FusedTRMBlock, h: Tensor, cos_sin=None) -> Tensor:
    if block.mixer == "attention":
        h = norm(h + attend(h, block, cos_sin), -1)
    else:
        mixed = swiglu(h.transpose(1, 2), block.mlp_t).transpose(1, 2)
        h = norm(h + mixed, 1 if block.norm_axis == "sequence" else 2)
    return norm(h + swiglu(h, block.mlp), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_formula_in_float64(kind: str) -> None:
    block, x = make(kind), inputs(dtype=torch.float64)
    torch.testing.assert_close(block(x), expected(block, x), rtol=1e-12, atol=1e-12)
    low, high = block(x.float()), block(x)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), high, rtol=0, atol=1e-4)
    assert block(x.bfloat16()).dtype == torch.bfloat16


def test_rotary_positions() -> None:
    block, x = make("attention"), inputs(dtype=torch.float64)
    tables = tuple(table.double() for table in rope_tables(L, D // HEADS, 10000.0))
    with_rope = block(x, cos_sin=tables)
    torch.testing.assert_close(with_rope, expected(block, x, tables), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(with_rope, block(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terms", [1, 2, 6])
def test_injection_is_an_addition_from_left_to_right(kind: str, terms: int) -> None:
    block, x = make(kind), inputs()
    injection = tuple(inputs(seed=2 + i) for i in range(terms))
    total = injection[0]
    for term in injection[1:]:
        total = total + term
    assert torch.equal(block(x, injection), block(x + total))


def test_a_stack_injects_once() -> None:
    stack, x, injection = Stack([make("mlp_sequence"), make("mlp_hidden")]), inputs(), inputs(seed=2)
    first, second = stack.layers
    assert torch.equal(stack(x, (injection,)), second(first(x + injection)))
    assert next(iter(dict(stack.named_parameters()))) == "layers.0.mlp_t.gate_up_proj.weight"


def test_truncated_normal() -> None:
    torch.manual_seed(0)
    draw = trunc_normal(400, 500, std=0.3)
    assert abs(draw.std().item() - 0.3) < 1e-3 and abs(draw.mean().item()) < 2e-3
    bound = draw.abs().max().item()
    inside = torch.special.ndtr(torch.tensor(2.0)).item() * 2 - 1
    density = torch.exp(torch.tensor(-2.0)).item() / (2 * torch.pi) ** 0.5
    scale = 0.3 / (1 - 4 * density / inside) ** 0.5
    assert 1.99 * scale < bound <= 2 * scale * (1 + 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixer": "conv"}, "mixer='conv' is not allowed: expected one of mlp, attention"),
        ({"norm_axis": "batch"}, "norm_axis='batch' is not allowed"),
        ({"impl": "cuda"}, "impl='cuda' is not allowed: expected one of auto"),
        ({"seq_len": None}, "seq_len=None is not allowed: mixer='mlp' needs the length"),
        ({"mixer": "attention", "num_heads": 5}, "num_heads=5 is not allowed: a divisor of hidden_size=24"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FusedTRMBlock(**{"hidden_size": D, "seq_len": L} | arguments)
