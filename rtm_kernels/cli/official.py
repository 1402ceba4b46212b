"""`rtm convert` and `rtm run`: checkpoints and training scripts of the official repositories."""

from __future__ import annotations

import json
import os
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
    from rtm_kernels.interop.checkpoint import convert as read

    source = config or checkpoint.parent / "all_config.yaml"
    model = read(checkpoint, out, config=source, arch=arch, data=data, overwrite=overwrite)
    parameters = sum(value.numel() for value in model.parameters())
    named = {"model": str(out), "arch": model.config.arch}
    rows = {**named, "parameters": f"{parameters:,}", "next": f"rtm solve puzzles.txt --model {out}"}
    print_result({**named, "parameters": parameters}, rows, json_object)


def run(
    script: Annotated[Path, typer.Argument(help="E.g. the pretrain.py of TRM, HRM or RSM.", metavar="SCRIPT")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its own arguments.", metavar="ARGS")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be replaced.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Replace missing packages only, not the blocks.")] = False,
    json_object: Annotated[
        bool, typer.Option("--json", help="Report as JSON lines on standard error; standard output is the script's.")
    ] = False,
) -> None:
    """Run an official training script with the fused blocks of this package.

    Stacks of TRM, HRM and RSM blocks are replaced as the script builds them;
    parameters and state_dict keys stay the same. Where the packages adam_atan2
    or flash_attn cannot be imported, AdamATan2 of rtm_kernels and PyTorch's
    attention take their place. Options of rtm run come before SCRIPT.

    Examples:

      rtm run --dry-run pretrain.py
      rtm run pretrain.py arch=trm "data_paths=['data/sudoku']" evaluators=[]
      torchrun --nproc-per-node 4 -m rtm_kernels.cli.main run pretrain.py arch=trm
    """
    from rtm_kernels.errors import require
    from rtm_kernels.interop.scripts import STAND_INS, missing, run_script

    require(script.is_file(), "SCRIPT", str(script), "a Python file, e.g. the pretrain.py of an official checkout")
    absent = missing()
    parts = [f"{name} by {', '.join(STAND_INS[name])} of rtm_kernels ({why})" for name, why in absent.items()]
    parts += [] if plain else ["stacks of official blocks by fused ones, as they are built"]
    verb = "would replace" if dry_run else "replaces"
    say(f"{verb} {'; '.join(parts) or 'nothing'}", {verb.replace(" ", "_"): parts}, json_object)
    if dry_run:
        return
    report = run_script(script, arguments or [], accelerated=not plain)
    if not plain:
        found = ", ".join(report) or "nothing: no stack of official blocks was built"
        say(f"accelerated {found}", {"accelerated": report}, json_object)


def say(line: str, report: dict[str, list[str]], as_json: bool) -> None:
    """One line on standard error, of all ranks of torchrun from the first only."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps(report) if as_json else f"rtm run: {line}", err=True)
