"""swiglu_norm beyond the interpreter gate: the contract of the registered op, bits, dtypes and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.impl import launches
from rtm_kernels.ops.swiglu_norm import reference
from rtm_kernels.ops.swiglu_norm.api import swiglu_norm
from tests.ops.support import swiglu_inputs, to

pytest.importorskip("triton")


def gradients(out: Tensor, leaves: tuple[Tensor, ...], seed: int = 7) -> tuple[Tensor, ...]:
    """Gradients of `out` under random upstream gradients."""
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
    return torch.autograd.grad(out, leaves, upstream)


def test_float64_gradients_are_the_derivatives() -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 2, 5), -1, inner=3, terms=2)
    leaves = to((x, gate_up, down, *injection), torch.float64)

    def op(x: Tensor, gate_up: Tensor, down: Tensor, *injection: Tensor) -> Tensor:
        return swiglu_norm(x, gate_up, down, injection=injection, impl="triton")

    assert torch.autograd.gradcheck(op, leaves, nondet_tol=0.0, fast_mode=True)


@pytest.mark.parametrize("features", [5, 130])
def test_float64_equals_the_reference(features: int) -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 7, features), -1, inner=20, terms=1)
    leaves = to((x, gate_up, down, *injection), torch.float64)
    got = swiglu_norm(*leaves[:3], injection=leaves[3:], impl="triton")
    wanted = reference.swiglu_norm(*leaves[:3], injection=leaves[3:])
    pairs = [(got, wanted), *zip(gradients(got, leaves), gradients(wanted, leaves), strict=True)]
    for mine, right in pairs:
        assert (mine - right).norm() <= 1e-12 * right.norm()


def test_float16_stays_within_twice_the_reference() -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 9, 64), -1, inner=96, terms=2)
    half = to((x, gate_up, down, *injection), torch.float16)
    exact = to(half, torch.float64)
    got = swiglu_norm(*half[:3], injection=half[3:], impl="triton")
    base = reference.swiglu_norm(*half[:3], injection=half[3:])
    truth = reference.swiglu_norm(*exact[:3], injection=exact[3:])
    pairs = [(got, base, truth)]
    pairs += zip(gradients(got, half), gradients(base, half), gradients(truth, exact), strict=True)
    for mine, theirs, right in pairs:
        assert mine.dtype == torch.float16
        assert (mine.double() - right).norm() <= 2 * (theirs.double() - right).norm() + 1e-3 * right.norm()


def test_float32_weights_give_float32_gradients_to_half_latents() -> None:
    x, gate_up, down, _ = swiglu_inputs((2, 9, 32), -1, inner=48)
    (half,) = to((x,), torch.float16)
    out = swiglu_norm(half, gate_up, down, impl="triton")
    d_x, d_gate_up, d_down = gradients(out, (half, gate_up, down))
    assert (out.dtype, d_x.dtype, d_gate_up.dtype, d_down.dtype) == (torch.float16,) * 2 + (torch.float32,) * 2
    exact = to((half, gate_up.half(), down.half()), torch.float64)
    truth = gradients(reference.swiglu_norm(*exact), exact)
    for mine, right in zip((d_x, d_gate_up, d_down), truth, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=0, atol=3e-3 * right.abs().max().item())


def test_three_injection_terms_are_summed_from_the_left() -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 5, 24), -1, inner=32, terms=3)
    leaves = (x, gate_up, down, *injection)
    got = swiglu_norm(x, gate_up, down, injection=injection, impl="triton")
    wanted = reference.swiglu_norm(x, gate_up, down, injection=injection)
    torch.testing.assert_close(got, wanted)
    for a, b in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("features", "sizes"), [(24, (1, 2, 7, 63, 65, 257)), (160, (1, 3, 64, 129))])
def test_a_row_does_not_depend_on_its_batch(features: int, sizes: tuple[int, ...]) -> None:
    rows = 300
    x, gate_up, down, (term,) = swiglu_inputs((rows, 1, features), -1, inner=48, terms=1)
    whole = swiglu_norm(x, gate_up, down, injection=(term,), impl="triton")
    (d_whole,) = gradients(whole, (x,))
    upstream = torch.randn(whole.shape, generator=torch.Generator().manual_seed(7))
    for size in sizes:
        start = (rows - size) // 2
        part = slice(start, start + size)
        out = swiglu_norm(x[part], gate_up, down, injection=(term[part],), impl="triton")
        assert torch.equal(out, whole[part])
        assert torch.equal(torch.autograd.grad(out, x, upstream[part])[0][part], d_whole[part])


def test_same_bits_on_every_run_and_a_nan_stays_in_its_row() -> None:
    x, gate_up, down, _ = swiglu_inputs((3, 50, 32), -1, inner=48)
    first = swiglu_norm(x, gate_up, down, impl="triton")
    again = swiglu_norm(x, gate_up, down, impl="triton")
    assert torch.equal(first, again)
    leaves = (x, gate_up, down)
    assert all(map(torch.equal, gradients(first, leaves), gradients(again, leaves)))
    poisoned = x.detach().clone()
    poisoned[1, 3, 5] = float("nan")
    out = swiglu_norm(poisoned, gate_up, down, impl="triton")
    others = torch.ones(3, 50, dtype=torch.bool)
    others[1, 3] = False
    assert out[1, 3].isnan().all()
    assert torch.equal(out[others], first[others])


@pytest.mark.parametrize("terms", [0, 2])
def test_opcheck(terms: int) -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 4, 16), -1, inner=24, terms=terms)
    torch.library.opcheck(torch.ops.rtm_kernels.swiglu_norm, (x, gate_up, down, list(injection), 1e-5))
    y, rstd = torch.ops.rtm_kernels.swiglu_norm(x, gate_up, down, list(injection), 1e-5)
    saved = (torch.ones_like(y), y, rstd, x, gate_up, down, list(injection), 1e-5)
    saved = torch.utils._pytree.tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, saved)
    torch.library.opcheck(torch.ops.rtm_kernels.swiglu_norm_backward, saved)


@pytest.mark.parametrize("impl", ["triton", "auto"])
def test_compiles_without_a_graph_break(impl: str) -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 5, 16), -1, inner=24, terms=2)
    leaves = (x, gate_up, down, *injection)

    def op(x: Tensor, gate_up: Tensor, down: Tensor, *injection: Tensor) -> Tensor:
        return 2 * swiglu_norm(x, gate_up, down, injection=injection, impl=impl)

    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    got, wanted = compiled(*leaves), op(*leaves)
    assert torch.equal(got, wanted)
    for a, b in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_counts_launches_and_flops() -> None:
    x, gate_up, down, _ = swiglu_inputs((2, 5, 16), -1, inner=24)
    launches.clear()
    counter = FlopCounterMode(display=False)
    with counter:
        swiglu_norm(x, gate_up, down, impl="triton").sum().backward()
    assert launches["fused"] == 1
    forward = 2 * 10 * 3 * 16 * 24
    assert counter.get_total_flops() == 3 * forward


def test_autocast_computes_in_the_autocast_dtype() -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 5, 16), -1, inner=24, terms=1)
    with torch.autocast("cpu", dtype=torch.float16):
        got = swiglu_norm(x, gate_up, down, injection=injection, impl="triton")
        wanted = swiglu_norm(x, gate_up, down, injection=injection, impl="reference")
    assert got.dtype == wanted.dtype == torch.float16
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)
    assert gradients(got, (gate_up,))[0].dtype == torch.float32


def test_bfloat16_is_refused_by_the_interpreter_and_never_computed_wrongly() -> None:
    x, gate_up, down, _ = swiglu_inputs((2, 5, 16), -1, inner=24)
    if x.device.type != "cpu":
        pytest.skip("interpreter only")
    with pytest.raises(BackendUnavailable, match="bfloat16"):
        swiglu_norm(x.bfloat16(), gate_up, down, impl="triton")
    assert swiglu_norm(x.bfloat16(), gate_up, down, impl="auto").isfinite().all()


def _bad(**changes: Any) -> dict[str, Any]:
    x, gate_up, down, (term,) = swiglu_inputs((2, 5, 16), -1, inner=24, terms=1)
    return {"x": x, "gate_up_weight": gate_up, "down_weight": down, "injection": (term,), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(2, 5, 16, dtype=torch.int64)}, r"x\.dtype"),
        ({"x": torch.tensor(1.0), "injection": ()}, r"x\.shape"),
        ({"x": torch.ones(2, 5, 15), "injection": ()}, r"gate_up_weight\.shape"),
        ({"down_weight": torch.ones(16, 25)}, r"gate_up_weight\.shape"),
        ({"down_weight": torch.ones(16)}, r"down_weight\.shape"),
        ({"gate_up_weight": torch.ones(48, 16, dtype=torch.int32)}, r"gate_up_weight\.dtype"),
        ({"injection": (torch.ones(5, 16),)}, r"injection\[0\]\.shape"),
        ({"injection": (torch.ones(2, 5, 16).double(),)}, r"injection\[0\]\.dtype"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"impl": "fast"}, "impl='fast'"),
    ],
)
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_wrong_input_is_named(changes: dict[str, Any], message: str, impl: str) -> None:
    with pytest.raises(InputError, match=message):
        swiglu_norm(**_bad(**{"impl": impl, **changes}))
