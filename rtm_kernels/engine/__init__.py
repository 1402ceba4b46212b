"""Solving: halting per sample, continuous batching, policies as data."""

from __future__ import annotations

from rtm_kernels.engine.evaluation import Evaluation, Measurement, take_turns
from rtm_kernels.engine.executor import EXECUTORS, Executor
from rtm_kernels.engine.rollouts import Rollouts
from rtm_kernels.engine.samples import Observer, Solution, Step
from rtm_kernels.engine.service import Closed, Overloaded, Service
from rtm_kernels.engine.solver import Solver
from rtm_kernels.ops.halting.policy import HaltingPolicy

__all__ = [
    "EXECUTORS",
    "Closed",
    "Evaluation",
    "Executor",
    "HaltingPolicy",
    "Measurement",
    "Observer",
    "Overloaded",
    "Rollouts",
    "Service",
    "Solution",
    "Solver",
    "Step",
    "take_turns",
]
