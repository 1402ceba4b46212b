"""The package's own exceptions: one line that names the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 200
"""Characters of a value that a message repeats."""
LONGEST = 1500
"""Characters of a message."""


class RTMError(Exception):
    """Base class of every error raised on purpose by this package: its message is one printable line, not too long."""

    def __init__(self, *args: object) -> None:
        if args and isinstance(args[0], str):
            args = (one_line(args[0]), *args[1:])
        super().__init__(*args)


def one_line(text: str) -> str:
    """`text` without line ends and control characters, at most 1,500 characters of it: safe to print."""
    line = " ".join(text[: 2 * LONGEST].splitlines())
    return printable(line if len(line) <= LONGEST else f"{line[:LONGEST]}...")


def printable(text: str) -> str:
    """`text` without control characters, for messages."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


class InputError(RTMError, ValueError):
    """An argument, file or tensor that the caller can correct."""


class BackendUnavailable(RTMError, RuntimeError):
    """An implementation was asked for by name and cannot run here; the message says what is missing."""


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise `InputError` naming the argument, its value (at most 200 characters of it) and what is allowed, unless
    `condition` holds."""
    if not condition:
        shown = repr(value)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        raise InputError(f"{name}={shown} is not allowed: {allowed}")


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise `InputError` unless `value` is one of `allowed`."""
    options = tuple(allowed)
    require(value in options, name, value, "expected one of " + ", ".join(map(str, options)))
