"""Prometheus metrics of one server, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class Metrics:
    """Counted where it happens. Labels take few values: routes and codes of this server, models by name."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("rtm_requests", "Requests answered.", ("route", "status"), registry=registry)
        self.refused = Counter("rtm_refused", "Requests refused, by error code.", ("code",), registry=registry)
        self.seconds = Histogram(
            "rtm_request_seconds", "From the head of a request to the end of its answer.", ("route",),
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.puzzles = Counter("rtm_puzzles", "Puzzles answered.", ("model", "status"), registry=registry)
        self.steps = Histogram("rtm_act_steps", "ACT steps per puzzle.", ("model",), buckets=STEPS, registry=registry)
        self.waiting = Gauge("rtm_puzzles_waiting", "Puzzles that wait for a slot.", registry=registry)
        self.running = Gauge("rtm_puzzles_running", "Puzzles in a slot.", registry=registry)
        self.connections = Gauge("rtm_connections", "Open connections.", registry=registry)
        self.cancelled = Counter("rtm_puzzles_cancelled", "Puzzles whose caller went away.", registry=registry)
        self.restarts = Counter("rtm_worker_restarts", "Workers that were replaced.", registry=registry)
        self.up = Gauge("rtm_worker_up", "1 while a worker is ready.", registry=registry)

    def page(self) -> bytes:
        """All of them in Prometheus's text format."""
        return bytes(generate_latest(self.registry))
