"""`rtm run`: the training script of an official checkout, unedited."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def run(
    script: Annotated[Path, typer.Argument(help="E.g. the pretrain.py of TRM, HRM or RSM.", metavar="SCRIPT")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its own arguments.", metavar="ARGS")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be replaced, and stop.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Stand-ins only; leave the blocks as they are.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Answer calls for CUDA with the CPU.")] = False,
) -> None:
    """Run an official training script with fused blocks and without packages that are hard to build.

    Where adam_atan2 or flash_attn cannot be imported, AdamATan2 of rtm_kernels
    and PyTorch's attention stand in under their names. Stacks of TRM, HRM and
    RSM blocks are accelerated as the script builds them; parameters and
    state_dict keys stay. With --cpu a script that asks for CUDA runs without a
    GPU, slowly: to see that it runs. Options of rtm run come before SCRIPT.

    Examples:

      rtm run --dry-run pretrain.py
      rtm run pretrain.py arch=trm data_paths="[data/sudoku]" evaluators="[]"
      rtm run --cpu pretrain.py data_path=data/sudoku arch.hidden_size=64 arch.num_heads=2 global_batch_size=16
      torchrun --nproc-per-node 4 -m rtm_kernels.cli.main run pretrain.py arch=trm
    """
    from rtm_kernels.errors import require
    from rtm_kernels.interop.scripts import STAND_INS, missing, run_script

    require(script.is_file(), "SCRIPT", str(script), "a Python file, e.g. the pretrain.py of an official checkout")
    absent = missing()
    parts = [f"{name} by {', '.join(STAND_INS[name])} of rtm_kernels ({why})" for name, why in absent.items()]
    parts += [] if plain else ["stacks of official blocks by fused ones, as they are built"]
    parts += ["CUDA by the CPU"] if cpu else []
    say(f"{'would replace' if dry_run else 'replaces'} {'; '.join(parts) or 'nothing'}")
    if dry_run:
        return
    report = run_script(script, arguments or [], accelerated=not plain, on_cpu=cpu)
    if not plain:
        say(f"accelerated {', '.join(report) or 'nothing: no stack of official blocks was built'}")


def say(line: str) -> None:
    """One line on standard error, of all ranks of torchrun from the first only."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"rtm run: {line}", err=True)
