"""What was found about one provider in one case, and files of such rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rtm_kernels.errors import InputError


@dataclass
class Row:
    """One provider in one case. `status` is measured, refused (wrong answer) or not run."""

    case: str
    impl: str
    status: str
    reason: str = ""
    baseline: str = ""
    seconds: float | None = None
    seconds_interval: tuple[float, float] | None = None
    ratio: float | None = None
    """Time of the baseline over the time of this row, median over interleaved rounds; above 1 is faster."""
    ratio_interval: tuple[float, float] | None = None
    samples: list[float] = field(default_factory=list, repr=False)
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the samples, flat."""
        values = asdict(self)
        values.pop("samples")
        return {**values.pop("facts"), **values}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Row:
        """The row that `as_dict` gave; the samples are kept if they were added to it."""
        own = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**own, facts={key: value for key, value in values.items() if key not in own})


def read(path: Path) -> list[Row]:
    """The rows in a file that `write` wrote. Errors: `InputError`."""
    try:
        return [Row.of(values) for values in json.loads(path.read_text())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of benchmark rows ({type(error).__name__}: {error})") from error


def write(path: Path, found: Iterable[Row]) -> None:
    """Write rows with their samples; the file is replaced as a whole."""
    replace(path, json.dumps([row.as_dict() | {"samples": row.samples} for row in found]))


def replace(path: Path, text: str) -> None:
    """Write `text` to `path` in one step, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(path.suffix + ".new")
    scratch.write_text(text)
    scratch.replace(path)


def summary(found: Iterable[Row]) -> list[dict[str, Any]]:
    """One entry per measured quantity: case, impl, metric, value, unit, baseline, ratio and its interval, and where."""
    entries = []
    for row in found:
        if row.status != "measured":
            continue
        facts = row.as_dict()
        common = {
            "case": row.case, "impl": row.impl, "baseline": row.baseline, "commit": facts["commit"],
            "torch": facts["versions"]["torch"], "triton": facts["versions"]["triton"],
            "gpu": facts["machine"] if facts["device"] == "cuda" else None, "machine": facts["machine"],
            "threads": facts["threads"], "clock_mhz": facts["clock_mhz"],
        }  # fmt: skip
        low, high = facts["ratio_interval"]
        ratio = {"ratio": row.ratio, "ratio_low": low, "ratio_high": high}
        limit = {"fraction_of_limit": facts["fraction_of_limit"]}
        entries.append(common | {"metric": "latency", "value": row.seconds, "unit": "s"} | ratio | limit)
        for metric, unit in (("launches", ""), ("peak_memory_bytes", "B"), ("joules", "J")):
            if facts.get(metric) is not None:
                measured = {"metric": metric, "value": facts[metric], "unit": unit}
                entries.append(common | measured | dict.fromkeys((*ratio, *limit)))
    return entries
