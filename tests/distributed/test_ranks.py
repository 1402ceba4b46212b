"""Two ranks under torchrun print the table of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rtm_kernels.distributed.ranks import rank_and_world
from rtm_kernels.errors import InputError

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
RTM = ("-m", "rtm_kernels.cli.main")
TIMES = {"seconds", "puzzles_per_second", "speed_ratio", "speed_ratios"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=300)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return value


def test_eval_prints_one_table_and_the_same(model_folder: str, csv_file: Path) -> None:
    command = ("eval", str(csv_file), "--model", model_folder, "--json", "--halt", "q=0.5", "--rollouts", "3")
    one, two = run(*RTM, *command), run(*TORCHRUN, *RTM, *command)
    assert one.returncode == two.returncode == 0, two.stderr
    (line,) = two.stdout.splitlines()
    alone, together = timeless(json.loads(one.stdout)), timeless(json.loads(line))
    assert alone == together and alone["n"] == 40
    assert len(alone["depth_histogram"]) > 1


def test_what_torchrun_says() -> None:
    assert rank_and_world({}) == (0, 1) and rank_and_world({"RANK": "1", "WORLD_SIZE": "2"}) == (1, 2)
    for wrong in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1"}, {"RANK": "x"}, {"WORLD_SIZE": ""}):
        with pytest.raises(InputError, match="RANK"):
            rank_and_world(wrong)
