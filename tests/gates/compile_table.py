"""The compile gate's rows as a committed table: `profiles/compile/sm_<arch>.json`, and a summary for readers.

make compile-gate ARCH=all      # compiles for every architecture and writes the table again
make gates TRITON=3.9.0         # the gates and the proof under another Triton than the table's
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, FOLDER = ROOT / "rtm_kernels", ROOT / "profiles" / "compile"
ARCHITECTURES = (90, 80, 86, 89, 100, 120)
FACTS = ("registers", "stack", "spills", "shared", "wgmma", "atomics")
OFFICIAL = ("D=512 F=1536", "L=97 D=512 F=512", "L=916 D=512", "attention_norm D=512 h=8", "persistent L=97", "halting",
            "token_loss", "adam_atan2", "sign_sgd", "queue", "conv_swiglu_norm")  # fmt: skip
"""What the cases at the official sizes begin with; the summary shows them for sm_90."""
NEWER = "## Under a newer Triton\n"
"""Heading of what people write at the end of the summary; it is kept."""


def sources() -> list[Path]:
    """The files that decide what is compiled: kernels, launch tables, and the launch sequences between them."""
    folders = {path.parent for path in PACKAGE.rglob("*.py") if "@triton.jit" in path.read_text()}
    folders |= {path.parent for name in ("launch.py", "op.py") for path in PACKAGE.rglob(name)} - {PACKAGE / "ops"}
    skip = {"reference.py", "api.py", "executor.py", "__init__.py"}
    return sorted(path for folder in folders for path in folder.glob("*.py") if path.name not in skip)


def fingerprint() -> str:
    """A hash of the sources; line ends and blank lines do not count."""
    digest = hashlib.sha256()
    for path in sources():
        lines = [line.rstrip() for line in path.read_text().splitlines() if line.strip()]
        digest.update("\n".join([str(path.relative_to(ROOT)), *lines]).encode())
    return digest.hexdigest()[:16]


def row(compiled: Any) -> dict[str, Any]:
    """What the table keeps of one compiled kernel."""
    facts = {name: getattr(compiled, name) for name in FACTS}
    name = {"case": compiled.case, "kernel": compiled.kernel, "launch": compiled.options}
    return {**name, **facts, "failures": compiled.failures}


def write(arch: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the table of one architecture."""
    import triton

    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    ordered = sorted(rows, key=lambda r: (r["case"], r["kernel"], r["launch"]))
    head = {"arch": f"sm_{arch}", "triton": triton.__version__, "commit": git.stdout.strip(), "sources": fingerprint()}
    lines = ",\n".join(json.dumps(r) for r in ordered)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"sm_{arch}.json"
    path.write_text(json.dumps({**head, "kernels": None})[: -len("null}")] + f"[\n{lines}\n]}}\n")


def read(arch: int) -> dict[str, Any]:
    """The table of one architecture as it was committed."""
    found: dict[str, Any] = json.loads((FOLDER / f"sm_{arch}.json").read_text())
    return found


def differences(arch: int, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """How freshly compiled rows differ from the committed table, if there is one."""
    key = ("case", "kernel", "launch")
    old = {tuple(r[k] for k in key): r for r in read(arch)["kernels"]}
    new = {tuple(r[k] for k in key): dict(r) for r in rows}
    changed = [name for name in old.keys() & new.keys() if old[name] != new[name]]
    gone, added = old.keys() - new.keys(), new.keys() - old.keys()
    parts = (("changed", changed), ("no longer compiled", gone), ("not in the table", added))
    return [f"{what}: {' | '.join(name)}" for what, names in parts for name in sorted(names)]


def summarise() -> None:
    """Write the summary of every table: one line per architecture, and the official sizes on sm_90."""
    tables = {arch: read(arch) for arch in sorted(ARCHITECTURES)}
    first = tables[90]
    lines = [
        "# What the kernels compile to", "",
        f"Triton {first['triton']}, no GPU: every launch row of every kernel, compiled by `make compile-gate ARCH=all` "
        f"at {first['commit']} and read with cuobjdump. `sm_<arch>.json` holds all rows. Nothing here is a time.", "",
        "`make gates TRITON=3.9.0` runs both gates and the proof under another version of Triton.", "",
        "| architecture | kernels | failures | spilling | most registers | most shared KiB | with wgmma | atomics |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for arch, table in tables.items():
        rows = table["kernels"]
        spilled = sum(bool(r["stack"] or r["spills"]) for r in rows)
        most = (max(r["registers"] for r in rows), max(r["shared"] for r in rows) // 1024)
        figures = (len(rows), sum(bool(r["failures"]) for r in rows), spilled, *most)
        counts = (sum(r["wgmma"] > 0 for r in rows), sum(r["atomics"] for r in rows))
        lines.append(f"| sm_{arch} | " + " | ".join(map(str, (*figures, *counts))) + " |")
    lines += ["", "The atomics are arrivals: at the grid barrier of the persistent kernel, at the counter by which the",
              "last program of a halting step knows itself. No sum of floats uses one.", ""]  # fmt: skip
    failures = [(a, r) for a, t in tables.items() for r in t["kernels"] if r["failures"]]
    lines += [f"- sm_{a} {r['case']} {r['kernel']} {r['launch']}: {'; '.join(r['failures'])}" for a, r in failures]
    lines += ["", "## Official sizes on sm_90", "",
              "| case | kernel | launch | registers | stack | shared KiB | wgmma | atomics |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in first["kernels"]:
        if r["case"].startswith(OFFICIAL):
            figures = (r["registers"], r["stack"], r["shared"] // 1024, r["wgmma"], r["atomics"])
            lines.append(f"| {r['case']} | {r['kernel']} | {r['launch']} | " + " | ".join(map(str, figures)) + " |")
    summary = FOLDER / "README.md"
    _, heading, newer = summary.read_text().partition(NEWER)
    summary.write_text("\n".join([*lines, "", heading + newer]))
