"""`make test-install`: the wheels of `make dist` installed as users do, outside the checkout. `--write` keeps the rows.

`--torch 3.12:2.11.0 ...` adds rows for other Pythons and PyTorch, which pip fetches: gigabytes each, one by one.

The environments see PyTorch and what the package requires by links into the one that runs this, and nothing else.
As root, what an ordinary user does is done by the user `nobody`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tests.packaging.sbom import ROOT

SMOKE = ROOT / "tests/packaging/smoke.py"
ARM64 = ROOT / ".arm64"
"""Where `arm64.sh` put a Python for arm64, and perhaps `packages` for it."""
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
NOBODY = 65534
HEAVY = "import sys, rtm_kernels; print(sorted({'torch', 'numpy', 'triton', 'safetensors'} & set(sys.modules)))"


def run(*command: str | Path, user: int | None = None, code: int = 0, **environment: str) -> str:
    """What a command printed, run outside the checkout, with no compiler in its PATH and no HOME."""
    done = subprocess.run(
        [str(part) for part in command], cwd="/", env={"LANG": "C.UTF-8", **environment}, text=True,
        capture_output=True, user=user, group=user, extra_groups=None if user is None else [],
    )  # fmt: skip
    assert done.returncode == code, f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def required(name: str) -> set[str]:
    """The installed distributions that `name` requires here."""
    found: set[str] = set()
    left = [(name, frozenset[str]())]
    for name, wanted in left:
        for requirement in map(Requirement, metadata.requires(name) or ()):
            marker = requirement.marker
            needed = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted))
            if needed and requirement.name not in found:
                found.add(requirement.name)
                left.append((requirement.name, frozenset(requirement.extras)))
    return found


def linked(names: Iterable[str], folder: Path) -> Path:
    """A folder of links to the files of installed distributions."""
    folder.mkdir(parents=True)
    for distribution in map(metadata.distribution, names):
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


def interpreter(version: str, user: int | None = None) -> str | None:
    """A Python of this version that the user may start, or None."""
    beside = sorted(
        map(str, Path(sys.base_prefix).parent.glob(f"*{version}*/bin/python{version}"))
    )  # as pyenv lays them
    for found in (*beside, f"/usr/bin/python{version}", shutil.which(f"python{version}")):
        code = f"import sys, venv; sys.exit(sys.version_info[:2] != {tuple(map(int, version.split('.')))})"
        try:
            if found and not subprocess.run([found, "-c", code], user=user, capture_output=True).returncode:
                return found
        except OSError:
            continue
    return None


@dataclass
class Place:
    """A fresh environment, and the user who works in it."""

    folder: Path
    user: int | None

    def python(self, *arguments: str | Path, **environment: str) -> str:
        return run(self.folder / "bin/python", *arguments, user=self.user, PATH=f"{self.folder}/bin", **environment)

    def rtm(self, *arguments: str, code: int = 0) -> str:
        return run(self.folder / "bin/rtm", *arguments, user=self.user, code=code, PATH=f"{self.folder}/bin")

    def pip(self, *arguments: str) -> str:
        return self.python("-m", "pip", "--disable-pip-version-check", "--no-cache-dir", *arguments)

    def files(self) -> set[str]:
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))
        return {path for path in found if "__pycache__" not in path}

    def smoke(self, script: Path) -> dict[str, Any]:
        return dict(json.loads(self.python("-B", script)))


def environment(folder: Path, python: str, packages: Path | None, user: int | None) -> Place:
    """A fresh environment that sees the linked packages."""
    run(python, "-m", "venv", "--without-pip", folder, user=user)
    if packages is not None:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "linked.pth").write_text(f"{packages}\n")
    return Place(folder, user)


def check_ordinary(place: Place, wheel: Path, script: Path) -> dict[str, Any]:
    before = place.files()
    place.pip("install", "--no-index", str(wheel))
    assert place.python("-c", HEAVY).strip() == "[]"
    row = place.smoke(script)
    assert row["executor"] == "symmetric", row
    place.pip("uninstall", "--yes", "rtm-kernels")
    left = place.files() ^ before
    assert not left, f"pip uninstall left {sorted(left)}"
    return row


def check_read_only(place: Place, wheel: Path, script: Path) -> dict[str, Any]:
    before = place.files()
    place.pip("install", "--no-index", str(wheel))
    folders = [path for path in (place.folder, *place.folder.rglob("*")) if path.is_dir() and not path.is_symlink()]
    for path in folders:
        path.chmod(0o555)
    backends = json.loads(place.rtm("info", "--json"))["backends"]
    assert {b["name"] for b in backends if b["available"]} >= {"native", "reference"}, backends
    text = place.rtm("solve")
    assert "verified     100 (100.0 %)" in text and "symmetric on cpu" in text, text
    row = place.smoke(script)
    for path in folders:
        path.chmod(0o755)
    place.pip("uninstall", "--yes", "rtm-kernels")
    assert place.files() == before
    return row


def check_library_alone(python: str, wheel: Path, folder: Path, script: Path) -> dict[str, Any]:
    """Another Python, without PyTorch: pip takes the wheel, and the library computes."""
    place = environment(folder, python, None, None)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "-q", "--no-deps", "--no-index")
    run(*pip, wheel, PATH=os.environ["PATH"])
    return place.smoke(script)


def check_with_torch(python: str, torch: str, wheel: Path, folder: Path, script: Path) -> dict[str, Any]:
    """Another Python and PyTorch, with what pip fetches for them: the smoke test, and all examples by `rtm solve`."""
    place = environment(folder, python, None, None)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "-q", "--no-cache-dir")
    try:
        subprocess.run([*map(str, pip), f"torch=={torch}", str(wheel)], check=True)
        text = place.rtm("solve")
        assert "verified     100 (100.0 %)" in text and "symmetric on cpu" in text, text
        return place.smoke(script)
    except subprocess.CalledProcessError as error:
        raise AssertionError(f"pip install torch=={torch}: exit status {error.returncode}") from None
    finally:
        shutil.rmtree(folder)


def check_emulated(wheel: Path, folder: Path, emulator: str) -> dict[str, Any]:
    """The wheel for arm64, in an emulator."""
    target = ("--platform", "manylinux_2_28_aarch64", "--only-binary", ":all:", "--python-version", "3.11")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", *target, "--target", folder, wheel)
    run(*pip, PATH=os.environ["PATH"])
    python, path = next(ARM64.glob("usr/bin/python3.*")), f"{folder}:{ARM64 / 'packages'}"
    return dict(json.loads(run(emulator, "-L", ARM64, python, "-B", SMOKE, PYTHONPATH=path).splitlines()[-1]))


class Table:
    """What was checked, printed as it comes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, title: str, missing: str | None, check: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """A row of what `check` found, or of what is missing for it."""
        result, found = "passed" if missing is None else f"not run: {missing}", {}
        try:
            found = check(*arguments) if missing is None else {}
        except (AssertionError, OSError) as error:
            result = "failed"
            print(error, file=sys.stderr)
        self.rows.append({"install": title, "result": result, **found})
        print(f"{result:8} {title}  {' '.join(f'{k}={v}' for k, v in found.items())}", flush=True)

    def failures(self) -> int:
        """Rows that failed, and one more where they computed different numbers."""
        sums = {row["sum"] for row in self.rows if "sum" in row}
        return sum(row["result"] == "failed" for row in self.rows) + (len(sums) != 1)


def fill(table: Table, dist: Path, temporary: Path, pairs: list[list[str]]) -> None:
    """All rows that this machine can have, and those of `pairs` of a Python and a PyTorch."""
    user = NOBODY if os.geteuid() == 0 else None
    version, machine = f"{sys.version_info[0]}.{sys.version_info[1]}", os.uname().machine
    wheels = {name: next(dist.glob(f"*{name}*.whl"), None) for name in (machine, "aarch64")}
    base = temporary / "für Ωμέγα, with spaces"
    base.mkdir()
    packages = linked({*required("rtm-kernels"), "pip"}, base / "packages")
    script, wheel = (Path(shutil.copy(str(file), base)) for file in (SMOKE, wheels[machine]))  # where all may read
    if user is not None:
        for path in (temporary, base):
            os.chown(path, user, user)

    def fresh(check: Callable[[Place, Path, Path], dict[str, Any]]) -> dict[str, Any]:
        place = environment(base / check.__name__, str(interpreter(version, user)), packages, user)
        return check(place, wheel, script)

    missing = None if interpreter(version, user) else f"another user may start no Python {version} here"
    condition = "ordinary user, no compiler, no HOME"
    table.add(condition, missing, fresh, check_ordinary)
    table.add(f"read-only, {condition}", missing, fresh, check_read_only)
    for other in PYTHONS:
        if other != version:
            found = interpreter(other)
            missing = None if found else "no such Python here"
            parts = found, wheel, base / other, script
            table.add(f"library alone, Python {other}", missing, check_library_alone, *parts)
    for other, torch in pairs:
        found = interpreter(other)
        missing = None if found else "no such Python here"
        parts = found, torch, wheel, base / f"{other} {torch}", script
        table.add(f"Python {other}, PyTorch {torch}", missing, check_with_torch, *parts)
    emulator = next(filter(None, map(shutil.which, ("qemu-aarch64-static", "qemu-aarch64"))), None)
    here = emulator and wheels["aarch64"] and ARM64.is_dir()
    missing = None if here else "needs qemu-user-static, aarch64-linux-gnu-g++ and tests/packaging/arm64.sh"
    table.add("arm64, emulated", missing, check_emulated, wheels["aarch64"], base / "arm64", emulator)


def main(dist: Path, write: bool, pairs: list[list[str]]) -> int:
    table = Table()
    with tempfile.TemporaryDirectory() as temporary:
        fill(table, dist, Path(temporary), pairs)
    passed, failed = sum(row["result"] == "passed" for row in table.rows), table.failures()
    print(f"\n{passed} passed, {failed} failed")
    if write:
        path = ROOT / "profiles/install/smoke.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(table.rows, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), "--write" in sys.argv, [a.split(":") for a in sys.argv if ":" in a]))
