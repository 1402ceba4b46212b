"""The native CPU executor against the reference: every prefix of every program, and the same bits everywhere."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.recursion import library, native
from rtm_kernels.recursion.native import HeadWeights
from tests.recursion.native_support import (
    ATTENTION,
    ISAS,
    MLP,
    OPTIONS,
    REDUCED,
    RSM,
    assert_each_as_alone,
    assert_within_budget,
    by_reference,
    enough,
    make_latents,
    make_stacks,
    needs_native,
    one_thread_without_autograd,
    sliced,
    tables,
)

__all__ = ["one_thread_without_autograd"]

pytestmark = pytest.mark.usefixtures("one_thread_without_autograd")


SIZES = [
    *((size, options, False) for options in (MLP, RSM)
      for size in ((7, 24), (81, 64), (97, 100), (81, 128), (1, 1), (131, 33), (97, 512))),
    *((size, {"mixer": "attention", "num_heads": heads, "causal": causal, "qk_norm": qk_norm}, rope)
      for causal, qk_norm, rope in ((False, False, True), (True, True, False), (True, True, True))
      for *size, heads in ((7, 24, 2), (81, 64, 8), (97, 100, 2), (81, 128, 2), (200, 66, 3), (1, 2, 1))),
]  # fmt: skip
"""L and D, the options of the blocks, and whether there are rotary positions."""


@needs_native
@pytest.mark.parametrize(("size", "options", "rope"), SIZES, ids=str)
def test_sizes_and_instruction_sets(size: tuple[int, int], options: dict[str, Any], rope: bool) -> None:
    """That every prefix of every program is within the budget is in test_every_executor."""
    program = programs.trm(1, 1)
    stacks = make_stacks(program, *size, **options, seed=sum(size))
    latents, x = make_latents(program, enough(*size), *size)
    cos_sin = tables(stacks, size[0]) if rope else None
    float32, truth = (by_reference(program, stacks, latents, x, cos_sin, wide) for wide in (False, True))
    for isa in native.isas():
        executor = native.NativeExecutor(program, stacks, cos_sin=cos_sin, isa=isa)
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
    found = native.NativeExecutor(program, stacks, heads, isa=isa).step(latents, x)
    float32, truth = (by_reference(program, stacks, latents, x, wide=wide) for wide in (False, True))
    assert_within_budget(found.latents, float32, truth)

    def read(y: Tensor) -> dict[str, Tensor]:
        return {
            "logits": (y @ tokens.T.to(y))[:, prefix:],
            **({"halting": y @ weight.T.to(y) + bias.to(y)} if K else {}),
        }

    assert torch.equal(found.answers, found.logits.argmax(-1).int()) and found.finite.tolist() == [True] * len(x)
    change = relative_change(found.latents["z_H"].double(), latents["z_H"].double())
    torch.testing.assert_close(found.change, change.float(), rtol=1e-6, atol=0)
    got = {"logits": found.logits, **({"halting": found.token_q} if K else {})}
    assert found.token_q.shape == (len(x), L, K)
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
    cos_sin = tables(stacks, L) if options is ATTENTION else None
    executor = native.NativeExecutor(program, stacks, heads, cos_sin=cos_sin, isa=isa, precision=precision)

    def step(latents: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        found = executor.step(latents, x)
        return {**found.latents, "logits": found.logits, "halting": found.token_q, "change": found.change}

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
    executor = native.NativeExecutor(program, stacks, precision=precision)
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
    stacks = make_stacks(program, 1, 32)
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
    executor = native.NativeExecutor(program, make_stacks(program, 7, 16), precision=precision)
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
    executor = native.NativeExecutor(program, make_stacks(program, 81, 64))
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
    executor = native.NativeExecutor(program, stacks)
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
    executor, narrow = native.NativeExecutor(program, stacks), copy.deepcopy(stacks)
    narrow["L_level"].layers[1].mlp_t.gate_up_proj.weight = torch.nn.Parameter(torch.zeros(6, 8))

    def build(**heads: Any) -> native.NativeExecutor:
        return native.NativeExecutor(program, stacks, HeadWeights(**heads))

    wrong = [
        (lambda: executor.run({"z_H": latents["z_H"]}, x), "reads 'z_L' first"),
        (lambda: executor.run(latents, x.double()), "x is torch.float64"),
        (lambda: executor.run(latents, x[:, :8]), r"x has shape \(2, 8, 32\); expected .* L=9, D=32"),
        (lambda: executor.run({**latents, "z_L": x[:1]}, x), r"z_L has shape \(1, 9, 32\); expected \[B=2"),
        (lambda: executor.run(latents, x, end=3), "begin, end=.*0 to 2"),
        (lambda: native.NativeExecutor(program, {}), "stack 'L_level'"),
        (lambda: native.NativeExecutor(program, stacks, isa="sse"), "isa='sse'"),
        (lambda: build(tokens=x[0, :, :8]), r"tokens=\(9, 8\) is not allowed: a weight \[N, D=32\]"),
        (lambda: build(halting=(x[0], x[0, 0, :3])), r"bias=\(3,\) is not allowed: one for each of 9 rows"),
        (lambda: build(prefix=-1), "prefix=-1"),
        (lambda: build(prefix=10).step(latents, x), "prefix=10 is not allowed: at most L=9"),
        (lambda: native.NativeExecutor(program[:0], {}, HeadWeights()), "heads=None is not allowed"),
        (lambda: native.NativeExecutor(program, narrow), r"L_level: mlp_t.gate_up_proj.weight.shape=\(6, 8\)"),
    ]
    for call, message in wrong:
        with pytest.raises(InputError, match=message):
            call()
    with torch.enable_grad(), pytest.raises(InputError, match="no autograd"):
        executor.run(latents, x.clone().requires_grad_())


@pytest.fixture
def look_again() -> Iterator[None]:
    """What is known of the library is forgotten, and forgotten again."""
    native.why_not.cache_clear()
    yield
    native.why_not.cache_clear()
    library.loaded.cache_clear()


def test_without_the_library_the_reason_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, look_again: None
) -> None:
    monkeypatch.setattr(library, "PATH", tmp_path / "_cpu.so")
    with pytest.raises(BackendUnavailable, match=r"the library rtm_kernels/_cpu\.so is not compiled"):
        native.isas()
    library.PATH.write_text("no library")
    native.why_not.cache_clear()
    library.loaded.cache_clear()
    with pytest.raises(BackendUnavailable, match=r"the library rtm_kernels/_cpu\.so does not load: .*_cpu\.so"):
        native.isas()


@needs_native
def test_a_library_of_other_sources_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, look_again: None) -> None:
    (tmp_path / "interface.cpp").write_text("// changed since")
    monkeypatch.setattr(native, "CSRC", tmp_path)
    with pytest.raises(BackendUnavailable, match=r"_cpu\.so is older or newer than .*make native"):
        native.isas()
    monkeypatch.setattr(native, "CSRC", tmp_path / "none")  # as installed from a wheel
    native.why_not.cache_clear()
    assert native.why_not() is None and "portable" in native.isas()


def test_a_library_that_is_here_is_of_these_sources() -> None:
    reason = native.why_not()
    assert reason is None or "is not compiled" in reason, reason
