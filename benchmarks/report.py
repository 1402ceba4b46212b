"""python -m benchmarks.report RESULTS.json: one table, and profiles/<machine>/ with JSON, a page and figures.

profiles/<machine>/summary.json is what documents cite; README.md beside it is made from it alone, so the two agree.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures, machine, rows
from benchmarks.cases import cases
from benchmarks.providers import PROVIDERS

PROFILES = machine.ROOT / "profiles"
NOTES = {
    "cpu": "A processor that other programs share: only the ratios mean something, since the rounds are interleaved. "
    "Single-threaded unless `threads` in the summary says otherwise. Energy was not measured: no counter can be read.",
    "cuda": "Times by CUDA events. Energy, where given, is that of the GPU board alone by NVML's counter, gross.",
}


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The latency rows of a summary as a Markdown table."""
    joules = {(r["case"], r["impl"]): r["value"] for r in found if r["metric"] == "joules"}
    launches = {(r["case"], r["impl"]): r["value"] for r in found if r["metric"] == "launches"}
    lines = [
        "| case | impl | ms | ratio | 95% interval | of limit | launches | J |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        if row["metric"] == "latency":
            key = row["case"], row["impl"]
            interval = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}" if row["impl"] != row["baseline"] else ""
            energy = f"{joules[key]:.3g}" if key in joules else ""
            lines.append(
                f"| {key[0]} | {key[1]} | {1e3 * row['value']:.3f} | {row['ratio']:.2f} | {interval} "
                f"| {row['fraction_of_limit']:.2f} | {launches.get(key, '')} | {energy} |"
            )
    return lines


def page(found: Sequence[Mapping[str, Any]], drawn: Sequence[str]) -> str:
    """The page of a machine, from its summary and the names of its figures alone."""
    first = found[0]
    device = "cuda" if first["gpu"] else "cpu"
    versions = f"torch {first['torch']}, triton {first['triton']}"
    commits = ", ".join(sorted({row["commit"] for row in found}))
    clocks = sorted({row["clock_mhz"] for row in found} - {None})
    lines = [
        f"# {first['machine']}", "",
        f"Every figure on this page is generated from [summary.json](summary.json): commit {commits}, {versions}, "
        + (f"{clocks[0]} to {clocks[-1]} MHz." if clocks else "clock not read."), "",
        NOTES[device], "",
        "`ratio` is the time of the case's baseline, its first row, over the time of the row. `of limit` is the larger "
        "of two fractions: useful FLOP/s over those of a large matrix product, and the bytes that must move over "
        "those of a copy, both measured in the same run; a small case that stays in cache can pass 1. "
        "Every row's answer was held to the error budget before it was timed.", "",
        *table(found), "",
    ]  # fmt: skip
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in drawn]
    return "\n".join(lines).rstrip() + "\n"


def not_run(device: str, measured: set[tuple[str, str]]) -> list[dict[str, str]]:
    """What the run left out, and why."""
    left = []
    for case, reason in cases(device):
        if all(name != case.name for name, _ in measured):
            left.append({"case": case.name, "impl": "all", "reason": reason or "not in this run"})
            continue
        for provider in PROVIDERS:
            if (case.name, provider.name) not in measured:
                why = provider.why_not(case) or "refused, or it raised: see the output of the run"
                left.append({"case": case.name, "impl": provider.name, "reason": why})
    return left


def write(results: Sequence[rows.Result], folder: Path) -> list[dict[str, Any]]:
    """Write summary, page, figures, what was not run, and the history; returns the summary."""
    found = rows.summary(results)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = figures.draw(found, [r.facts for r in results], folder)
    rows.replace(folder / "summary.json", json.dumps(found, indent=1) + "\n")
    rows.replace(folder / "README.md", page(found, drawn))
    left = not_run(results[0].facts["device"], {r.key for r in results})
    rows.replace(folder / "not_run.json", json.dumps(left, indent=1) + "\n")
    _append_history(found, folder)
    return found


def _append_history(found: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """One line per case and provider of each clean commit, a commit's latest run replacing its earlier ones."""
    path = folder / "history.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    new = [
        {key: row[key] for key in ("commit", "case", "impl", "value", "ratio", "ratio_low", "ratio_high")}
        for row in found
        if row["metric"] == "latency" and not row["commit"].endswith("+")
    ]
    kept = [e for e in kept if e["commit"] not in {n["commit"] for n in new}] + new
    if kept:
        rows.replace(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        figures.history(kept, folder / "history.png")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, help="file that pytest --benchmark-json wrote")
    parser.add_argument("--folder", type=Path, help="folder to write to (default: profiles/<machine>)")
    args = parser.parse_args()
    results = rows.read(args.results)
    if not results:
        print(f"error: {args.results} holds no measured row")
        return 1
    folder = args.folder or PROFILES / machine.slug(results[0].facts["device"])
    found = write(results, folder)
    print("\n".join(table(found)))
    print(f"\nwritten to {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
