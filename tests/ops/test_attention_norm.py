"""attention_norm: tables, wrong input, and which attention runs. The rest is in `test_half_layers.py`."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.ops.attention_norm import api, attention
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import rope_tables
from tests.ops.support import gradients, half_layer, to

pytest.importorskip("triton")


def inputs(batch: int, length: int, width: int) -> tuple[Tensor, ...]:
    """x, qkv_weight and o_weight, as leaves in float32."""
    return half_layer("attention", (batch, length, width))[1]


def op(x: Tensor, qkv_weight: Tensor, o_weight: Tensor, **options: Any) -> Tensor:
    return attention_norm(x, qkv_weight, o_weight, **{"num_heads": 2, "impl": "triton", "eps": 2.0**-17, **options})


@pytest.mark.parametrize("options", [{"causal": True}, {"num_heads": 3}, {"num_heads": 1, "qk_norm": True}])
def test_every_option_equals_the_reference(options: dict[str, Any]) -> None:
    leaves = to(inputs(2, 7, 12), torch.float64)
    got, wanted = op(*leaves, **options), op(*leaves, **options, impl="reference")
    for mine, right in zip((got, *gradients(got, leaves)), (wanted, *gradients(wanted, leaves)), strict=True):
        assert (mine - right).norm() <= 1e-12 * right.norm()


def test_tables_need_not_be_a_rotation() -> None:
    leaves = to(inputs(1, 5, 12), torch.float64)
    g = torch.Generator().manual_seed(3)
    tables = tuple(torch.rand(5, 6, generator=g) + 0.5 for _ in range(2))
    got = op(*leaves, cos_sin=tables, qk_norm=True)
    wanted = op(*leaves, cos_sin=tables, qk_norm=True, impl="reference")
    for mine, right in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 16)}, r"x.shape=\(3, 16\)"),
        ({"x": torch.zeros(2, 5, 16, dtype=torch.int64)}, "x.dtype=torch.int64"),
        ({"num_heads": 3}, "num_heads=3 .* a divisor of D=16"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"qkv_weight": torch.zeros(16, 16)}, r"qkv_weight.shape=\(16, 16\) .*\(48, 16\)"),
        ({"o_weight": torch.zeros(16, 8)}, r"o_weight.shape=\(16, 8\)"),
        ({"injection": (torch.zeros(2, 5, 8),)}, r"injection\[0\].*\(2, 5, 8\)"),
        ({"injection": (torch.zeros(2, 5, 16, dtype=torch.float16),)}, r"injection\[0\].*float16"),
        ({"o_weight": torch.zeros(16, 16, device="meta")}, r"o_weight.device=.*meta"),
        ({"cos_sin": rope_tables(4, 8, 10.0)}, r"cos.shape=\(4, 8\) .*\(5, 8\)"),
        ({"cos_sin": (torch.zeros(5, 1),) * 2, "num_heads": 16}, "head_dim=1 .* even"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"attention": "paged"}, "attention='paged'"),
        ({"impl": "cuda"}, "impl='cuda'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    weights = {"qkv_weight": torch.zeros(48, 16), "o_weight": torch.zeros(16, 16)}
    arguments = {"x": torch.zeros(2, 5, 16), **weights, "num_heads": 2, **change}
    with pytest.raises(InputError, match=message):
        attention_norm(**arguments)


@pytest.mark.parametrize(
    ("shape", "heads", "dtype", "why"),
    [
        ((768, 97, 512), 8, torch.bfloat16, None),
        ((1, 97, 512), 8, torch.float16, None),
        ((1, 256, 512), 8, torch.bfloat16, None),
        ((1, 257, 512), 8, torch.bfloat16, "split more than 256 keys by the batch, and L = 257"),
        ((1, 97, 512), 2, torch.bfloat16, "split more than 64 keys"),
        ((1, 97, 512), 8, torch.float32, "not in torch.float32"),
    ],
)
def test_auto_takes_flash_where_no_split_follows_the_batch(
    shape: tuple[int, ...], heads: int, dtype: torch.dtype, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_has_flash", lambda: True)
    x = SimpleNamespace(shape=shape, dtype=dtype, device=torch.device("cuda", 0))
    found = api.why_not_flash(x, heads)  # type: ignore[arg-type]
    assert found is None if why is None else why in str(found)
    assert "on cpu" in str(api.why_not_flash(torch.zeros(1, 3, 16), 2))


@pytest.mark.parametrize("chosen", ["auto", "sdpa", "flash"])
def test_what_auto_chose_is_what_runs(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package flash_attn and a device for it are stand-ins; what is called is counted."""
    calls: list[bool] = []

    def flash(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        calls.append(causal)
        return attention.sdpa(query, key, value, causal)

    monkeypatch.setattr(attention, "flash", flash)
    monkeypatch.setattr(api, "why_not_flash", lambda x, heads: None if x.shape[1] < 9 else "long")
    monkeypatch.setattr(api, "_require_flash", lambda *_: None)
    for length in (8, 9):
        leaves = inputs(2, length, 16)
        assert torch.equal(op(*leaves, attention=chosen), op(*leaves, attention="sdpa"))
    assert len(calls) == {"auto": 1, "sdpa": 0, "flash": 2}[chosen]


def test_flash_never_falls_back() -> None:
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash_attn is installed here")
    with pytest.raises(BackendUnavailable, match="flash_attn is not installed"):
        op(*inputs(1, 3, 16), attention="flash")
