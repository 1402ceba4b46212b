"""The pinned environment: hashes for every file but PyTorch's, and one version for each Python."""

from __future__ import annotations

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.packaging.sbom import CONSTRAINTS, ROOT, Pin, normalized, read_pins

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PINS = read_pins()


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
    for files in (("test.txt", "torch.txt", "triton.txt"), ("ray.txt",), ("docs.txt",)):
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
    for extra in ("serve", "mcp", "test", "bench", "profile", "hub", "onnx"):
        wanted += project["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        versions = [pin.version for pin in PINS if normalized(pin.name) == normalized(requirement.name)]
        assert versions or requirement.name == "rtm-kernels", requirement
        assert all(requirement.specifier.contains(version) for version in versions), requirement
