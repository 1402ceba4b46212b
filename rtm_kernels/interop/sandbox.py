"""Code that a model wrote, run in a process with limits: the metric of tasks in the form of MBPP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from rtm_kernels.errors import BackendUnavailable

SECONDS, MEMORY = 5, 512 << 20


def passes(code: str, tests: Sequence[str], seconds: int = SECONDS) -> bool:
    """Whether `code`, followed by `tests`, runs to its end in a new Python process.

    It gets `seconds` of time, 512 MiB of memory, no environment, no input, an empty folder, and may write no file and,
    unless it runs as root, start no process. It may still read files and reach the network: score code of models that
    you do not trust in a container without either.

    Errors: `BackendUnavailable` where processes cannot be limited (not Linux).
    """
    if sys.platform != "linux":
        raise BackendUnavailable(f"code cannot be run with limits on {sys.platform}")
    import resource

    mark = os.urandom(16).hex()
    program = "\n".join([code, *tests, f"print({mark!r}, flush=True)", ""])
    limits = {
        resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: MEMORY, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=folder, env={}, start_new_session=True,
        )  # fmt: skip
        try:
            for what, value in limits.items():
                resource.prlimit(process.pid, what, (value, value))
            printed, _ = process.communicate(program.encode(), timeout=2 * seconds)
            return process.returncode == 0 and printed.decode(errors="replace").endswith(f"{mark}\n")
        except (subprocess.TimeoutExpired, BrokenPipeError):
            return False
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
            process.wait()


def pass_at_1(references: Sequence[str], predictions: Sequence[Sequence[str]]) -> float:
    """The share of tasks whose first prediction passes its tests, as a metric of the lm-eval harness calls it."""
    found = [passes(written[0], [tests]) for tests, written in zip(references, predictions, strict=True)]
    return sum(found) / max(1, len(found))
