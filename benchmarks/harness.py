"""Measures one case: checks every provider, times those that pass in turns, and says why the others did not run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import machine
from benchmarks.cases import LATENT_TASKS, Case, useful_bytes, useful_flops
from benchmarks.gate import refusal
from benchmarks.problem import Problem, Run, make
from benchmarks.providers import PROVIDERS, Provider, run_of
from benchmarks.rows import Row
from benchmarks.timing import Call, Clock, interleave, median_interval, speedup


def run_case(
    case: Case, providers: Sequence[Provider] = PROVIDERS, *, seconds: float = 3.0, energy_seconds: float = 0.0,
    problem: Problem | None = None,
) -> list[Row]:  # fmt: skip
    """One row per provider. `seconds` bounds the timed rounds; with `energy_seconds` each window lasts that long.

    `problem` is that of `case`, where several calls share what its check works out.
    """
    before = torch.get_num_threads()
    try:
        if case.device == "cpu":
            busy = machine.why_not_threads(case.threads) if case.threads > 1 else None
            if busy is not None:
                return [_row(case, p.name, busy) for p in providers]
            torch.set_num_threads(case.threads)
        return _run_case(problem or make(case), providers, seconds, energy_seconds)
    finally:
        torch.set_num_threads(before)


def _run_case(problem: Problem, providers: Sequence[Provider], seconds: float, energy_seconds: float) -> list[Row]:
    case = problem.case
    rows = {p.name: _row(case, p.name, p.why_not(problem) or "") for p in providers}
    calls: dict[str, Call] = {}
    for provider in providers:
        row = rows[provider.name]
        if row.reason:
            continue
        if provider.name not in problem.memory:
            problem.memory[provider.name] = refusal(provider, problem) or ""
        row.reason = problem.memory[provider.name]
        row.status = "refused" if row.reason else "measured"
        if row.status == "measured":
            try:
                calls[provider.name], row.facts["peak_memory_bytes"] = _prepared(provider, problem)
            except Exception as error:
                row.status, row.reason = "not run", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if calls:
        clock = Clock(case.device, flush=case.task in LATENT_TASKS)
        timed = interleave(calls, clock, seconds=seconds)
        limits = machine.limits(case.device, case.dtype)
        baseline = next(iter(calls))
        idle = machine.idle_watts(case.device) if energy_seconds > 0 else None
        for name, samples in timed.items():
            _fill(rows[name], case, baseline, timed[baseline], samples, limits)
            rows[name].facts |= _extras(calls[name], case, energy_seconds) | {"idle_watts": idle}
    return list(rows.values())


def _row(case: Case, impl: str, reason: str) -> Row:
    return Row(case.name, impl, "not run", reason, facts={"commit": machine.commit()})


def _prepared(provider: Provider, problem: Problem) -> tuple[Call, int | None]:
    """The call, and on a GPU the memory that is reserved for this contestant alone: weights, graphs, a call at work."""
    if problem.case.device != "cuda":
        return caller(provider, problem), None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    call = caller(provider, problem)
    call(0)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what compiling and tuning took
    torch.cuda.reset_peak_memory_stats()
    call(0)
    torch.cuda.synchronize()
    return call, torch.cuda.max_memory_reserved() - before


def caller(provider: Provider, problem: Problem) -> Call:
    """The i-th call of the task, on inputs in rotation; one captured graph per set of inputs where it replays."""
    run, inputs = run_of(provider, problem), problem.inputs
    if not provider.graph:
        return lambda i: run(inputs[i % len(inputs)])
    pool = torch.cuda.graph_pool_handle()
    replays = [capture(run, one, pool) for one in inputs]
    return lambda i: replays[i % len(replays)]()


def capture(run: Run, inputs: Any, pool: Any = None) -> Callable[[], None]:
    """A CUDA graph of `run(inputs)`, with its memory in `pool`, as a function that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compilation and allocation happen before the capture
            run(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        kept = run(inputs)

    def replay(_outputs: object = kept) -> None:
        graph.replay()

    return replay


def _fill(
    row: Row, case: Case, baseline: str, base: Sequence[float], samples: list[float], limits: dict[str, float]
) -> None:
    seconds, low, high = median_interval(samples)
    row.seconds, row.seconds_interval, row.samples, row.baseline = seconds, (low, high), samples, baseline
    ratio, low, high = speedup(base, samples)
    row.ratio, row.ratio_interval = ratio, (low, high)
    flops, moved = useful_flops(case), useful_bytes(case)
    tflops, gbs = flops / seconds / 1e12, moved / seconds / 1e9
    fractions = {"fraction_of_gemm": tflops / limits["tflops"], "fraction_of_copy": gbs / limits["gbs"]}
    row.facts |= {
        "task": case.task, "model": case.model, "batch": case.batch, "dtype": case.dtype, "device": case.device,
        "machine": machine.device_name(case.device), "threads": torch.get_num_threads(),
        "shapes": {"B": case.batch, "L": case.config.latent_len, "D": case.config.hidden_size},
        "useful_flops": flops, "useful_bytes": moved, "tflops": tflops, "gbs": gbs,
        "limit_tflops": limits["tflops"], "limit_gbs": limits["gbs"], **fractions,
        "fraction_of_limit": max(fractions.values()),
        "cache": "flushed before each call" if case.device == "cuda" and case.task in LATENT_TASKS else "as left",
        "rounds": len(samples), "commit": machine.commit(), "versions": machine.versions(),
        "clock_mhz": machine.clock_mhz(case.device),
        "intensity": flops / moved, "puzzles_per_second": case.batch / seconds if case.task == "solve" else None,
    }  # fmt: skip


def _extras(call: Call, case: Case, energy_seconds: float) -> dict[str, Any]:
    """Launches of one call (of a GPU), and joules; None for what cannot be read here."""
    found: dict[str, Any] = {"launches": None, "energy": None, "joules": None}
    if case.device == "cuda":
        with contextlib.suppress(RuntimeError):  # a profiler that does not start takes no figure with it
            found["launches"] = _launches(call)
    if energy_seconds > 0:
        found["energy"] = machine.energy(call, case.device, energy_seconds)
        found["joules"] = found["energy"] and found["energy"]["joules_per_call"]
    return found


def _launches(call: Call) -> int:
    """Kernels, copies and fills that one call makes the GPU run."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        call(0)
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profiler.events())
