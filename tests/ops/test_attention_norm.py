"""attention_norm: tables, and which attention runs. The rest is in `test_half_layers.py`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.ops.attention_norm import api, attention
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import segment_bias
from tests.ops.support import gradients, half_layer, to

pytest.importorskip("triton")


def inputs(batch: int, length: int, width: int) -> tuple[Tensor, ...]:
    """x, qkv_weight and o_weight, as leaves in float32."""
    return half_layer("attention", (batch, length, width))[1]


def op(x: Tensor, qkv_weight: Tensor, o_weight: Tensor, **options: Any) -> Tensor:
    return attention_norm(x, qkv_weight, o_weight, **{"num_heads": 2, "impl": "triton", "eps": 2.0**-17, **options})


def test_tables_need_not_be_a_rotation() -> None:
    leaves = to(inputs(1, 5, 12), torch.float64)
    g = torch.Generator().manual_seed(3)
    tables = tuple(torch.rand(5, 6, generator=g) + 0.5 for _ in range(2))
    got = op(*leaves, cos_sin=tables, qk_norm=True)
    wanted = op(*leaves, cos_sin=tables, qk_norm=True, impl="reference")
    for mine, right in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(mine, right)


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

    def flash(qkv: Tensor, causal: bool) -> Tensor:
        calls.append(causal)
        return attention.sdpa(qkv, causal)

    monkeypatch.setattr(attention, "flash", flash)
    monkeypatch.setattr(api, "why_not_flash", lambda x, heads: None if x.shape[1] < 9 else "long")
    monkeypatch.setattr(api, "_require_flash", lambda *_: None)
    for length in (8, 9):
        leaves = inputs(2, length, 16)
        assert torch.equal(op(*leaves, attention=chosen), op(*leaves, attention="sdpa"))
    assert len(calls) == {"auto": 1, "sdpa": 0, "flash": 2}[chosen]


class MemoryEfficient:
    """PyTorch's memory-efficient kernels in plain tensors, called as their schemas say; notes the calls."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        schema = getattr(torch.ops.aten, name).default._schema
        names = [argument.name for argument in schema.arguments]

        def call(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            assert len(given) == len(args) + len(kwargs) and set(given) <= set(names)
            assert all(given[role].shape[-1] % 8 == 0 for role in ("query", "key", "value"))
            self.calls.append({"name": name, **given})
            return self.compute(given)

        return call

    @staticmethod
    def compute(given: dict[str, Any]) -> Any:
        q, k, v = (given[name].transpose(1, 2) for name in ("query", "key", "value"))
        scores = given["scale"] * q @ k.mT
        if given["bias"] is not None:
            assert given["bias"].stride(-2) % 8 == 0 and given["custom_mask_type"] == 0
            scores = scores + given["bias"]
        if given["custom_mask_type"] == 1:  # from the upper left corner
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        p = scores.softmax(-1)
        if "grad_out_" not in given:
            return (p @ v).transpose(1, 2), *map(torch.empty, (1, 2, 3)), 7, 7
        assert [given[name].numel() for name in ("logsumexp", "philox_seed", "philox_offset")] == [1, 2, 3]
        assert torch.equal(given["out"], (p @ v).transpose(1, 2)) and not given["bias_requires_grad"]
        assert given["max_seqlen_q"] == given["max_seqlen_k"] == 7
        d = given["grad_out_"].transpose(1, 2)
        d_scores = given["scale"] * p * (d @ v.mT - (d * (p @ v)).sum(-1, keepdim=True))
        return *(t.transpose(1, 2) for t in (d_scores @ k, d_scores.mT @ q, p.mT @ d)), None


@pytest.mark.parametrize(("head_dim", "causal", "parts"), [(8, True, 1), (5, False, 1), (8, True, 3), (8, False, 2)])
def test_on_a_gpu_one_kernel_is_pinned_and_no_flag_of_the_process_is_touched(
    head_dim: int, causal: bool, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = inputs(2, 7, 2 * head_dim)
    segments = torch.arange(14).view(2, 7) % parts
    bias = None if parts == 1 else segment_bias(segments, causal, leaves[0].dtype)
    wanted = gradients(op(*leaves, causal=causal, bias=bias), leaves)
    kernels = MemoryEfficient()
    monkeypatch.setattr(attention, "aten", kernels)
    monkeypatch.setattr(attention, "_on_gpu", lambda t: True)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", None)
    monkeypatch.setattr(torch, "set_num_threads", None)
    given = gradients(op(*leaves, causal=causal, bias=bias), leaves)
    for mine, right in zip(given, wanted, strict=True):
        torch.testing.assert_close(mine, right)
    forward, again, backward = kernels.calls
    assert forward["name"] == again["name"] == "_efficient_attention_forward"
    assert backward["name"] == "_efficient_attention_backward" and backward["num_splits_key"] == 1


def test_flash_never_falls_back() -> None:
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash_attn is installed here")
    with pytest.raises(BackendUnavailable, match="flash_attn is not installed"):
        op(*inputs(1, 3, 16), attention="flash")
