"""The entry point of `rtm`."""

from __future__ import annotations

from typing import Annotated

import typer

from rtm_kernels import __version__
from rtm_kernels.cli.data import data
from rtm_kernels.cli.evaluate import evaluate
from rtm_kernels.cli.export import export
from rtm_kernels.cli.generate import generate
from rtm_kernels.cli.group import Group, group_of
from rtm_kernels.cli.info import info
from rtm_kernels.cli.mcp import mcp
from rtm_kernels.cli.official import convert, run
from rtm_kernels.cli.serve import serve
from rtm_kernels.cli.solve import solve
from rtm_kernels.cli.trace import app as trace
from rtm_kernels.cli.train import train

app = group_of(
    "Solve puzzles with recursive reasoning models, and look at how they do it.",
    cls=Group, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip


def version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rtm_kernels {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=version, is_eager=True)
    ] = False,
) -> None: ...


app.command()(solve)
app.command(name="eval")(evaluate)
app.command()(train)
app.command()(generate)
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run)
app.add_typer(data, name="data")
app.add_typer(trace, name="trace")
app.command()(convert)
app.command()(export)
app.command()(mcp)
app.command()(serve)
app.command()(info)

if __name__ == "__main__":
    app()
