"""How commands end: an exit code, and for what the caller can correct one clear line on standard error."""

from __future__ import annotations

import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from rtm_kernels.errors import RTMError, one_line

ALL_VERIFIED, NOT_ALL_VERIFIED, BAD_INPUT, OUT_OF_TIME, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes."""


class Group(TyperGroup):
    """Turns the package's own errors, and files that cannot be read or written, into one line and exit code 2."""

    def main(self, *args: Any, **options: Any) -> Any:
        warnings.showwarning = lambda message, *_: typer.echo(f"note: {message}", err=True)
        try:
            return super().main(*args, **options)
        except Exception as error:
            first = error
            while inner := getattr(first, "exceptions", None):  # of a group
                first = inner[0]
            if isinstance(first, RTMError):
                complain(str(first))
            elif isinstance(first, OSError):
                complain(f"{first.filename}: {first.strerror}" if first.filename else first.strerror or str(first))
            else:
                raise
            raise SystemExit(BAD_INPUT) from None


def group_of(about: str, **options: Any) -> typer.Typer:
    """Commands below one name, which alone shows their help."""
    names = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(no_args_is_help=True, context_settings=names, help=about, **options)


def complain(message: str) -> None:
    """Print `message` as one line on standard error, without control characters."""
    typer.echo(f"error: {one_line(message)}", err=True)
