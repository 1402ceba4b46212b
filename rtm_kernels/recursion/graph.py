"""CUDA graphs of a step over named batch tensors: one per batch bucket, static buffers, one shared memory pool.

A captured step may be repeated on the device by a conditional WHILE node, from the extension `rtm_kernels._cuda`.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable, require
from rtm_kernels.ranges import ranged

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768)
"""Batch sizes that graphs are captured for; a batch runs in the next larger one."""

WARM_UPS = 3
"""Runs before a capture: kernels compile, libraries choose and allocate their workspaces there."""

logger = logging.getLogger(__name__)

Tensors = dict[str, Tensor]
TensorsFunction = Callable[[Tensors], Tensors]
"""A step on named tensors [B, ...] to named tensors [B, ...]; it may also update tensors it closes over."""
Recorded = tuple[Callable[[], None], Tensors]
"""What replays a captured function, and the tensors that every replay writes its results to."""


def why_not() -> str | None:
    """What keeps CUDA graphs from running here, or None when they can."""
    return None if torch.cuda.is_available() else "no CUDA device is available"


def bucket_of(batch: int, buckets: Sequence[int] = BUCKETS) -> int:
    """The smallest of the ascending `buckets` that holds `batch` samples.

    Errors: `InputError` when none does.
    """
    require(1 <= batch <= buckets[-1], "batch", batch, f"1 to {buckets[-1]}, the largest bucket")
    return buckets[bisect_left(buckets, batch)]


class CudaGraphs:
    """Records what a function launches as CUDA graphs that share one memory pool, so that it can be launched again.

    Errors: `BackendUnavailable` without a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        reason = why_not()
        if reason is not None:
            raise BackendUnavailable(f"CUDA graphs cannot run: {reason}")
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._last_use: torch.cuda.Event | None = None

    def capture(self, fn: Callable[[], Tensors]) -> Recorded:
        """Run `fn` to warm up, then record it."""
        graph, outputs = self.record(fn)
        return graph.replay, outputs

    def record(self, fn: Callable[[], Tensors]) -> tuple[torch.cuda.CUDAGraph, Tensors]:
        """Warm up and capture `fn`; other threads may use the GPU meanwhile. The raw graph is kept for nesting.

        The random numbers that this takes are given back.
        """
        generator = torch.cuda.get_rng_state(self.device)
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                fn()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = fn()
        graph.instantiate()
        torch.cuda.set_rng_state(generator, self.device)
        return graph, outputs

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Order what runs inside after what ran inside before, whichever stream each is on."""
        stream = torch.cuda.current_stream(self.device)
        if self._last_use is not None:
            stream.wait_event(self._last_use)
        try:
            with torch.cuda.device(self.device):
                yield
        finally:
            self._last_use = stream.record_event()

    def pool_bytes(self) -> int:
        """Device memory reserved for this process."""
        return torch.cuda.memory_reserved(self.device)


class GraphRunner:
    """A step replayed from CUDA graphs, with the bits of the step run eagerly on the padded batch.

    A batch is copied into static buffers, padded with zeros to its bucket, and the results are copied out. The first
    call captures the largest bucket, so that its memory serves all smaller ones, and then each bucket when it is
    first met; every capture writes one log line. Tensors that the step closes over (weights) are read where they lie:
    update them in place. One call runs at a time; calls from several threads and streams are ordered.

    Args:
        step: what is captured. It must not synchronise with the host, and must not depend on rows being padding.
        max_batch: the largest batch that will come. buckets: ascending batch sizes.
        exact: refuse batches that would be padded, for steps that reduce over the batch, such as training; their
            results may have any shape.
        capture: the recorder; by default CUDA graphs on the device of the first batch.

    Errors: `InputError` for a batch beyond `max_batch` or of other names, shapes or dtypes than the first.
    """

    def __init__(
        self,
        step: TensorsFunction,
        *,
        max_batch: int,
        buckets: Sequence[int] = BUCKETS,
        exact: bool = False,
        capture: CudaGraphs | None = None,
    ) -> None:
        require(list(buckets) == sorted(set(buckets)) and buckets[0] >= 1, "buckets", buckets, "ascending from 1 on")
        self._step, self._exact, self._capture = step, exact, capture
        self.buckets = tuple(b for b in buckets if b <= bucket_of(max_batch, buckets))
        self._buffers: Tensors = {}
        self._captured: dict[int, Recorded] = {}
        self._lock = threading.Lock()

    @ranged("graph replay")
    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """The results of the step on `inputs`, named tensors [B, ...]; copies that later calls leave alone."""
        batch = self._batch_of(inputs)
        if batch == 0:
            return self._step(dict(inputs))
        bucket = bucket_of(batch, self.buckets)
        require(not self._exact or bucket == batch, "batch", batch, f"one of {self.buckets}")
        with self._lock:
            capture = self._prepare(inputs)
            with capture.exclusive():
                for size in (self.buckets[-1], bucket):
                    if size not in self._captured:
                        self._captured[size] = self._record(capture, size)
                for name, buffer in self._buffers.items():
                    buffer[:batch].copy_(inputs[name])
                    buffer[batch:bucket].zero_()
                replay, outputs = self._captured[bucket]
                replay()
                return {name: (t if self._exact else t[:batch]).clone() for name, t in outputs.items()}

    def _batch_of(self, inputs: Mapping[str, Tensor]) -> int:
        require(len(inputs) > 0, "inputs", dict(inputs), "at least one tensor that starts with the batch")
        sizes = {name: tensor.shape[0] for name, tensor in inputs.items()}
        require(len(set(sizes.values())) == 1, "batch", sizes, "the same first dimension for every input")
        if self._buffers:
            require(set(inputs) == set(self._buffers), "inputs", sorted(inputs), f"the names {sorted(self._buffers)}")
        for name, buffer in self._buffers.items():
            given, wanted = _signature(inputs[name]), _signature(buffer)
            require(given == wanted, name, given, f"{wanted}, as in the first call")
        return next(iter(sizes.values()))

    def _prepare(self, inputs: Mapping[str, Tensor]) -> CudaGraphs:
        if self._capture is None:
            self._capture = CudaGraphs(next(iter(inputs.values())).device)
        if not self._buffers:
            largest = self.buckets[-1]
            with torch.inference_mode(False):  # buffers that may be written in any mode
                self._buffers = {name: t.new_zeros(largest, *t.shape[1:]) for name, t in inputs.items()}
        return self._capture

    def _record(self, capture: CudaGraphs, bucket: int) -> Recorded:
        views = {name: buffer[:bucket] for name, buffer in self._buffers.items()}
        recorded = record(capture, lambda: self._step(dict(views)), (), f"batch {bucket}")
        for name, output in recorded[1].items() if not self._exact else ():
            first = output.shape[0] if output.dim() else None
            require(first == bucket, name, tuple(output.shape), f"a result of the step starts with the batch, {bucket}")
        return recorded


def record(capture: CudaGraphs, fn: Callable[[], Tensors], mutates: Iterable[Tensor], what: str) -> Recorded:
    """`fn` captured, with one log line about `what`; the tensors it changes in place are as they were before."""
    start = time.perf_counter()
    kept = [(tensor, tensor.detach().clone()) for tensor in mutates]
    recorded = capture.capture(fn)
    with torch.no_grad():
        for tensor, value in kept:
            tensor.copy_(value)
    seconds, memory = time.perf_counter() - start, capture.pool_bytes() / 2**20
    logger.info("captured %s in %.2f s; %.0f MiB reserved on the device", what, seconds, memory)
    return recorded


def _signature(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    return tuple(tensor.shape[1:]), tensor.dtype, tensor.device


MINIMUM = 12040
"""CUDA 12.4, the first version with WHILE nodes, of the driver and of the runtime the extension is built with."""


def why_not_loop() -> str | None:
    """What keeps WHILE nodes from running here, or None when they can."""
    try:
        extension = importlib.import_module("rtm_kernels._cuda")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "rtm_kernels._cuda":
            return "the extension rtm_kernels._cuda is not compiled (it needs nvcc when the package is installed)"
        return f"the extension rtm_kernels._cuda does not load: {error}"
    for what, version in (("runtime", extension.runtime_version), ("driver", extension.driver_version())):
        if version < MINIMUM:
            return f"the CUDA {what} is version {version}, and WHILE nodes need {MINIMUM}"
    return why_not()


def while_active(graph: torch.cuda.CUDAGraph, active: Tensor, steps: Tensor, max_steps: int) -> Callable[[], None]:
    """A launch that replays `graph` while any element of `active` is set, at most `max_steps` times.

    `active` is a contiguous bool tensor on the device that the graph clears in place; `steps` [1] int32 receives how
    often it ran. `graph`, captured with `keep_graph=True`, and the tensors must outlive the launches.

    Errors: `BackendUnavailable` when WHILE nodes cannot run.
    """
    reason = why_not_loop()
    if reason is not None:
        raise BackendUnavailable(f"a WHILE node cannot run: {reason}")
    extension: Any = importlib.import_module("rtm_kernels._cuda")
    loop = extension.WhileGraph(
        step=graph.raw_cuda_graph(), active=active.data_ptr(), count=active.numel(), steps=steps.data_ptr(),
        max_steps=max_steps,
    )  # fmt: skip
    return lambda: loop.launch(torch.cuda.current_stream(active.device).cuda_stream)
