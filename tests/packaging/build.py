"""`make dist`: source archive, pure wheel and SBOM into a folder, the same bytes from the same files."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.packaging import sbom

NO_COMPILER = "/nonexistent"


def build(kind: str, source: Path, out: Path, compiler: str = NO_COMPILER) -> tuple[Path, str]:
    """Build an sdist or a wheel of `source` in `out`; returns the archive and everything that the build printed."""
    out.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta\nprint('built', build_meta.build_{kind}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=os.environ | {"CXX": compiler}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{kind} of {source}: {done.stdout}")
    name = next(line for line in done.stdout.splitlines() if line.startswith("built ")).removeprefix("built ")
    return out / name, done.stdout


def unpack(archive: Path, folder: Path) -> Path:
    """The one folder inside a source archive, unpacked into `folder`."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (inner,) = folder.iterdir()
    return inner


def release(source: Path, out: Path) -> list[Path]:
    """The archives of `source` in `out`, the wheel made from the source archive."""
    archive, _ = build("sdist", source, out)
    with tempfile.TemporaryDirectory() as folder:
        wheel, _ = build("wheel", unpack(archive, Path(folder)), out)
    return [archive, wheel, sbom.write(wheel)]


if __name__ == "__main__":
    for path in release(sbom.ROOT, Path(sys.argv[1]).absolute()):
        print(path)
