"""attention_norm beyond the interpreter gate: the contract of the registered op, bits, dtypes and errors."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.impl import launches
from rtm_kernels.ops.attention_norm import api, reference, steps
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import rope_tables
from tests.ops.support import to

pytest.importorskip("triton")

Leaves = tuple[Tensor, ...]


def inputs(batch: int, length: int, width: int, terms: int = 0, seed: int = 0) -> Leaves:
    """x, qkv_weight, o_weight and the injection terms, as leaves in float32."""
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(n, width, generator=g) / width**0.5 for n in (3 * width, width)]
    states = [torch.randn(batch, length, width, generator=g) for _ in range(terms + 1)]
    return tuple(t.requires_grad_() for t in (states[0], *weights, *states[1:]))


def op(x: Tensor, qkv_weight: Tensor, o_weight: Tensor, *injection: Tensor, **options: Any) -> Tensor:
    options = {"num_heads": 2, "impl": "triton", "eps": 2.0**-17, **options}  # exact in float32, as kernels get it
    return attention_norm(x, qkv_weight, o_weight, injection=injection, **options)


def gradients(out: Tensor, leaves: Leaves) -> Leaves:
    """Gradients of `out` under random upstream gradients."""
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    return torch.autograd.grad(out, leaves, upstream)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_float64_gradients_are_the_derivatives(qk_norm: bool) -> None:
    leaves = to(inputs(2, 3, 8, terms=2), torch.float64)
    tables = rope_tables(3, 4, 10.0)

    def call(*leaves: Tensor) -> Tensor:
        return op(*leaves, cos_sin=tables, qk_norm=qk_norm, causal=qk_norm)

    assert torch.autograd.gradcheck(call, leaves, nondet_tol=0.0, fast_mode=True)


@pytest.mark.parametrize(("length", "width", "heads", "qk_norm"), [(7, 12, 2, True), (5, 300, 3, False)])
def test_float64_equals_the_reference(length: int, width: int, heads: int, qk_norm: bool) -> None:
    leaves = to(inputs(2, length, width, terms=1), torch.float64)
    options = {"num_heads": heads, "qk_norm": qk_norm, "cos_sin": rope_tables(length, width // heads, 100.0)}
    got, wanted = op(*leaves, **options), op(*leaves, **options, impl="reference")
    pairs = [(got, wanted), *zip(gradients(got, leaves), gradients(wanted, leaves), strict=True)]
    for mine, right in pairs:
        assert (mine - right).norm() <= 1e-12 * right.norm()


def test_tables_need_not_be_a_rotation() -> None:
    leaves = to(inputs(1, 5, 12), torch.float64)
    g = torch.Generator().manual_seed(3)
    tables = tuple(torch.rand(5, 6, generator=g) + 0.5 for _ in range(2))
    got = op(*leaves, cos_sin=tables, qk_norm=True)
    wanted = op(*leaves, cos_sin=tables, qk_norm=True, impl="reference")
    for mine, right in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(mine, right)


def test_float16_stays_within_twice_the_reference() -> None:
    half = to(inputs(2, 9, 64, terms=2), torch.float16)
    exact = to(half, torch.float64)
    tables = rope_tables(9, 32, 100.0)
    got, base = op(*half, cos_sin=tables), op(*half, cos_sin=tables, impl="reference")
    truth = op(*exact, cos_sin=tables, impl="reference")
    triples = [(got, base, truth)]
    triples += zip(gradients(got, half), gradients(base, half), gradients(truth, exact), strict=True)
    for mine, theirs, right in triples:
        assert mine.dtype == torch.float16
        assert (mine.double() - right).norm() <= 2 * (theirs.double() - right).norm() + 1e-3 * right.norm()


def test_float32_weights_give_float32_gradients_to_half_latents() -> None:
    x, qkv_weight, o_weight = inputs(2, 9, 32)
    (half,) = to((x,), torch.float16)
    out = op(half, qkv_weight, o_weight)
    d_x, d_qkv, d_o = gradients(out, (half, qkv_weight, o_weight))
    assert (out.dtype, d_x.dtype, d_qkv.dtype, d_o.dtype) == (torch.float16,) * 2 + (torch.float32,) * 2
    exact = to((half, qkv_weight.half(), o_weight.half()), torch.float64)
    truth = gradients(op(*exact, impl="reference"), exact)
    for mine, right in zip((d_x, d_qkv, d_o), truth, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=0, atol=3e-3 * right.abs().max().item())


def test_a_sample_does_not_depend_on_its_batch() -> None:
    batch = 40
    x, qkv_weight, o_weight, term = inputs(batch, 9, 24, terms=1)
    options = {"cos_sin": rope_tables(9, 12, 100.0), "qk_norm": True}
    whole = op(x, qkv_weight, o_weight, term, **options)
    upstream = torch.randn(whole.shape, generator=torch.Generator().manual_seed(7))
    (d_whole,) = torch.autograd.grad(whole, x, upstream)
    for size in (1, 2, 7, 33):
        part = slice((batch - size) // 2, (batch - size) // 2 + size)
        out = op(x[part], qkv_weight, o_weight, term[part], **options)
        assert torch.equal(out, whole[part])
        assert torch.equal(torch.autograd.grad(out, x, upstream[part])[0][part], d_whole[part])


def test_same_bits_on_every_run_and_a_nan_stays_in_its_sample() -> None:
    leaves = inputs(3, 17, 32)
    first, again = op(*leaves), op(*leaves)
    assert torch.equal(first, again)
    assert all(map(torch.equal, gradients(first, leaves), gradients(again, leaves)))
    poisoned = leaves[0].detach().clone()
    poisoned[1, 3, 5] = float("nan")
    out = op(poisoned, *leaves[1:])
    assert out[1].isnan().all()
    assert torch.equal(out[::2], first[::2])


def test_weight_gradients_over_several_splits_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from rtm_kernels.ops.attention_norm import launch

    monkeypatch.setattr(launch, "ROWS_PER_SPLIT", 130)
    leaves = to(inputs(3, 150, 16), torch.float64)
    got, wanted = op(*leaves), op(*leaves, impl="reference")
    for mine, right in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("terms", [0, 2])
def test_opcheck(terms: int) -> None:
    x, qkv_weight, o_weight, *injection = inputs(2, 3, 8, terms=terms)
    cos, sin = rope_tables(3, 4, 100.0)
    arguments = (x, injection, qkv_weight, o_weight, cos, sin, 2, False, True, 1e-5, False)
    torch.library.opcheck(torch.ops.rtm_kernels.attention_norm, arguments)


def test_opcheck_of_the_backward() -> None:
    h, qkv_weight, o_weight = (t.detach() for t in inputs(2, 3, 8))
    saved = (torch.ones_like(h), h, torch.ones(2, 3), h, qkv_weight, o_weight, None, None, 2, True, True, 1e-5)
    torch.library.opcheck(torch.ops.rtm_kernels.attention_norm_backward, saved)


@pytest.mark.parametrize("impl", ["triton", "auto"])
def test_compiles_without_a_graph_break(impl: str) -> None:
    leaves = inputs(2, 5, 16, terms=2)
    tables = rope_tables(5, 8, 100.0)

    def call(*leaves: Tensor) -> Tensor:
        return 2 * op(*leaves, cos_sin=tables, impl=impl)

    got, wanted = torch.compile(call, fullgraph=True, backend="aot_eager")(*leaves), call(*leaves)
    assert torch.equal(got, wanted)
    for a, b in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_counts_launches_and_flops() -> None:
    leaves = inputs(2, 5, 16)
    launches.clear()
    counter = FlopCounterMode(display=False)
    with counter:
        op(*leaves).sum().backward()
    counts = {"qkv": 2, "output": 1, "norm_backward": 1, "input_grad": 2, "turn_backward": 2, "weight_grad": 2}
    assert launches == {f"attention_norm.{kernel}": count for kernel, count in counts.items()}
    assert counter.get_total_flops() == 3 * (8 * 10 * 16**2 + 4 * 2 * 5**2 * 16)


def test_double_backward_is_refused() -> None:
    leaves = inputs(1, 3, 8)
    (d_x,) = torch.autograd.grad(op(*leaves).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="attention_norm_backward"):
        d_x.sum().backward()


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


def test_bfloat16_is_refused_by_the_interpreter_and_auto_takes_the_reference() -> None:
    leaves = to(inputs(1, 3, 16), torch.bfloat16)
    with pytest.raises(BackendUnavailable, match="bfloat16"):
        op(*leaves)
    assert torch.equal(op(*leaves, impl="auto"), reference.attention_norm(*leaves, num_heads=2, eps=2.0**-17))


def test_autocast_gives_the_latent_its_dtype() -> None:
    x, qkv_weight, o_weight, term = inputs(2, 5, 16, terms=1)
    with torch.autocast("cpu", dtype=torch.float16):
        out = op(x, qkv_weight, o_weight, term)
    assert out.dtype == torch.float16
    gradient = torch.autograd.grad(out.sum(), (x, qkv_weight, term))
    assert all(g.dtype == torch.float32 for g in gradient)
    assert torch.equal(out, op(x.half(), qkv_weight, o_weight, term.half()))


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


@pytest.mark.parametrize("attention", ["auto", "sdpa", "flash"])
def test_what_auto_chose_is_what_runs(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package flash_attn and a device for it are stand-ins; what is called is counted."""
    calls: list[bool] = []

    def flash(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        calls.append(causal)
        return steps.sdpa(query, key, value, causal)

    monkeypatch.setattr(steps, "flash", flash)
    monkeypatch.setattr(api, "why_not_flash", lambda x, heads: None if x.shape[1] < 9 else "long")
    monkeypatch.setattr(api, "_require_flash", lambda x, chosen: None)
    for length in (8, 9):
        leaves = inputs(2, length, 16)
        assert torch.equal(op(*leaves, attention=attention), op(*leaves, attention="sdpa"))
    assert len(calls) == {"auto": 1, "sdpa": 0, "flash": 2}[attention]


def test_flash_never_falls_back() -> None:
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash_attn is installed here")
    with pytest.raises(BackendUnavailable, match="flash_attn is not installed"):
        op(*inputs(1, 3, 16), attention="flash")
