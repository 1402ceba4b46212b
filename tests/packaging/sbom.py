"""The parts that `make dist` lists: the wheel and every pinned package, as CycloneDX 1.6, the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
import zipfile
from datetime import datetime, timezone
from email.parser import BytesParser
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
CONSTRAINTS = ("test.txt", "torch.txt", "triton.txt", "ray.txt", "docs.txt")
PIN = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\\n]+?))?(?: \\)?\n"
    r"(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)*)"
)


class Pin(NamedTuple):
    """An entry of a constraints file: a version, where it is installed, and the sha256 of each of its files."""

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


def read_pins() -> list[Pin]:
    """The pins of all constraints files; raises `ValueError` for a file with anything else but comments."""
    found = []
    for file in CONSTRAINTS:
        text = re.sub(r"(?m)^#.*\n", "", (ROOT / "constraints" / file).read_text())
        for pin in PIN.finditer(text):
            hashes = tuple(re.findall("[0-9a-f]{64}", pin["hashes"]))
            found.append(Pin(file, pin["name"], pin["version"], pin["marker"] or "", hashes))
        if left := PIN.sub("", text).strip():
            raise ValueError(f"{file}: {left[:80]!r} is not a pin")
    return found


def requirements(wheel: Path) -> tuple[Any, list[str]]:
    """The metadata of a wheel, and the names of the projects that it always requires."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(name))
    always = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    return metadata, [normalized(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in always]


def component(pin: Pin, required: bool) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": digest} for digest in pin.hashes]
    files = [{"type": "distribution", "url": pin.purl, "hashes": hashes}] if hashes else []
    return {
        "type": "library", "bom-ref": pin.purl, "purl": pin.purl, "name": pin.name, "version": pin.version,
        "scope": "required" if required else "optional", "externalReferences": files,
    }  # fmt: skip


def write(wheel: Path) -> Path:
    """Write the document beside the wheel, one component for each project and version; returns its path."""
    metadata, required = requirements(wheel)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    own = f"pkg:pypi/{normalized(metadata['Name'])}@{metadata['Version']}"
    unique = {pin.purl: pin for pin in reversed(read_pins())}
    components = [component(pin, normalized(pin.name) in required) for _, pin in sorted(unique.items())]
    date = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "1767225600")), timezone.utc)
    described = {
        "type": "library", "bom-ref": own, "purl": own, "name": metadata["Name"], "version": metadata["Version"],
        "licenses": [{"expression": metadata["License-Expression"]}],
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }  # fmt: skip
    needed = [c["bom-ref"] for c in components if c["scope"] == "required"]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        "metadata": {"timestamp": date.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": described},
        "components": components,
        "dependencies": [{"ref": own, "dependsOn": needed}],
    }
    target = wheel.with_suffix(".cdx.json")
    target.write_text(json.dumps(document, indent=1) + "\n")
    return target
