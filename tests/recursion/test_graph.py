"""The graph runner (buckets, padding, capture order, static buffers) with a recorder that needs no GPU, and the native
code of WHILE nodes: it compiles for Hopper, loads, and says what is missing where it cannot run."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from benchmarks import build
from rtm_kernels import program as programs
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.recursion import graph, reference
from rtm_kernels.recursion.graph import (
    BUCKETS,
    CudaGraphs,
    GraphRunner,
    Tensors,
    bucket_of,
    record,
    why_not,
)
from tests.recursion.support import Recorder, bits, small_stacks


def double(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] * 2}


def batch_of(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(("batch", "bucket"), [(1, 1), (3, 4), (64, 64), (65, 128), (513, 768), (0, 0), (769, 0)])
def test_a_batch_goes_to_the_next_larger_bucket(batch: int, bucket: int) -> None:
    if bucket:
        assert bucket_of(batch) == bucket
        return
    with pytest.raises(InputError, match=rf"batch={batch} is not allowed: 1 to 768"):
        bucket_of(batch)


def test_results_are_those_of_the_step_whatever_the_padding_held_before() -> None:
    seen: list[Tensor] = []

    def step(inputs: Tensors) -> Tensors:
        seen.append(inputs["x"].clone())
        return double(inputs)

    run = GraphRunner(step, max_batch=8, capture=Recorder())
    for n in (7, 3, 8, 5, 1):
        x = batch_of(n, 4)
        assert torch.equal(run({"x": x})["y"], x * 2)
        assert len(seen[-1]) == bucket_of(n) and not seen[-1][n:].any()


def test_the_largest_bucket_is_captured_first_and_the_others_when_met(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    run = GraphRunner(double, max_batch=20, capture=recorder)
    assert run.buckets == (1, 2, 4, 8, 16, 32)
    with caplog.at_level(logging.INFO, logger="rtm_kernels.recursion.graph"):
        for n in (3, 4, 1, 3):
            run({"x": batch_of(n)})
    assert list(run._captured) == [32, 4, 1]
    assert recorder.runs == 4
    assert [r.getMessage().split(" in ")[0] for r in caplog.records] == [f"captured batch {n}" for n in (32, 4, 1)]
    assert all(r.getMessage().endswith("3 MiB reserved on the device") for r in caplog.records)


def test_weights_updated_in_place_are_seen_and_earlier_results_stay() -> None:
    layer = nn.Linear(4, 4).requires_grad_(False)
    run = GraphRunner(lambda t: {"y": layer(t["x"])}, max_batch=2, capture=Recorder())
    x = batch_of(2, 4)
    first = run({"x": x})["y"]
    kept = first.clone()
    layer.weight.mul_(-3)
    assert torch.equal(run({"x": x})["y"], layer(x))
    assert torch.equal(first, kept)


def test_what_is_recorded_leaves_no_trace_in_what_it_changes_in_place() -> None:
    weight, recorder = torch.ones(3), Recorder()
    with recorder.exclusive():
        replay, _ = record(recorder, lambda: {"y": weight.mul_(2)}, [weight], "doubling")
        assert weight.tolist() == [1, 1, 1]
        replay()
    assert weight.tolist() == [2, 2, 2]


def test_exact_steps_take_no_padding_and_give_results_of_any_shape() -> None:
    run = GraphRunner(lambda t: {"total": t["x"].sum()}, max_batch=6, buckets=(6,), exact=True, capture=Recorder())
    assert torch.equal(run({"x": batch_of(6)})["total"], batch_of(6).sum())
    with pytest.raises(InputError, match=r"batch=5 is not allowed: one of \(6,\)"):
        run({"x": batch_of(5)})


def test_an_empty_batch_runs_without_a_capture() -> None:
    run = GraphRunner(double, max_batch=4, capture=Recorder())
    assert run({"x": torch.zeros(0, 5)})["y"].shape == (0, 5)
    assert not run._captured


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": torch.zeros(5, 2)}, "batch=5 is not allowed: 1 to 4"),
        ({"x": torch.zeros(2, 3)}, r"x=\(\(3,\), torch\.float32, .*as in the first call"),
        ({"x": torch.zeros(2, 2, dtype=torch.float64)}, r"x=\(\(2,\), torch\.float64"),
        ({"x": torch.zeros(2, 2), "y": torch.zeros(2)}, r"inputs=\['x', 'y'\]"),
        ({"z": torch.zeros(2, 2)}, r"inputs=\['z'\]"),
        ({}, r"inputs=\{\} is not allowed: at least one"),
        ({"x": torch.zeros(2, 2), "y": torch.zeros(3)}, "the same first dimension"),
    ],
)
def test_inputs_unlike_the_first_are_refused(inputs: Tensors, message: str) -> None:
    run = GraphRunner(double, max_batch=4, capture=Recorder())
    run({"x": torch.zeros(1, 2)})
    with pytest.raises(InputError, match=message):
        run(inputs)
    run = GraphRunner(lambda t: {"total": t["x"].sum()}, max_batch=4, capture=Recorder())
    with pytest.raises(InputError, match="a result of the step starts with the batch, 4"):
        run({"x": torch.zeros(3)})


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_without_a_gpu_the_reason_is_given() -> None:
    assert why_not() == "no CUDA device is available"
    with pytest.raises(BackendUnavailable, match="no CUDA device is available"):
        CudaGraphs(torch.device("cuda"))
    with pytest.raises(BackendUnavailable, match="no CUDA device is available"):
        GraphRunner(double, max_batch=2)({"x": torch.zeros(1)})


@pytest.mark.gpu
def test_replays_on_a_gpu_have_the_bits_of_eager_launches() -> None:
    program = programs.trm(2, 2)
    stacks = {name: stack.cuda() for name, stack in small_stacks(program.stacks, 97, 128, (256, 512)).items()}

    def step(inputs: Tensors) -> Tensors:
        with torch.no_grad():
            return reference.run(program, {n: t for n, t in inputs.items() if n != "x"}, inputs["x"], stacks)

    run = GraphRunner(step, max_batch=16)
    side = torch.cuda.Stream()
    for round_ in range(1000):
        n = BUCKETS[round_ % 5]
        inputs = {name: torch.randn(n, 97, 128, device="cuda") for name in ("z_L", "z_H", "x")}
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side if round_ % 3 == 0 else torch.cuda.current_stream()):
            got = run(inputs)
        torch.cuda.synchronize()
        assert bits(got) == bits(step(inputs))


@pytest.fixture(scope="module")
def extension_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """csrc/cuda compiled for sm_80 and sm_90a and linked as a Python extension named `_cuda`."""
    reason = build.why_not()
    if reason is not None:
        pytest.skip(reason)
    return build.compile_cuda(tmp_path_factory.mktemp("cuda"), "-O1")


def test_the_sources_compile_and_hold_a_kernel_for_hopper(extension_path: Path) -> None:
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "--dump-resource-usage", extension_path], check=True, capture_output=True, text=True)
    assert "sm_90a" in usage.stdout and "sm_80" in usage.stdout
    assert usage.stdout.count("decide") == 2 and "STACK:0" in usage.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_the_extension_loads_without_a_gpu_and_names_the_call_that_fails(extension_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("_cuda", extension_path)
    assert spec is not None and spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    assert extension.runtime_version >= graph.MINIMUM
    with pytest.raises(RuntimeError, match="cudaGraphCreate"):
        extension.WhileGraph(step=0, active=0, count=1, steps=0, max_steps=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_where_it_cannot_run_the_reason_is_given() -> None:
    reason = graph.why_not_loop()
    assert reason is not None
    assert "rtm_kernels._cuda" in reason or "CUDA" in reason
    with pytest.raises(BackendUnavailable, match="a WHILE node cannot run: "):
        graph.while_active(Mock(), torch.ones(2, dtype=torch.bool), torch.zeros(1, dtype=torch.int32), 4)
