"""mixer_norm beyond the interpreter gate: the contract of the registered op, bits, dtypes and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rtm_kernels.ops.mixer_norm import reference
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rtm_kernels.errors import InputError
from rtm_kernels.impl import launches
from rtm_kernels.ops.swiglu_norm.api import mixer_norm
from tests.ops.support import laid_out, swiglu_inputs, to

pytest.importorskip("triton")

AXES = pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])


def gradients(out: Tensor, leaves: tuple[Tensor, ...], seed: int = 7) -> tuple[Tensor, ...]:
    """Gradients of `out` under random upstream gradients."""
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
    return torch.autograd.grad(out, leaves, upstream)


@AXES
def test_float64_gradients_are_the_derivatives(norm_axis: str) -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 5, 3), 1, inner=3, terms=1)
    leaves = to((x, gate_up, down, *injection), torch.float64)

    def op(x: Tensor, gate_up: Tensor, down: Tensor, *injection: Tensor) -> Tensor:
        return mixer_norm(x, gate_up, down, injection=injection, norm_axis=norm_axis, impl="triton")

    assert torch.autograd.gradcheck(op, leaves, nondet_tol=0.0, fast_mode=True)


@AXES
@pytest.mark.parametrize("length", [6, 131])
def test_float64_equals_the_reference(length: int, norm_axis: str) -> None:
    x, gate_up, down, injection = swiglu_inputs((2, length, 9), 1, inner=20, terms=1)
    leaves = to((x, gate_up, down, *injection), torch.float64)
    got = mixer_norm(*leaves[:3], injection=leaves[3:], norm_axis=norm_axis, impl="triton")
    wanted = reference.mixer_norm(*leaves[:3], injection=leaves[3:], norm_axis=norm_axis)
    pairs = [(got, wanted), *zip(gradients(got, leaves), gradients(wanted, leaves), strict=True)]
    for mine, right in pairs:
        assert (mine - right).norm() <= 1e-12 * right.norm()


@AXES
def test_float16_stays_within_twice_the_reference(norm_axis: str) -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 33, 40), 1, inner=64, terms=2)
    half = to((x, gate_up, down, *injection), torch.float16)
    exact = to(half, torch.float64)
    got = mixer_norm(*half[:3], injection=half[3:], norm_axis=norm_axis, impl="triton")
    base = reference.mixer_norm(*half[:3], injection=half[3:], norm_axis=norm_axis)
    truth = reference.mixer_norm(*exact[:3], injection=exact[3:], norm_axis=norm_axis)
    pairs = [(got, base, truth)]
    pairs += zip(gradients(got, half), gradients(base, half), gradients(truth, exact), strict=True)
    for mine, theirs, right in pairs:
        assert mine.dtype == torch.float16
        assert (mine.double() - right).norm() <= 2 * (theirs.double() - right).norm() + 1e-3 * right.norm()


@AXES
def test_reads_a_transposed_latent_without_a_copy(norm_axis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, gate_up, down, _ = swiglu_inputs((2, 17, 24), 1, inner=32, layout="transposed")
    copied: list[tuple[int, ...]] = []
    original = Tensor.contiguous

    def contiguous(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.is_contiguous():
            copied.append(tuple(self.shape))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "contiguous", contiguous)
    out = mixer_norm(x, gate_up, down, norm_axis=norm_axis, impl="triton")
    assert x.shape not in copied
    wanted = reference.mixer_norm(x, gate_up, down, norm_axis=norm_axis)
    torch.testing.assert_close(out, wanted)


@AXES
@pytest.mark.parametrize("layout", ["strided", "offset", "transposed", "expanded"])
def test_every_layout_of_every_tensor_gives_the_same_bits(layout: str, norm_axis: str) -> None:
    x, gate_up, down, (term,) = swiglu_inputs((3, 9, 16), 1, inner=24, terms=1)
    generator = torch.Generator().manual_seed(3)
    views = [laid_out(tuple(t.shape), layout, generator).detach() for t in (x, gate_up, down, term, x)]
    plain = [view.clone(memory_format=torch.contiguous_format) for view in views]
    results = []
    for x_, gate_up_, down_, term_, upstream in (views, plain):
        leaves = tuple(t.detach().requires_grad_() for t in (x_, gate_up_, down_, term_))
        out = mixer_norm(*leaves[:3], injection=leaves[3:], norm_axis=norm_axis, impl="triton")
        results.append((out, *torch.autograd.grad(out, leaves, upstream)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@AXES
def test_a_sample_does_not_depend_on_its_batch(norm_axis: str) -> None:
    x, gate_up, down, (term,) = swiglu_inputs((17, 11, 16), 1, inner=24, terms=1)
    whole = mixer_norm(x, gate_up, down, injection=(term,), norm_axis=norm_axis, impl="triton")
    (d_whole,) = gradients(whole, (x,))
    upstream = torch.randn(whole.shape, generator=torch.Generator().manual_seed(7))
    for size in (1, 3, 8):
        part = slice(1, 1 + size)
        out = mixer_norm(x[part], gate_up, down, injection=(term[part],), norm_axis=norm_axis, impl="triton")
        assert torch.equal(out, whole[part])
        assert torch.equal(torch.autograd.grad(out, x, upstream[part])[0][part], d_whole[part])


@AXES
def test_same_bits_on_every_run_and_a_nan_stays_in_its_sample(norm_axis: str) -> None:
    x, gate_up, down, _ = swiglu_inputs((3, 13, 32), 1, inner=48)
    first = mixer_norm(x, gate_up, down, norm_axis=norm_axis, impl="triton")
    again = mixer_norm(x, gate_up, down, norm_axis=norm_axis, impl="triton")
    assert torch.equal(first, again)
    leaves = (x, gate_up, down)
    assert all(map(torch.equal, gradients(first, leaves), gradients(again, leaves)))
    poisoned = x.detach().clone()
    poisoned[1, 3, 5] = float("nan")
    out = mixer_norm(poisoned, gate_up, down, norm_axis=norm_axis, impl="triton")
    assert out[1, :, 5].isnan().all()
    assert torch.equal(out[[0, 2]], first[[0, 2]])


@AXES
def test_opcheck(norm_axis: str) -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 7, 16), 1, inner=24, terms=1)
    arguments = (x, gate_up, down, list(injection), norm_axis, 1e-5)
    torch.library.opcheck(torch.ops.rtm_kernels.mixer_norm, arguments)
    y, rstd = torch.ops.rtm_kernels.mixer_norm(*arguments)
    saved = [t.detach() for t in (torch.ones_like(y), y, rstd, x, gate_up, down)]
    rest = ([t.detach() for t in injection], norm_axis, 1e-5)
    torch.library.opcheck(torch.ops.rtm_kernels.mixer_norm_backward, (*saved, *rest))


def test_compiles_without_a_graph_break() -> None:
    x, gate_up, down, injection = swiglu_inputs((2, 7, 16), 1, inner=24, terms=2)
    leaves = (x, gate_up, down, *injection)

    def op(x: Tensor, gate_up: Tensor, down: Tensor, *injection: Tensor) -> Tensor:
        return 2 * mixer_norm(x, gate_up, down, injection=injection, impl="triton")

    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    got, wanted = compiled(*leaves), op(*leaves)
    assert torch.equal(got, wanted)
    for a, b in zip(gradients(got, leaves), gradients(wanted, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_counts_launches_and_flops() -> None:
    x, gate_up, down, _ = swiglu_inputs((2, 7, 16), 1, inner=24)
    launches.clear()
    counter = FlopCounterMode(display=False)
    with counter:
        mixer_norm(x, gate_up, down, impl="triton").sum().backward()
    assert launches["fused"] == 1
    forward = 2 * 2 * 16 * 3 * 7 * 24
    assert counter.get_total_flops() == 3 * forward


def _bad(**changes: Any) -> dict[str, Any]:
    x, gate_up, down, (term,) = swiglu_inputs((2, 5, 16), 1, inner=24, terms=1)
    return {"x": x, "gate_up_weight": gate_up, "down_weight": down, "injection": (term,), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(5, 16), "injection": ()}, r"x\.shape"),
        ({"x": torch.ones(2, 6, 16), "injection": ()}, r"gate_up_weight\.shape"),
        ({"injection": (torch.ones(1, 5, 16),)}, r"injection\[0\]\.shape"),
        ({"norm_axis": "batch"}, "norm_axis='batch'"),
    ],
)
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_wrong_input_is_named(changes: dict[str, Any], message: str, impl: str) -> None:
    with pytest.raises(InputError, match=message):
        mixer_norm(**_bad(**{"impl": impl, **changes}))
