"""`rtm export`: one ACT step of a model for ONNX runtimes, or as a program of torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtm_kernels.cli.options import Json, Overwrite


def export(
    model: Annotated[str, typer.Argument(help="Bundled name, folder, or hub id.", metavar="MODEL")],
    out: Annotated[Path, typer.Argument(help="File to write; .onnx or .pt2 says the format.", metavar="FILE")],
    overwrite: Overwrite = False,
    json_object: Json = False,
) -> None:
    """Write one ACT step of a model as ONNX (opset 20), or as a program of torch.export.

    FILE holds the weights and the initial latents, in float32, for any batch
    size. Inputs are the tokens, the latents of the last step, and which samples
    start afresh; outputs are logits, halting logits and the new latents. Whoever
    runs it repeats the step until an answer is good enough.

    Examples:

      rtm export sudoku sudoku.onnx
      rtm export runs/sudoku-4x4 step.pt2
    """
    from rtm_kernels.cli.report import print_result
    from rtm_kernels.errors import require
    from rtm_kernels.interop.export import export as write
    from rtm_kernels.model import RecursiveReasoner

    require(overwrite or not out.exists(), "FILE", str(out), "it exists (--overwrite replaces it)")
    names = write(RecursiveReasoner.from_pretrained(model), out)
    size = out.stat().st_size
    rows = {"file": f"{out} ({size:,} bytes)", **{kind: ", ".join(values) for kind, values in names.items()}}
    print_result({"file": str(out), "bytes": size, **names}, rows, json_object)
