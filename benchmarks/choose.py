"""python -m benchmarks.choose: the persistent kernel or the graph, measured in every batch bucket.

Writes choice.json: the times of both paths per bucket, and the entry that follows for `rtm_kernels/ops/tuned.json`, by
which `executor="auto"` takes the persistent kernel on this GPU; `--write` puts it there. It stops after the graph has
won in two buckets. A bucket that choice.json holds for this commit is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, report, rows
from benchmarks.cases import MODELS, Case, dtype_on
from benchmarks.harness import run_case
from benchmarks.providers import PROVIDERS, Provider
from benchmarks.rows import Row
from benchmarks.run import UNFINISHED
from benchmarks.tune import merge
from rtm_kernels.ops.launch import TUNED, entries, family, select
from rtm_kernels.recursion.graph import BUCKETS
from rtm_kernels.recursion.persistent.runner import KERNEL, TABLE

PROVIDER_OF = {"graph": "rtm_triton_graph", "persistent": "rtm_persistent_graph"}
"""Path -> the provider that measures it, both as one CUDA graph around the whole ACT step."""

Found = dict[int, dict[str, Row]]
"""Batch bucket -> path -> its row."""


def measure(case: Case, seconds: float, providers: Sequence[Provider] = PROVIDERS) -> dict[str, Row]:
    """Path -> its row, the graph being the baseline."""
    by_name = {p.name: p for p in providers}
    found = run_case(case, [by_name[name] for name in PROVIDER_OF.values()], seconds=seconds)
    return dict(zip(PROVIDER_OF, found, strict=True))


def winner(found: dict[str, Row]) -> str | None:
    """The faster path by the median ratio, or the only one that was measured; None when none was."""
    measured = [path for path, row in found.items() if row.status == "measured"]
    if len(measured) < 2:
        return measured[0] if measured else None
    ratio = found["persistent"].ratio
    return "persistent" if ratio is not None and ratio > 1 else "graph"


def largest(winners: dict[int, str]) -> int:
    """The largest batch up to which the persistent kernel won in every bucket; 0 when it lost in the smallest."""
    won = itertools.takewhile(lambda batch: winners[batch] == "persistent", sorted(winners))
    return max(won, default=0)


def entry(found: Found, model: str, device: str) -> dict[str, Any] | None:
    """The entry of `ops/tuned.json` that says up to which batch the persistent kernel was faster here, or None."""
    winners = _winners(found)
    most = largest(winners)
    if most == 0:
        return None
    config, ratio = MODELS[model], found[most]["persistent"].ratio_interval or (0.0, 0.0)
    row = replace(select(TABLE, KERNEL, getattr(torch, dtype_on(device)), config.latent_len), family=family())
    measured = {
        "gpu": machine.device_name(device), "shape": [config.latent_len, config.hidden_size], "batch": most,
        "use": f"{model}-act_step", "ratio": found[most]["persistent"].ratio, "low": ratio[0],
        "commit": machine.commit(), "versions": machine.versions(),
    }  # fmt: skip
    return {"op": "persistent", **asdict(row), "measured": measured}


def _winners(found: Found) -> dict[int, str]:
    return {batch: best for batch, both in found.items() if (best := winner(both)) is not None}


def _write(path: Path, found: Found, model: str, device: str) -> None:
    winners = _winners(found)
    measured = [
        row.as_dict() | {"path": name, "batch": batch, "chosen": winners.get(batch) == name}
        for batch, both in found.items()
        for name, row in both.items()
    ]
    report.save(path, device, entry=entry(found, model, device), rows=measured)


def _earlier(path: Path) -> Found:
    """Buckets of which a file of this very commit holds measurements of both paths."""
    found: Found = {}
    for row in (report.earlier(path) or {"rows": ()})["rows"]:
        found.setdefault(row["batch"], {})[row["path"]] = Row.of(row)
    return {batch: both for batch, both in found.items() if all(row.status == "measured" for row in both.values())}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when both paths were measured in every bucket."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choose", description=__doc__)
    parser.add_argument("--model", default="sudoku")
    parser.add_argument("--batch", type=int, action="append", help="buckets (default: all)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which no bucket begins")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of timed rounds per bucket")
    parser.add_argument("--write", action="store_true", help="put the entry into rtm_kernels/ops/tuned.json")
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<gpu>)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here")
    device, begin = "cuda", time.monotonic()
    path = (args.folder or report.default_folder(device)) / "choice.json"
    found, left = _earlier(path), 0
    for batch in args.batch or BUCKETS:
        if batch in found or list(_winners(found).values()).count("graph") > 1:
            continue
        if time.monotonic() - begin > args.limit:
            left += 1
            continue
        found[batch] = measure(Case(args.model, "act_step", batch, dtype_on(device), device), args.seconds)
        _write(path, found, args.model, device)
        print(f"B{batch}: " + ", ".join(_told(name, row) for name, row in found[batch].items()), flush=True)
    new = entry(found, args.model, device)
    if args.write and new is not None:
        rows.replace(TUNED, json.dumps(merge(entries(), [new]), indent=1) + "\n")
    wrong = [b for b, both in found.items() if not all(row.status == "measured" for row in both.values())]
    most = new["measured"]["batch"] if new else 0
    told = f"persistent up to B = {most}, {len(found)} buckets, {left} left, not measured: {wrong}"
    print(f"{told}, {machine.device_name(device)} at {machine.commit()}")
    return int(bool(wrong) or not found) or (UNFINISHED if left else 0)


def _told(path: str, row: Row) -> str:
    return f"{path} {1e3 * row.seconds:.3f} ms" if row.seconds is not None else f"{path} {row.status} ({row.reason})"


if __name__ == "__main__":
    raise SystemExit(main())
