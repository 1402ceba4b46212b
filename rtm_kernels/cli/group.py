"""How every command ends: one clear line on stderr and exit code 2 for what the caller can correct."""

from __future__ import annotations

import errno
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from rtm_kernels.errors import RTMError, one_line

ALL_VERIFIED, NOT_ALL_VERIFIED, BAD_INPUT = 0, 1, 2


class Group(TyperGroup):
    """Turns the package's own errors, and files that cannot be read or written, into one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
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


def complain(message: str) -> None:
    """`message` as one line on stderr, without control characters."""

    typer.echo(f"error: {one_line(message)}", err=True)
