"""Prometheus metrics of one server, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rtm_kernels.engine import Service, Solution

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class Metrics:
    """Counters and gauges. Labels take few values: routes, codes, and names of models."""

    def __init__(self, service: Service) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("rtm_requests", "Requests answered.", ("route", "status"), registry=registry)
        self._refused = Counter("rtm_refused", "Requests refused, by error code.", ("code",), registry=registry)
        self._seconds = Histogram(
            "rtm_request_seconds", "From the head of a request to the end of its answer.", ("route",),
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._puzzles = Counter("rtm_puzzles", "Puzzles answered.", ("model", "status"), registry=registry)
        self._steps = Histogram("rtm_act_steps", "ACT steps per puzzle.", ("model",), buckets=STEPS, registry=registry)
        waiting = Gauge("rtm_puzzles_waiting", "Puzzles that wait for a slot.", registry=registry)
        waiting.set_function(lambda: service.queued)
        running = Gauge("rtm_puzzles_running", "Puzzles in a slot.", registry=registry)
        running.set_function(lambda: service.running)

    def record(self, route: str, status: int, code: str, seconds: float) -> None:
        """Count a request; `status` 0 means that the client had no answer."""
        self._requests.labels(route, str(status or "none")).inc()
        self._seconds.labels(route).observe(seconds)
        if code:
            self._refused.labels(code).inc()

    def solved(self, model: str, solution: Solution) -> None:
        """Count a puzzle."""
        self._puzzles.labels(model, solution.status).inc()
        if solution.status != "invalid":
            self._steps.labels(model).observe(solution.steps)
