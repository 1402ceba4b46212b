"""`rtm convert`: official checkpoints as folders that hold no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rtm_kernels.cli.options import Json


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="What the official training saved.", metavar="CHECKPOINT")],
    out: Annotated[Path, typer.Argument(help="Folder to write.", metavar="DIR")],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON of the run; default all_config.yaml beside CHECKPOINT.", metavar="FILE"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Data set of the run: vocabulary, length, puzzle count.", metavar="DIR")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Where the config names none.", metavar="NAME")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    json_object: Json = False,
) -> None:
    """Turn a pickled checkpoint of TRM, HRM or RSM into safetensors.

    CHECKPOINT is opened in a process with limits on memory, time and file size
    that takes nothing but dense tensors from it. DIR then holds
    model.safetensors, config.json and their digests, and loads everywhere:
    rtm solve --model DIR.

    Examples:

      rtm convert checkpoints/run/step_65100 models/maze --data data/maze
      rtm convert step_65100 models/maze --config all_config.yaml --arch trm --data data/maze
    """
    from rtm_kernels.interop.convert import convert as run

    source = config or checkpoint.parent / "all_config.yaml"
    model = run(checkpoint, out, config=source, arch=arch, data=data, overwrite=overwrite)
    parameters = sum(value.numel() for value in model.parameters())
    if json_object:
        typer.echo(json.dumps({"model": str(out), "arch": model.config.arch, "parameters": parameters}))
        return
    from rich.console import Console

    from rtm_kernels.cli.report import print_table

    rows = {"model": str(out), "arch": model.config.arch, "parameters": f"{parameters:,}"}
    print_table(Console(highlight=False), {**rows, "next": f"rtm solve puzzles.txt --model {out}"})
