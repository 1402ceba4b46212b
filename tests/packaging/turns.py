"""`python -m tests.packaging.turns dist`: seconds of `rtm solve` from the wheel, the checkout, and with no library.

Each ten times in turns on one thread; the medians, and their ratio to the checkout's. For a quiet machine.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from statistics import median

from tests.packaging.sbom import ROOT

CODE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from rtm_kernels.cli import main; main()"
TURNS = 10


def seconds(package: Path) -> float:
    """Seconds that `rtm solve` needs for the 100 examples with the package in a folder, as it prints them."""
    command = (sys.executable, "-c", CODE, package, "solve")
    done = subprocess.run(
        command, cwd="/", env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    return float(re.findall(r"^time +([\d.]+) s", done.stdout, re.MULTILINE)[0])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        wheel = next(Path(sys.argv[1]).glob(f"*{os.uname().machine}.whl"))
        places = {"checkout": ROOT, "wheel": Path(folder, "wheel"), "no library": Path(folder, "pure")}
        for name in ("wheel", "no library"):
            zipfile.ZipFile(wheel).extractall(places[name])
        next((places["no library"] / "rtm_kernels").glob("_cpu.*")).unlink()
        found = {name: [0.0] * TURNS for name in places}
        for turn in range(TURNS):
            for name, package in places.items():
                found[name][turn] = seconds(package)
    for name, each in found.items():
        print(f"{name:10} {median(each):7.2f} s  {median(each) / median(found['checkout']):6.3f} of the checkout's")
