"""NVTX ranges around recursion, ACT step, program step and op, there only when a profiler has started this process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

DOMAIN = "rtm_kernels"
"""NVTX domain of every range of this package."""

Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def attached() -> Any:
    """The NVTX domain of a tool that listens, or None: no tool, or the package nvtx (extra `profile`) is missing."""
    try:
        import nvtx
    except ImportError:
        return None
    domain = nvtx.get_domain(DOMAIN)
    return None if type(domain).__name__ == "DummyDomain" else domain


def ranged(name: str | Callable[..., str], domain: Any = None) -> Callable[[Function], Function]:
    """Decorator: the function inside a range called `name`, or what `name` makes of the arguments.

    NVTX tools (nsys, ncu) attach when a process starts, so this is decided when the function is defined: without one
    it stays the very same function, and costs nothing. torch.compile traces it without the range.
    """
    listener = attached() if domain is None else domain

    def decorate(function: Function) -> Function:
        if listener is None:
            return function

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            import torch

            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            text = name if isinstance(name, str) else name(*args, **kwargs)
            listener.push_range(message=text)
            try:
                return function(*args, **kwargs)
            finally:
                listener.pop_range()

        return inside  # type: ignore[return-value]

    return decorate
