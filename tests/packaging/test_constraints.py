"""The pinned environment: hashes for every file but PyTorch's, one version for each Python, and a matching SBOM."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.packaging import sbom
from tests.packaging.sbom import CONSTRAINTS, ROOT, Pin, normalized, read_pins

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PINS = [pin for name in CONSTRAINTS for pin in read_pins(ROOT / "constraints" / name)]
METADATA = """Metadata-Version: 2.4
Name: rtm-kernels
Version: 1.2.3
License-Expression: Apache-2.0
Requires-Dist: torch>=2.10
Requires-Dist: numpy>=2.0
Requires-Dist: typer>=0.16; extra == "cli"
"""


def applies(pin: Pin, python: str) -> bool:
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    return not pin.marker or Marker(pin.marker).evaluate(environment)


def test_everything_but_torch_has_hashes() -> None:
    assert sorted(path.name for path in (ROOT / "constraints").glob("*.txt")) == sorted(CONSTRAINTS)
    assert {pin.file for pin in PINS} == set(CONSTRAINTS)
    assert {(pin.file, pin.name) for pin in PINS if not pin.hashes} == {("torch.txt", "torch")}
    assert all(len(set(pin.hashes)) == len(pin.hashes) for pin in PINS)


@pytest.mark.parametrize("python", PYTHONS)
def test_one_version_of_each_project_for_each_python(python: str) -> None:
    for files in (("test.txt", "torch.txt", "triton.txt"), ("ray.txt",)):
        names = [normalized(pin.name) for pin in PINS if pin.file in files and applies(pin, python)]
        assert len(names) == len(set(names))
        others = {normalized(pin.name) for pin in PINS if pin.file in files}
        assert others - set(names) <= {"coloredlogs", "exceptiongroup", "humanfriendly", "pytz", "tomli"}


def test_make_installs_nothing_without_its_hash_but_torch() -> None:
    lines = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines() if "constraints/" in line]
    installs = [line for line in lines if "-r constraints/" in line]
    assert len(installs) == len(CONSTRAINTS)
    unlocked = [line for line in installs if "$(LOCKED) -r" not in line]
    assert unlocked == ["@$(PIP) -r constraints/torch.txt"]
    assert "LOCKED := $(PIP) --require-hashes --no-deps" in (ROOT / "Makefile").read_text()


def test_the_pins_satisfy_what_the_project_asks_for() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has the reader of pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in ("cli", "serve", "mcp", "test", "bench", "profile"):
        wanted += project["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        versions = [pin.version for pin in PINS if normalized(pin.name) == normalized(requirement.name)]
        assert versions or requirement.name == "rtm-kernels", requirement
        assert all(requirement.specifier.contains(version) for version in versions), requirement


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "rtm_kernels-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rtm_kernels-1.2.3.dist-info/METADATA", METADATA)
    return path


def test_the_sbom_agrees_with_the_constraints_and_the_wheel(wheel: Path) -> None:
    path = sbom.write(wheel)
    first = path.read_bytes()
    found = json.loads(first)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    own = found["metadata"]["component"]
    assert (own["name"], own["version"], own["purl"]) == ("rtm-kernels", "1.2.3", "pkg:pypi/rtm-kernels@1.2.3")
    assert own["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    listed = {c["purl"]: c for c in found["components"]}
    assert len(listed) == len(found["components"]) and listed.keys() == {pin.purl for pin in PINS}
    for pin in PINS:
        references = listed[pin.purl].get("externalReferences", [])
        assert tuple(h["content"] for r in references for h in r["hashes"]) == pin.hashes
    required = {c["bom-ref"].partition("@")[0] for c in found["components"] if c["scope"] == "required"}
    assert required == {"pkg:pypi/torch", "pkg:pypi/numpy"}
    assert sbom.write(wheel).read_bytes() == first


def test_the_environment_is_the_pinned_one() -> None:
    """Where `make` set this environment up, every package of test.txt is there in its version."""
    if not (ROOT / ".venv" / ".environment").exists() or Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("this Python is not the .venv of `make`")
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    installed = {normalized(name): version for name, version in json.loads(done.stdout).items()}
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    expected = {normalized(p.name): p.version for p in PINS if p.file == "test.txt" and applies(p, python)}
    assert {name: installed.get(name) for name in expected} == expected
