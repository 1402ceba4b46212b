"""`rtm convert`: official checkpoints to folders without code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtm_kernels.cli.options import Json, Overwrite


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of the official training.", metavar="CHECKPOINT")],
    out: Annotated[Path, typer.Argument(help="Folder to write.", metavar="DIR")],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON of the run; default all_config.yaml beside CHECKPOINT.", metavar="FILE"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Data set of the run, for its vocabulary, length and number of puzzles.", metavar="DIR"),
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Architecture, where the config names none.", metavar="NAME")] = None,
    overwrite: Overwrite = False,
    json_object: Json = False,
) -> None:
    """Convert an official checkpoint of TRM, HRM or RSM to safetensors.

    Official checkpoints are pickles, which can hold code. CHECKPOINT is read in
    a process of its own with limits on memory, time and file size, and only
    dense tensors are taken from it. DIR then holds model.safetensors,
    config.json and their checksums; use it as rtm solve --model DIR.

    Examples:

      rtm convert checkpoints/run/step_65100 models/maze --data data/maze
      rtm convert step_65100 models/maze --config all_config.yaml --arch trm
    """
    from rtm_kernels.cli.report import print_result
    from rtm_kernels.interop.convert import convert as run

    source = config or checkpoint.parent / "all_config.yaml"
    model = run(checkpoint, out, config=source, arch=arch, data=data, overwrite=overwrite)
    parameters = sum(value.numel() for value in model.parameters())
    named = {"model": str(out), "arch": model.config.arch}
    rows = {**named, "parameters": f"{parameters:,}", "next": f"rtm solve puzzles.txt --model {out}"}
    print_result({**named, "parameters": parameters}, rows, json_object)
