"""Rows of results on disk: the facts of a run, and the summary that documents cite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rtm_kernels.errors import InputError


@dataclass(frozen=True)
class Result:
    """One measured provider of one case: its facts, and its samples in seconds per call."""

    facts: Mapping[str, Any]
    samples: list[float] = field(repr=False)

    @property
    def key(self) -> tuple[str, str]:
        """Case and provider."""
        return self.facts["case"], self.facts["impl"]


METRICS = ("latency", "launches", "peak_memory_bytes", "joules")
"""What `summary` writes; the other metrics of a file of this kind come from other stages."""


def read(path: Path) -> list[Result]:
    """The results in a file that `pytest --benchmark-json` or `write` wrote. Errors: `InputError`."""
    try:
        found = json.loads(path.read_text())["benchmarks"]
        results = [Result(b["extra_info"], list(b["stats"]["data"])) for b in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of benchmark results ({type(error).__name__}: {error})") from error
    return [r for r in results if r.facts.get("status") == "measured"]


def write(path: Path, results: Iterable[Result]) -> None:
    """Write results so that `read` finds them; the file is replaced as a whole."""
    found = [{"extra_info": dict(r.facts), "stats": {"data": r.samples}} for r in results]
    replace(path, json.dumps({"benchmarks": found}))


def replace(path: Path, text: str) -> None:
    """Write `text` to `path` in one step, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(path.suffix + ".new")
    scratch.write_text(text)
    scratch.replace(path)


def summary(results: Iterable[Result]) -> list[dict[str, Any]]:
    """One row per measured quantity: case, impl, metric, value, unit, baseline, ratio and its interval, and where."""
    rows = []
    for result in results:
        facts = result.facts
        common = {
            "case": facts["case"], "impl": facts["impl"], "baseline": facts["baseline"], "commit": facts["commit"],
            "torch": facts["versions"]["torch"], "triton": facts["versions"]["triton"],
            "gpu": facts["machine"] if facts["device"] == "cuda" else None, "machine": facts["machine"],
            "threads": facts["threads"], "clock_mhz": facts["clock_mhz"],
        }  # fmt: skip
        rows.append(common | {
            "metric": "latency", "value": facts["seconds"], "unit": "s", "ratio": facts["ratio"],
            "ratio_low": facts["ratio_interval"][0], "ratio_high": facts["ratio_interval"][1],
            "fraction_of_limit": facts["fraction_of_limit"],
        })  # fmt: skip
        for metric, unit in (("launches", ""), ("peak_memory_bytes", "B"), ("joules", "J")):
            if facts.get(metric) is not None:
                rows.append(common | {"metric": metric, "value": facts[metric], "unit": unit, "ratio": None,
                                      "ratio_low": None, "ratio_high": None, "fraction_of_limit": None})  # fmt: skip
    return rows
