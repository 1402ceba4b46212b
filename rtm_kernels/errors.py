"""The package's own exceptions: one line that names the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable


class RTMError(Exception):
    """Base class of every error raised on purpose by this package."""


class InputError(RTMError, ValueError):
    """An argument, file or tensor that the caller can correct."""


class BackendUnavailable(RTMError, RuntimeError):
    """An implementation was asked for by name and cannot run here; the message says what is missing."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise `InputError` naming the argument, its value and what is allowed, unless `condition` holds."""
    if not condition:
        raise InputError(f"{name}={value!r} is not allowed: {allowed}")


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise `InputError` unless `value` is one of `allowed`."""
    options = tuple(allowed)
    require(value in options, name, value, "expected one of " + ", ".join(map(str, options)))
