"""The parts that `make dist` lists: the wheel and every pinned package, as CycloneDX 1.6, the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from email.parser import BytesParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
CONSTRAINTS = ("test.txt", "torch.txt", "triton.txt", "ray.txt")
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\]+?))?(?: \\)?")
HASH = re.compile(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?")


@dataclass(frozen=True)
class Pin:
    """A line of a constraints file: a version, where it is installed, and the sha256 of each of its files."""

    file: str
    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{normalized(self.name)}@{self.version}"


def normalized(name: str) -> str:
    """A project name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path: Path) -> Iterator[Pin]:
    """The pins of a constraints file; raises `ValueError` for a line that is neither pin, hash nor comment."""
    pin, hashes = None, []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if found := HASH.fullmatch(line):
            hashes.append(found[1])
            continue
        if pin is not None:
            yield Pin(path.name, pin["name"], pin["version"], pin["marker"] or "", tuple(hashes))
        pin, hashes = PIN.fullmatch(line), []
        if pin is None and line and not line.startswith("#"):
            raise ValueError(f"{path.name}:{number}: {line!r} is not a pin")
    if pin is not None:
        yield Pin(path.name, pin["name"], pin["version"], pin["marker"] or "", tuple(hashes))


def requirements(wheel: Path) -> tuple[Any, list[str]]:
    """The metadata of a wheel, and the names of the projects that it always requires."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(name))
    always = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    return metadata, [normalized(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in always]  # type: ignore[index]


def component(pin: Pin, required: bool) -> dict[str, Any]:
    properties = {"constraints": pin.file, **({"marker": pin.marker} if pin.marker else {})}
    entry: dict[str, Any] = {
        "type": "library",
        "bom-ref": pin.purl,
        "name": pin.name,
        "version": pin.version,
        "scope": "required" if required else "optional",
        "purl": pin.purl,
        "properties": [{"name": f"rtm:{name}", "value": value} for name, value in properties.items()],
    }
    if pin.hashes:
        hashes = [{"alg": "SHA-256", "content": digest} for digest in pin.hashes]
        entry["externalReferences"] = [{"type": "distribution", "url": pin.purl, "hashes": hashes}]
    return entry


def document(wheel: Path, pins: list[Pin]) -> dict[str, Any]:
    """The document; one component for each project and version, whatever files pin it."""
    metadata, required = requirements(wheel)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    own = f"pkg:pypi/{normalized(metadata['Name'])}@{metadata['Version']}"
    unique = {pin.purl: pin for pin in reversed(pins)}
    components = [component(pin, normalized(pin.name) in required) for _, pin in sorted(unique.items())]
    date = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "1767225600")), timezone.utc)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        "metadata": {
            "timestamp": date.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": metadata["Name"],
                "version": metadata["Version"],
                "purl": own,
                "licenses": [{"expression": metadata["License-Expression"]}],
                "hashes": [{"alg": "SHA-256", "content": digest}],
            },
        },
        "components": components,
        "dependencies": [
            {"ref": own, "dependsOn": [c["bom-ref"] for c in components if c["scope"] == "required"]},
            *({"ref": c["bom-ref"]} for c in components),
        ],
    }


def write(wheel: Path) -> Path:
    """Write the document beside the wheel; returns its path."""
    pins = [pin for name in CONSTRAINTS for pin in read_pins(ROOT / "constraints" / name)]
    target = wheel.with_suffix(".cdx.json")
    target.write_text(json.dumps(document(wheel, pins), indent=1) + "\n")
    return target
