"""The report of a run: profiles/<machine>/ with JSON and a page.

Documents cite summary.json; README.md beside it is generated from it, so that the two agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, rows
from benchmarks.cases import cases
from benchmarks.rows import Row

NOTES = {
    "cpu": "Compare ratios, not milliseconds: a processor is shared with other programs, and the rounds are "
    "interleaved so that they hit all contestants alike. One thread, or those at the end of a case's name (`-t2`); "
    "the limits are measured with as many. Launches and peak memory are not counted on a CPU.",
    "cuda": "Times by CUDA events. Peak memory is what is reserved for one contestant alone, weights and graphs too. "
    "Energy, where given, is that of the GPU board alone by NVML's counter, gross.",
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


def page(found: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """The page of a machine, from its summary and from what else was written to its folder."""
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
        "`ratio` is the time of the case's baseline, a row without an interval, over the time of the row. `of limit` "
        "is the larger of two fractions: useful FLOP/s over those of a large matrix product, and the bytes that must "
        "move over those of a copy, both measured in the same run; a small case that stays in cache can pass 1. "
        "Every row's answer was held to the error budget before it was timed (ONNX Runtime to four times of it). "
        "What was refused or not run, and why: [not_run.json](not_run.json).", "",
        *table(found), "",
        *_refused(folder), *_paths(folder), *_act_steps(folder), *_energy(folder, device),
        *_more(folder),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _refused(folder: Path) -> list[str]:
    """Who gave a wrong answer and was not timed."""
    left = _load(folder / "not_run.json") or []
    refused = [f"- {e['case']}, {e['impl']}: {e['reason']}" for e in left if e.get("status") == "refused"]
    return ["Refused:", "", *refused, ""] if refused else []


def _paths(folder: Path) -> list[str]:
    """Both paths of an ACT step in every batch bucket, as `benchmarks.choose` measured them."""
    content = _load(folder / "choice.json")
    mine = [row for row in content["rows"] if row["status"] == "measured"] if content else []
    if not mine:
        return []
    lines = ["| case | path | ms | ratio | 95% interval | chosen |", "|---|---|--:|--:|--:|---|"]
    for r in mine:
        low, high = r["ratio_interval"]
        lines.append(f"| {r['case']} | {r['path']} | {1e3 * r['seconds']:.3f} | {r['ratio']:.2f} | {low:.2f} to "
                     f"{high:.2f} | {'yes' if r['chosen'] else ''} |")  # fmt: skip
    return [*lines, ""]


def _act_steps(folder: Path) -> list[str]:
    """Where the time of one ACT step goes, implementation by implementation, as `benchmarks.profile` found it."""
    lines = []
    for path in sorted(folder.glob("act_step_*.json")):
        content = _load(path)
        title = f"One ACT step of {content['case']} by {content['tool']} at commit {content['commit']}"
        lines += [f"{title}, all rows in [{path.name}]({path.name}):", ""]
        lines += ["| impl | ms | calls | largest |", "|---|--:|--:|---|"]
        for impl in dict.fromkeys(row["impl"] for row in content["rows"]):
            mine = [row for row in content["rows"] if row["impl"] == impl]
            mine = [row for row in mine if row.get("level") == "kernel"] or mine
            top = "; ".join(f"{row['op'][:48]} {100 * row['share']:.0f} %" for row in mine[:4])
            total, calls = sum(row["microseconds"] for row in mine) / 1e3, sum(row["calls"] for row in mine)
            lines.append(f"| {impl} | {total:.2f} | {calls:.0f} | {top} |")
        lines.append("")
    return lines


def _energy(folder: Path, device: str) -> list[str]:
    """Joules, as `benchmarks.energy` measured them, or that nothing was."""
    content = _load(folder / "energy.json")
    rows_ = [row for row in content["rows"] if row["energy"] is not None] if content else []
    if not rows_:
        return ["Energy: not measured, no counter can be read here.", ""] if device == "cpu" else []
    lines = ["| case | impl | J per ACT step | J per puzzle | J per verified puzzle | W | idle W | covers |",
             "|---|---|--:|--:|--:|--:|--:|---|"]  # fmt: skip
    for row in rows_:
        keys = ("joules_per_act_step", "joules_per_puzzle", "joules_per_verified")
        values = ["" if row.get(key) is None else f"{row[key]:.3g}" for key in keys]
        lines.append(f"| {row['case']} | {row['impl']} | {' | '.join(values)} | {row['energy']['watts']:.1f} "
                     f"| {content['idle_watts']:.1f} | {row['energy']['covers']} |")  # fmt: skip
    return [*lines, ""]


def _more(folder: Path) -> list[str]:
    """Links to the studies of `benchmarks.evaluation`."""
    found = sorted((folder / "evaluation").glob("*.md"))
    links = ", ".join(f"[{path.stem}](evaluation/{path.name})" for path in found)
    return [f"Accuracy for compute: {links}.", ""] if found else []


def _load(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def not_run(found: Sequence[Row]) -> list[dict[str, str]]:
    """What was refused or not run, and why: one entry for a case where the reason is the same for all."""
    shown: list[Row] = []
    for name in dict.fromkeys(row.case for row in found):
        mine = [row for row in found if row.case == name]
        alike = len({(row.status, row.reason) for row in mine}) == 1
        shown += [replace(mine[0], impl="all")] if alike else mine
    device = next(row.facts["device"] for row in found if row.status == "measured")
    known = {row.case for row in found}
    skipped = [(case.name, reason or "not in this run") for case, reason in cases(device) if case.name not in known]
    shown += [Row(name, "all", "not run", reason) for name, reason in skipped]
    keys = ("case", "impl", "status", "reason")
    return [{key: getattr(row, key) for key in keys} for row in shown if row.status != "measured"]


def default_folder(device: str | None = None) -> Path:
    """profiles/<machine>, by default of the GPU if there is one."""
    return machine.ROOT / "profiles" / machine.slug(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def write_summary(found: Sequence[Row], folder: Path) -> list[dict[str, Any]]:
    """Replace summary.json in `folder`; returns it."""
    whole = rows.summary(found)
    rows.replace(folder / "summary.json", json.dumps(whole, indent=1) + "\n")
    return whole


def write(found: Sequence[Row], folder: Path) -> list[dict[str, Any]]:
    """Write summary, facts, what was not run, and the page last; returns the summary."""
    facts = [row.as_dict() for row in found if row.status == "measured"]
    whole = write_summary(found, folder)
    rows.replace(folder / "facts.jsonl", "".join(json.dumps(fact) + "\n" for fact in facts))
    rows.replace(folder / "not_run.json", json.dumps(not_run(found), indent=1) + "\n")
    rows.replace(folder / "README.md", page(whole, folder))
    return whole


def save(path: Path, device: str, **content: Any) -> None:
    """Write `content` with where and on what it was measured as JSON, and the page of its folder anew."""
    facts = machine.facts(device) | {"versions": machine.versions()} | content
    rows.replace(path, json.dumps(facts, indent=1) + "\n")
    refresh(path.parent)


def earlier(path: Path) -> Any:
    """What a file of `save` holds of an interrupted run of this very commit, None without one."""
    content = None if machine.commit().endswith("+") else _load(path)
    return content if content and content["commit"] == machine.commit() else None


def refresh(folder: Path) -> None:
    """Write the page anew after something else was written to its folder; nothing where there is no summary."""
    found = _load(folder / "summary.json")
    if found:
        rows.replace(folder / "README.md", page(found, folder))
