"""`accelerate` on models that call their blocks themselves: URM, and EqR with its relaxation and two-axis RoPE."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtm_kernels import accelerate, restore
from rtm_kernels.errors import InputError
from rtm_kernels.interop.accelerate import Accelerated
from rtm_kernels.ops.attention_norm.reference import rope_tables
from tests.interop.official_structure import rms_norm

WIDTH, HEADS, INNER = 16, 2, 24


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def apply_rotary_pos_emb_2d(x: Tensor, cos: tuple[Tensor, Tensor], sin: tuple[Tensor, Tensor]) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    a = rotate(a, cos[0][:, None, None], sin[0][:, None, None])
    return torch.cat((a, rotate(b, cos[1][:, None], sin[1][:, None])), dim=-1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.causal = HEADS, False
        self.qkv_proj, self.o_proj = nn.Linear(WIDTH, 3 * WIDTH, False), nn.Linear(WIDTH, WIDTH, False)

    def forward(self, cos_sin, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv_proj(x).view(batch, length, 3, self.num_heads, -1).unbind(2)
        (cos, sin) = cos_sin
        if isinstance(cos, tuple):
            grid = (batch, int(cos[0].shape[0]), int(cos[1].shape[0]), self.num_heads, -1)
            q, k = (apply_rotary_pos_emb_2d(x.view(grid), cos, sin).view(v.shape) for x in (q, k))
        else:
            q, k = rotate(q, cos[:, None], sin[:, None]), rotate(k, cos[:, None], sin[:, None])
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(WIDTH, 2 * INNER, False), nn.Linear(INNER, WIDTH, False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class ConvSwiGLU(SwiGLU):
    def __init__(self) -> None:
        super().__init__()
        self.dwconv, self.act = nn.Conv1d(INNER, INNER, 2, padding=1, groups=INNER), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        x = self.dwconv((F.silu(gate) * up).transpose(1, 2).to(self.dwconv.weight.dtype))[..., : up.size(1)]
        return self.down_proj(self.act(x).transpose(1, 2).to(up.dtype))


class Late(ConvSwiGLU):
    """Sees t and t + 1 instead of t - 1 and t."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        x = self.dwconv((F.silu(gate) * up).transpose(1, 2).to(self.dwconv.weight.dtype))[..., 1:]
        return self.down_proj(self.act(x).transpose(1, 2).to(up.dtype))


class Block(nn.Module):
    def __init__(self, mlp: type[SwiGLU]) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.norm_eps = Attention(), mlp(), 1e-5

    def forward(self, cos_sin, hidden_states: Tensor) -> Tensor:
        x = rms_norm(hidden_states + self.self_attn(cos_sin, hidden_states), self.norm_eps)
        return rms_norm(x + self.mlp(x), self.norm_eps)


class URM(nn.Module):
    def __init__(self, mlp: type[SwiGLU] = ConvSwiGLU) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(mlp) for _ in range(2)])

    def forward(self, carry: Tensor, x: Tensor) -> Tensor:
        for _ in range(3):
            carry = carry + x
            for layer in self.layers:
                carry = layer(cos_sin=rope_tables(x.shape[1], WIDTH // HEADS, 1e4), hidden_states=carry)
        return carry


class Relaxed(nn.Module):
    """EqR's stack; its rotary tables are those of a grid of 3 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.lambda_ = nn.ModuleList([Block(SwiGLU)]), 0.9

    def forward(self, hidden_states: Tensor, input_injection: Tensor, **kwargs) -> Tensor:
        updated = hidden_states + input_injection
        for layer in self.layers:
            updated = layer(hidden_states=updated, **kwargs)
        return (1 - self.lambda_) * hidden_states + self.lambda_ * updated


class EqR(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.L_level = Relaxed()

    def forward(self, carry: Tensor, x: Tensor) -> Tensor:
        (cos_r, sin_r), (cos_c, sin_c) = (rope_tables(n, WIDTH // HEADS // 2, 1e4) for n in (3, 4))
        return self.L_level(carry, x, cos_sin=((cos_r, cos_c), (sin_r, sin_c)))


@pytest.mark.parametrize("kind", [URM, EqR])
def test_outputs_and_gradients_stay(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, carry, x = kind(), torch.randn(2, 12, WIDTH), torch.randn(2, 12, WIDTH)
    names = list(model.state_dict())

    def run() -> list[Tensor]:
        model.zero_grad()
        y = model(carry, x)
        y.square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in model.parameters())]  # type: ignore[union-attr]

    before = run()
    assert accelerate(model) is model and list(model.state_dict()) == names
    assert sum(isinstance(module, Accelerated) for module in model.modules()) == 1 + len(model.get_submodule(
        "layers" if kind is URM else "L_level.layers"
    )._modules)  # fmt: skip
    for expected, got in zip(before, run(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    restore(model)
    assert not any(isinstance(module, Accelerated) for module in model.modules())
    for expected, got in zip(before, run(), strict=True):
        assert torch.equal(got, expected)


def test_another_convolution_is_refused() -> None:
    model = URM(Late)
    with pytest.raises(InputError, match="computes something else"):
        accelerate(model)
    assert not any(isinstance(module, Accelerated) for module in model.modules())


def test_the_published_convolution_in_bfloat16_is_kept() -> None:
    model, carry, x = URM(), *torch.randn(2, 2, 12, WIDTH)
    for layer in model.layers:
        layer.mlp.dwconv.to(torch.bfloat16)
    expected = model(carry, x)
    torch.testing.assert_close(accelerate(model)(carry, x), expected, rtol=2e-2, atol=5e-2)
