"""Traces: what a model did at every ACT step, recorded, replayed bit for bit, and shown."""

from __future__ import annotations

from rtm_kernels.trace.page import write_page
from rtm_kernels.trace.reader import Trace, Traced, read_trace
from rtm_kernels.trace.recorder import record
from rtm_kernels.trace.replay import replay

__all__ = ["Trace", "Traced", "read_trace", "record", "replay", "write_page"]
