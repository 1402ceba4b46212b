"""Source and binary distributions hold what they should, with the C++ library where a compiler is, and say so where
none is. `make test-install` installs them as users do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rtm_kernels
from tests.packaging import sbom
from tests.packaging.build import NO_COMPILER, TAGS, build, compiler_for, native_wheel, release, unpack
from tests.packaging.sbom import ROOT, requirements

FOLDERS = ("rtm_kernels", "csrc", "constraints", "tests", "benchmarks")
FILES = (
    "pyproject.toml", "setup.py", "MANIFEST.in", "Makefile", "LICENSE",
    "CHANGELOG.md", "DESIGN.md", "SECURITY.md", "README.md",
)  # fmt: skip
GENERATED = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
ASSET = "rtm_kernels/assets/probe/nested/model.safetensors"
STRAYS = (
    "notes.txt", ".env", "runs/log.json", "rtm_kernels/_cpu.so", "rtm_kernels/__pycache__/x.pyc", "csrc/cpu/pack.o",
)  # fmt: skip


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as checked out, with one asset more."""
    copy = tmp_path_factory.mktemp("source")
    for folder in filter(lambda name: (ROOT / name).is_dir(), FOLDERS):
        shutil.copytree(ROOT / folder, copy / folder, ignore=GENERATED)
    for file in FILES:
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, copy)
    (copy / ASSET).parent.mkdir(parents=True)
    (copy / ASSET).write_text("weights")
    return copy


@pytest.fixture(scope="module")
def archive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, built from a checkout that is littered with files which do not belong in it."""
    littered = tmp_path_factory.mktemp("littered") / "project"
    shutil.copytree(source, littered)
    for stray in STRAYS:
        (littered / stray).parent.mkdir(parents=True, exist_ok=True)
        (littered / stray).write_text("stray")
    return build("sdist", littered, tmp_path_factory.mktemp("sdist"))[0]


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(archive, tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The wheel that the sdist gives on a machine without a compiler, and what the build printed."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_holds_the_project_and_nothing_else(source: Path, unpacked: Path) -> None:
    made = {"PKG-INFO", "setup.cfg"}
    found = {f for f in files_below(unpacked) if ".egg-info/" not in f and not f.startswith("build/")}
    assert found - made == files_below(source)


def test_the_wheel_holds_the_package_and_nothing_else(source: Path, wheel: tuple[Path, str]) -> None:
    archive, _ = wheel
    names = set(zipfile.ZipFile(archive).namelist())
    found = {n for n in names if ".dist-info/" not in n}
    assert found == {f for f in files_below(source) if f.startswith("rtm_kernels/")}
    assert ASSET in found
    assert {n.split("/", 1)[1] for n in names - found} >= {"METADATA", "entry_points.txt", "licenses/LICENSE"}


def test_without_a_compiler_the_wheel_is_pure_and_says_so(wheel: tuple[Path, str]) -> None:
    archive, printed = wheel
    metadata, required = requirements(archive)
    assert required == ["torch", "numpy", "safetensors", "typer", "rich", "pydantic"]
    assert {"cli", "serve", "mcp", "test"} <= set(metadata.get_all("Provides-Extra"))
    assert archive.name == f"rtm_kernels-{rtm_kernels.__version__}-py3-none-any.whl"
    notes = [line for line in printed.splitlines() if line.startswith("note:")]
    assert notes == [f"note: rtm_kernels._cpu is not built: no C++ compiler ({NO_COMPILER} was not found)"]


def test_two_builds_have_the_same_bytes(source: Path, archive: Path, wheel: tuple[Path, str], tmp_path: Path) -> None:
    """From another folder, with other dates and modes, under another mask, at another time."""
    again = tmp_path / "again"
    shutil.copytree(source, again)
    for number, path in enumerate(sorted(again.rglob("*"))):
        os.utime(path, (1e9 + number, 1e9 + number))
        path.chmod(0o700 if path.is_dir() else 0o600)
    before = os.umask(0o077)
    try:
        built = release(again, tmp_path / "out", machines=())
    finally:
        os.umask(before)
    assert [path.name for path in built] == [archive.name, wheel[0].name, f"{wheel[0].stem}.cdx.json"]
    assert built[0].read_bytes() == archive.read_bytes()
    assert built[1].read_bytes() == wheel[0].read_bytes()
    check_sbom(built[1], built[2])


def check_sbom(wheel: Path, path: Path) -> None:
    """The list of parts agrees with the wheel and the constraints, and is the same when it is written again."""
    first = path.read_bytes()
    found = json.loads(first)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    own, version = found["metadata"]["component"], rtm_kernels.__version__
    assert (own["name"], own["purl"]) == ("rtm-kernels", f"pkg:pypi/rtm-kernels@{version}")
    assert own["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    pins = sbom.read_pins()
    listed = {c["purl"]: c for c in found["components"]}
    assert len(listed) == len(found["components"]) and listed.keys() == {pin.purl for pin in pins}
    for pin in pins:
        assert tuple(h["content"] for r in listed[pin.purl]["externalReferences"] for h in r["hashes"]) == pin.hashes
    required = {c["name"] for c in found["components"] if c["scope"] == "required"}
    assert (
        required == {"torch", "numpy", "safetensors", "typer", "rich", "pydantic"}
        and sbom.write(wheel).read_bytes() == first
    )


def test_the_wheel_computes_and_has_rtm(wheel: tuple[Path, str], tmp_path: Path) -> None:
    zipfile.ZipFile(wheel[0]).extractall(tmp_path)
    assert "rtm = rtm_kernels.cli:main" in next(tmp_path.glob("*.dist-info/entry_points.txt")).read_text()
    code = (
        "import sys, torch, rtm_kernels\n"
        "print(rtm_kernels.__file__)\n"
        "print(rtm_kernels.FusedTRMBlock(hidden_size=16, seq_len=5)(torch.ones(2, 5, 16)).shape)\n"
        "sys.argv[1:] = ['--version']; from rtm_kernels.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    package = str(tmp_path / "rtm_kernels" / "__init__.py")
    assert done.stdout.splitlines() == [package, "torch.Size([2, 5, 16])", f"rtm_kernels {rtm_kernels.__version__}"]
    assert done.returncode == 0, done.stderr


def test_an_install_with_a_compiler_that_fails_has_no_library_and_says_so(unpacked: Path, tmp_path: Path) -> None:
    archive, printed = build("wheel", unpacked, tmp_path / "out", "false")
    assert "note: rtm_kernels._cpu is not built: the build failed: false: exit status 1" in printed
    assert not [n for n in zipfile.ZipFile(archive).namelist() if n.endswith(".so")]


@pytest.mark.slow
def test_wheels_with_the_library_have_the_same_bytes_twice_and_run_on_old_systems(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip builds in an environment of setuptools alone, which has no PyTorch."""
    pytest.importorskip("auditwheel", reason="reads what a wheel asks of a system")
    machines = [machine for machine in TAGS if compiler_for(machine)]
    if not machines:
        pytest.skip("needs g++")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/torch.py").write_text("raise ImportError('not in this environment')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
    again = tmp_path / "elsewhere"
    shutil.copytree(unpacked, again)
    for machine in machines:
        first, second = (native_wheel(f, tmp_path / f"{f.name} out", machine) for f in (unpacked, again))
        assert first is not None and second is not None and first.read_bytes() == second.read_bytes()
        assert first.name == f"rtm_kernels-{rtm_kernels.__version__}-py3-none-manylinux_2_28_{machine}.whl"
        assert "rtm_kernels/_cpu.so" in zipfile.ZipFile(first).namelist() and first.stat().st_size < 6 * 2**20
