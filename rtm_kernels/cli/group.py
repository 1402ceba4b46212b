"""How commands end: an exit code, and for what the caller can correct one clear line on standard error."""

from __future__ import annotations

import errno
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from rtm_kernels.errors import RTMError, one_line

ALL_VERIFIED, NOT_ALL_VERIFIED, BAD_INPUT, OUT_OF_TIME, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes."""


class Group(TyperGroup):
    """Turns the package's own errors, and files that cannot be read or written, into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        warnings.showwarning = lambda message, *_: typer.echo(f"note: {message}", err=True)
        try:
            return super().invoke(ctx)
        except RTMError as error:
            complain(str(error))
            raise typer.Exit(BAD_INPUT) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            place = f"{error.filename}: " if error.filename else ""
            complain(f"{place}{error.strerror or error}")
            raise typer.Exit(BAD_INPUT) from None


def group_of(about: str, **options: Any) -> typer.Typer:
    """Commands below one name, which alone shows their help."""
    names = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(no_args_is_help=True, context_settings=names, help=about, **options)


def complain(message: str) -> None:
    """Print `message` as one line on standard error, without control characters."""
    typer.echo(f"error: {one_line(message)}", err=True)
