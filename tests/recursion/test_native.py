"""The native CPU executor against the reference: every prefix of every program, and the same bits everywhere."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.recursion import native
from rtm_kernels.recursion.native_weights import HeadWeights, StackWeights
from tests.recursion.native_support import (
    ATTENTION,
    ISAS,
    OPTIONS,
    PROGRAMS,
    REDUCED,
    assert_each_as_alone,
    assert_within_budget,
    enough,
    make_latents,
    make_stacks,
    needs_native,
    one_thread_without_autograd,
    reference_and_truth,
    sliced,
    tables,
    weights,
)

__all__ = ["one_thread_without_autograd"]

pytestmark = pytest.mark.usefixtures("one_thread_without_autograd")


@needs_native
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_prefix_with_attention_is_within_the_error_budget(name: str) -> None:
    """MLP mixers are in test_every_executor."""
    program = PROGRAMS[name]
    stacks = make_stacks(program, 17, 48, **ATTENTION)
    latents, x = make_latents(program, 2, 17, 48)
    cos_sin = tables(stacks, 17, rope=True)
    executor = native.NativeExecutor(program, weights(stacks, cos_sin))
    for n, (float32, truth) in enumerate(reference_and_truth(program, stacks, latents, x, cos_sin)):
        assert_within_budget(executor.run(latents, x, end=n), float32, truth)


@needs_native
@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
@pytest.mark.parametrize("L, D", [(7, 24), (81, 64), (97, 100), (81, 128), (1, 1), (131, 33), (97, 512)])
def test_mlp_sizes_and_instruction_sets(L: int, D: int, norm_axis: str) -> None:
    program = programs.trm(1, 1)
    stacks = make_stacks(program, L, D, norm_axis=norm_axis, seed=L + D)
    latents, x = make_latents(program, enough(L, D), L, D)
    *_, (float32, truth) = reference_and_truth(program, stacks, latents, x)
    for isa in native.isas():
        assert_within_budget(native.NativeExecutor(program, weights(stacks), isa=isa).run(latents, x), float32, truth)


@needs_native
@pytest.mark.parametrize("causal, qk_norm, rope", [(False, False, True), (True, True, False), (True, True, True)])
@pytest.mark.parametrize("L, D, heads", [(7, 24, 2), (81, 64, 8), (97, 100, 2), (81, 128, 2), (200, 66, 3), (1, 2, 1)])
def test_attention_sizes_and_instruction_sets(
    L: int, D: int, heads: int, causal: bool, qk_norm: bool, rope: bool
) -> None:
    program = programs.trm(1, 1)
    stacks = make_stacks(program, L, D, mixer="attention", num_heads=heads, causal=causal, qk_norm=qk_norm, seed=L + D)
    latents, x = make_latents(program, enough(L, D), L, D)
    cos_sin = tables(stacks, L, rope)
    *_, (float32, truth) = reference_and_truth(program, stacks, latents, x, cos_sin)
    for isa in native.isas():
        executor = native.NativeExecutor(program, weights(stacks, cos_sin), isa=isa)
        assert_within_budget(executor.run(latents, x), float32, truth)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "L, D, V, K, prefix", [(1, 1, 1, 0, 0), (7, 24, 11, 2, 0), (97, 100, 33, 2, 16), (131, 40, 70, 1, 3)]
)
def test_heads_are_within_the_error_budget(L: int, D: int, V: int, K: int, prefix: int, isa: str) -> None:
    program = programs.trm(1, 1)
    stacks = make_stacks(program, L, D, seed=L + D)
    latents, x = make_latents(program, enough(L, D), L, D)
    tokens, weight, bias = torch.randn(V, D), torch.randn(K, D), torch.randn(K)
    heads = HeadWeights(tokens=tokens, halting=(weight, bias), prefix=prefix)
    found = native.NativeExecutor(program, weights(stacks), heads, isa=isa).step(latents, x)
    *_, (float32, truth) = reference_and_truth(program, stacks, latents, x)
    assert_within_budget(found.latents, float32, truth)

    def read(y: Tensor) -> dict[str, Tensor]:
        return {
            "logits": (y @ tokens.T.to(y))[:, prefix:],
            **({"halting": y @ weight.T.to(y) + bias.to(y)} if K else {}),
        }

    assert torch.equal(found.answers, found.logits.argmax(-1).int()) and found.finite.tolist() == [True] * len(x)
    change = relative_change(found.latents["z_H"].double(), latents["z_H"].double())
    torch.testing.assert_close(found.change, change.float(), rtol=1e-6, atol=0)
    got = {"logits": found.logits, **({"halting": found.halting} if K else {})}
    assert found.halting.shape == (len(x), L, K)
    assert_within_budget(got, read(float32["z_H"]), read(truth["z_H"]))


@needs_native
@pytest.mark.parametrize(("isa", "precision"), [*((isa, "float32") for isa in ISAS), *(("auto", p) for p in REDUCED)])
@OPTIONS
def test_bits_depend_on_neither_batch_nor_threads(options: dict[str, Any], isa: str, precision: str) -> None:
    L, D = 101, 40
    program = programs.trm(1, 1)
    stacks = make_stacks(program, L, D, **options)
    latents, x = make_latents(program, 65, L, D)
    heads = HeadWeights(tokens=torch.randn(11, D), halting=(torch.randn(2, D), torch.randn(2)), prefix=4)
    stack_weights = weights(stacks, tables(stacks, L, options is ATTENTION))
    executor = native.NativeExecutor(program, stack_weights, heads, isa=isa, precision=precision)

    def step(latents: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        found = executor.step(latents, x)
        return {**found.latents, "logits": found.logits, "halting": found.halting, "change": found.change}

    assert_each_as_alone(step, latents, x)


@needs_native
@pytest.mark.parametrize("precision", ["float32", *REDUCED])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@OPTIONS
def test_a_sample_that_is_not_finite_leaves_the_others_alone(
    options: dict[str, Any], poison: float, precision: str
) -> None:
    L, D = 33, 40
    program = programs.trm(1, 2)
    stacks = make_stacks(program, L, D, **options)
    latents, x = make_latents(program, 5, L, D)
    executor = native.NativeExecutor(program, weights(stacks), precision=precision)
    clean = executor.run(latents, x)
    x[2, 5, 7] = poison
    dirty = executor.step(latents, x)
    again = executor.run(latents, torch.where(torch.isfinite(x), x, 0.0))
    others = [0, 1, 3, 4]
    assert dirty.finite.tolist() == [True, True, False, True, True]
    for name, value in dirty.latents.items():
        assert not torch.isfinite(value[2]).all(), name
        assert torch.equal(value[others], clean[name][others]), name
        assert torch.equal(again[name][others], clean[name][others]), name
        assert torch.isfinite(again[name]).all(), name


@needs_native
def test_a_head_that_is_not_finite_marks_its_sample_alone() -> None:
    program = programs.trm(1, 2)
    stacks = weights(make_stacks(program, 1, 32))
    latents, x = make_latents(program, 9, 1, 32)
    y = native.NativeExecutor(program, stacks).run(latents, x)["z_H"]
    along = (y[:, 0] @ y[4, 0]).sort().values
    assert along[-1] > along[-2] > 0
    heads = HeadWeights(tokens=y[4] * (torch.finfo(torch.float32).max / along[-2:].mean()))
    found = native.NativeExecutor(program, stacks, heads).step(latents, x)
    assert found.finite.tolist() == torch.isfinite(found.logits).flatten().tolist() == [i != 4 for i in range(9)]


@needs_native
@pytest.mark.parametrize("precision", ["float32", *REDUCED])
def test_eight_python_threads_call_one_executor_hundreds_of_times(precision: str) -> None:
    program = programs.trm(1, 1)
    executor = native.NativeExecutor(program, weights(make_stacks(program, 7, 16)), precision=precision)
    latents, x = make_latents(program, 8, 7, 16)
    expected = executor.run(latents, x)

    def calls(thread: int) -> int:
        """Calls with other bits than those expected, in batches of 1 to 4."""
        different = 0
        for i in range(300):
            start, count = (thread + i) % 5, 1 + i % 4
            found = executor.run(sliced(latents, start, count), x[start : start + count])
            different += any(not torch.equal(found[n], v[start : start + count]) for n, v in expected.items())
        return different

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(calls, range(8))) == [0] * 8


@needs_native
def test_python_goes_on_while_the_executor_runs() -> None:
    program = programs.trm(10, 20)
    latents, x = make_latents(program, 2, 81, 64)
    executor = native.NativeExecutor(program, weights(make_stacks(program, 81, 64)))
    seen = []
    with ThreadPoolExecutor(1) as pool:
        start = time.perf_counter()
        run = pool.submit(executor.run, latents, x)
        while not run.done():
            seen.append(time.perf_counter() - start)
            time.sleep(0.001)
        total = time.perf_counter() - start
    gaps = [b - a for a, b in zip([0.0, *seen], [*seen, total], strict=True)]
    assert max(gaps) < total / 2, "the interpreter was held while C++ ran"


@needs_native
def test_inputs_are_read_as_they_lie_and_never_written() -> None:
    program = programs.trm(1, 2)
    stacks = make_stacks(program, 9, 32)
    latents, x = make_latents(program, 3, 9, 32)
    executor = native.NativeExecutor(program, weights(stacks))
    expected = executor.run(latents, x)
    strided = {name: value.transpose(1, 2).contiguous().transpose(1, 2) for name, value in latents.items()}
    before = {name: value.clone() for name, value in strided.items()}
    expanded = executor.run(strided, x.transpose(0, 1).contiguous().transpose(0, 1))
    for name in expected:
        assert torch.equal(expanded[name], expected[name])
        assert torch.equal(strided[name], before[name])
    assert executor.run(sliced(latents, 0, 0), x[:0])["z_H"].shape == (0, 9, 32)
    assert torch.equal(executor.run({**latents, "other": x}, x)["other"], x)


@needs_native
def test_bad_input_is_named() -> None:
    program = programs.trm(1, 1)
    stacks = make_stacks(program, 9, 32)
    latents, x = make_latents(program, 2, 9, 32)
    executor = native.NativeExecutor(program, weights(stacks))

    def build(**heads: Any) -> native.NativeExecutor:
        return native.NativeExecutor(program, weights(stacks), HeadWeights(**heads))

    wrong = [
        (lambda: executor.run({"z_H": latents["z_H"]}, x), "reads 'z_L' first"),
        (lambda: executor.run(latents, x.double()), "x is torch.float64"),
        (lambda: executor.run(latents, x[:, :8]), r"x has shape \(2, 8, 32\); expected .* L=9, D=32"),
        (lambda: executor.run({**latents, "z_L": x[:1]}, x), r"z_L has shape \(1, 9, 32\); expected \[B=2"),
        (lambda: executor.run(latents, x, end=3), "begin, end=.*0 to 2"),
        (lambda: native.NativeExecutor(program, {}), "stack 'L_level'"),
        (lambda: native.NativeExecutor(program, weights(stacks), isa="sse"), "isa='sse'"),
        (lambda: build(tokens=x[0, :, :8]), r"tokens=\(9, 8\) is not allowed: a weight \[N, D=32\]"),
        (lambda: build(halting=(x[0], x[0, 0, :3])), r"bias=\(3,\) is not allowed: one for each of 9 rows"),
        (lambda: build(prefix=-1), "prefix=-1"),
        (lambda: build(prefix=10).step(latents, x), "prefix=10 is not allowed: at most L=9"),
        (lambda: StackWeights(layers=[{}]), r"layers\[0\]"),
        (lambda: StackWeights.from_state_dict({"head.weight": x}), "layers.<i>.<name>"),
    ]
    for call, message in wrong:
        with pytest.raises(InputError, match=message):
            call()
    with torch.enable_grad(), pytest.raises(InputError, match="no autograd"):
        executor.run(latents, x.clone().requires_grad_())


def test_without_the_extension_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rtm_kernels._cpu", None)
    native.why_not.cache_clear()
    try:
        assert native.why_not() is not None
        with pytest.raises(BackendUnavailable, match=r"rtm_kernels\._cpu"):
            native.isas()
    finally:
        native.why_not.cache_clear()


@needs_native
def test_an_extension_of_other_sources_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "binding.cpp").write_text("// changed since")
    monkeypatch.setattr(native, "CSRC", tmp_path)
    native.why_not.cache_clear()
    try:
        with pytest.raises(BackendUnavailable, match=r"rtm_kernels\._cpu is older or newer than .*make native"):
            native.isas()
        monkeypatch.setattr(native, "CSRC", tmp_path / "none")  # as installed from a wheel
        native.why_not.cache_clear()
        assert native.why_not() is None and "portable" in native.isas()
    finally:
        native.why_not.cache_clear()


def test_an_extension_that_is_here_is_of_these_sources() -> None:
    reason = native.why_not()
    assert reason is None or "is not compiled" in reason, reason
