"""python -m benchmarks.evaluation STUDY: train the arms of a study for equal FLOPs, and compare what they answer.

Writes STUDY.csv, STUDY.md and STUDY.png to profiles/<machine>/evaluation/. Runs are kept by the content of their
recipe, so that studies share arms and an interrupted study goes on where it stopped.

    python -m benchmarks.evaluation --list
    python -m benchmarks.evaluation mixer halting
    python -m benchmarks.evaluation all --scale gpu --data data/sudoku-extreme-1k-aug-1000 --energy 30
    python -m benchmarks.evaluation mixer --seeds 1 --set stages.0.steps=20
    python -m benchmarks.evaluation text --set steps=3000 --threads 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.evaluation.run import Interrupted, Options, run_study
from benchmarks.evaluation.studies import SCALES, STUDIES, TEXT_SCALES, TEXT_STUDIES
from benchmarks.evaluation.text import run_text_study
from rtm_kernels.errors import RTMError, one_of

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 done, 2 bad input, 130 interrupted and resumable."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__, formatter_class=form)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("study", nargs="*", help="studies by name, or all")
    parser.add_argument("--list", action="store_true", help="print the studies and their arms")
    parser.add_argument("--scale", choices=list(SCALES), default="gpu" if device == "cuda" else "cpu")
    parser.add_argument("--seeds", type=int, help="runs of each arm (default: as the scale says)")
    parser.add_argument("--data", help="data set of puzzles (--scale gpu needs one), or text")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe of all arms")
    parser.add_argument("--energy", type=float, default=0.0, help="seconds of each energy window (at least 30 to cite)")
    parser.add_argument("--device", default=device)
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU")
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<machine>/evaluation)")
    parser.add_argument("--runs", type=Path, default=machine.ROOT / ".benchmarks" / "evaluation", help="folder of runs")
    args = parser.parse_args(argv)
    scale = SCALES[args.scale]
    if args.list or not args.study:
        for name, study in STUDIES.items():
            print(f"{name:<16} {study.question}\n{'':<16} {', '.join(arm.name for arm in study.arms(scale))}")
        for name, text in TEXT_STUDIES.items():
            arms = ", ".join(arm.name for arm in text.arms(TEXT_SCALES[args.scale]))
            print(f"{name:<16} {text.question}\n{'':<16} {arms}")
        return 0 if args.list else 2
    torch.set_num_threads(args.threads)
    changes = (*args.set, *([f"data={args.data}"] if args.data else []))
    folder = args.folder or machine.ROOT / "profiles" / machine.slug(torch.device(args.device).type) / "evaluation"
    options = Options(scale, changes, args.seeds or scale.seeds, args.device, args.energy, args.runs, folder)
    try:
        for name in args.study:
            one_of("study", name, ["all", *STUDIES, *TEXT_STUDIES])
        for name in [*STUDIES, *TEXT_STUDIES] if "all" in args.study else dict.fromkeys(args.study):
            lines = run_study(name, STUDIES[name], options) if name in STUDIES else run_text_study(name, options)
            print("\n".join(["", *lines]), flush=True)
        report.refresh(folder.parent)
    except Interrupted as error:
        print(f"stopped: {error}; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except RTMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
