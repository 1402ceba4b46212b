"""A CUDA device that is not there: streams, events and graphs over CPU tensors, so that branches for GPUs run.

A captured graph records every PyTorch operator and every interpreted kernel with the very tensors they were given; a
replay runs them again over the same memory, and what an operator returned is overwritten, as a CUDA graph does. What a
capture forbids (waiting for the device) raises. Tensors asked for on "cuda" are made on the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

WAITS = {
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten.is_nonzero.default",
    "aten.equal.default",
    "aten._unique2.default",
    "aten.masked_select.default",
}
"""Operators that make the host wait for the device."""


class Machine:
    """What is being captured, on which stream, and the graphs by their raw handle."""

    def __init__(self) -> None:
        self.capturing: Graph | None = None
        self.streams = [Stream()]
        self.graphs: dict[int, Graph] = {}
        self.inside = False
        """Whether an operator or kernel that is already recorded is running."""

    def record(self, run: Callable[[], Any]) -> Any:
        """Run now, and again in every replay of the graph that is being captured, into the same results."""
        if self.capturing is None or self.inside:
            return run()
        self.inside = True
        try:
            results = run()
        finally:
            self.inside = False
        self.capturing.calls.append((run, results))
        return results

    def must_not_capture(self, what: str) -> None:
        if self.capturing is not None:
            raise RuntimeError(f"{what}: operation not permitted when stream is capturing")


class Operators(TorchDispatchMode):
    """Records the operators of a capture."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in WAITS and not self.machine.inside:
            self.machine.must_not_capture(str(func))
        return self.machine.record(lambda: func(*args, **(kwargs or {})))


class OnCpu(TorchFunctionMode):
    """Makes on the CPU what is asked for on a CUDA device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def here(value: Any) -> Any:
            if value in ("cuda", "cuda:0") if isinstance(value, str) else False:
                return "cpu"
            return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value

        if func is torch.Tensor.cuda:
            return args[0]
        args, kwargs = tree_map(here, (args, kwargs or {}))
        return func(*args, **kwargs)


class Graph:
    """`torch.cuda.CUDAGraph`."""

    machine: Machine

    def __init__(self, keep_graph: bool = False) -> None:
        self.calls: list[tuple[Callable[[], Any], Any]] = []
        self.keep, self.ready, self.replays = keep_graph, False, 0
        self.machine.graphs[id(self)] = self

    def instantiate(self) -> None:
        assert self.keep and not self.ready
        self.ready = True

    def raw_cuda_graph(self) -> int:
        assert self.keep, "the raw graph is kept only with keep_graph=True"
        return id(self)

    def replay(self) -> None:
        assert self.ready and self.machine.capturing is None
        self.replays += 1
        with torch.inference_mode():
            for run, kept in self.calls:
                for old, new in zip(tree_leaves(kept), tree_leaves(run()), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Event:
    """`torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        Graph.machine.must_not_capture("cudaEventSynchronize")

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * max(other.at - self.at, 1e-9)


class Stream:
    """`torch.cuda.Stream`; notes what it waited for."""

    cuda_stream = 7

    def __init__(self, device: Any = None) -> None:
        self.waited: list[object] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other)

    def wait_event(self, event: Event) -> None:
        self.waited.append(event)

    def record_event(self, event: Any = None) -> Event:
        return Event()


class WhileGraph:
    """`rtm_kernels._cuda.WhileGraph`, which reads and writes the memory at the addresses it is given."""

    def __init__(self, step: int, active: int, count: int, steps: int, max_steps: int) -> None:
        self.graph, self.max_steps = Graph.machine.graphs[step], max_steps
        self.active = (ctypes.c_uint8 * count).from_address(active)
        self.steps = ctypes.c_int32.from_address(steps)

    def launch(self, stream: int) -> None:
        assert stream == Stream.cuda_stream
        self.steps.value = 0
        while any(self.active) and self.steps.value < self.max_steps:
            self.graph.replay()
            self.steps.value += 1


def simulate(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Until the end of the test torch.cuda has one device, and the extension with WHILE nodes is there."""
    machine = Machine()
    Graph.machine = machine

    @contextlib.contextmanager
    def graph(graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
        assert machine.capturing is None, "a capture within a capture"
        assert capture_error_mode in ("global", "thread_local", "relaxed")
        machine.capturing = graph
        try:
            with Operators(machine):
                yield
        finally:
            machine.capturing = None
        graph.ready = not graph.keep

    @contextlib.contextmanager
    def stream(stream: Stream) -> Iterator[None]:
        machine.streams.append(stream)
        yield
        machine.streams.pop()

    properties = SimpleNamespace(multi_processor_count=1, L2_cache_size=1 << 10, total_memory=1 << 30)
    fakes: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "get_device_name": lambda *_: "Simulated GPU", "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties, "memory_reserved": lambda *_: 3 << 20,
        "max_memory_reserved": lambda *_: 4 << 20, "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: machine.capturing is not None,
        "reset_peak_memory_stats": lambda *_: None,
        "synchronize": lambda *_: machine.must_not_capture("cudaDeviceSynchronize"),
        "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "graph": graph, "stream": stream,
        "graph_pool_handle": lambda: (0, 1), "current_stream": lambda *_: machine.streams[-1],
        "device": lambda *_: contextlib.nullcontext(), "device_of": lambda *_: contextlib.nullcontext(),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "is_initialized": lambda: True,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    extension = ModuleType("rtm_kernels._cuda")
    extension.runtime_version, extension.driver_version = 13000, lambda: 13000  # type: ignore[attr-defined]
    extension.WhileGraph = WhileGraph  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rtm_kernels._cuda", extension)
    _record_kernels(monkeypatch, machine)
    return machine


def _record_kernels(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    call = interpreter.GridExecutor.__call__

    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        with torch.utils._python_dispatch._disable_current_modes() if machine.capturing else contextlib.nullcontext():
            machine.record(lambda: call(self, *args, **kwargs))

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", recorded)
