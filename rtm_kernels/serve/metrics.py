"""Prometheus metrics of one server, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rtm_kernels.engine import Service, Solution


class Metrics:
    """Counters and gauges. Labels take few values: routes, statuses, codes, and names of models."""

    def __init__(self, service: Service) -> None:
        self.registry = found = CollectorRegistry()
        self._requests = Counter("rtm_requests", "Requests.", ("route", "status", "code"), registry=found)
        self._seconds = Histogram("rtm_request_seconds", "Seconds of a request.", ("route",), registry=found)
        self._puzzles = Counter("rtm_puzzles", "Puzzles answered.", ("model", "status"), registry=found)
        self._steps = Counter("rtm_act_steps", "ACT steps of the puzzles answered.", ("model",), registry=found)
        Gauge("rtm_puzzles_queued", "Puzzles that wait.", registry=found).set_function(lambda: service.queued)
        Gauge("rtm_puzzles_running", "Puzzles in a slot.", registry=found).set_function(lambda: service.running)

    def record(self, route: str, status: int, code: str, seconds: float) -> None:
        """Count a request; `status` 0 means that the client had no answer, `code` is that of its error."""
        self._requests.labels(route, str(status or "none"), code).inc()
        self._seconds.labels(route).observe(seconds)

    def solved(self, model: str, solution: Solution) -> None:
        """Count a puzzle."""
        self._puzzles.labels(model, solution.status).inc()
        self._steps.labels(model).inc(solution.steps)
