"""`make gpu` with injected failures: time-outs, kills, kernels that were interpreted, tools that find something.

What its stages measure is run over a simulated device in `tests/benchmarks/test_gpu_dry_run.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_tests, machine, run, sanitize
from benchmarks.cases import Case
from benchmarks.problem import Problem
from benchmarks.providers import Provider
from benchmarks.rows import Row

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "commit", lambda: "abc")


def stage(name: str, code: str, seconds: int = 30, alone: bool = False) -> gpu.Stage:
    return gpu.Stage(name, ("-c", f"import os, sys, time\n{code}", gpu.SECONDS), seconds, lambda: None, alone)


@pytest.fixture
def slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, str]]]:
    """`make gpu` with these stages: its exit status, and the status of every stage."""
    monkeypatch.setattr(gpu, "STATE", tmp_path / "state")
    monkeypatch.setattr(gpu, "LEAST", 0.1)
    monkeypatch.setattr(gpu, "MARGIN", 0)

    def call(*stages: gpu.Stage, arguments: tuple[str, ...] = ()) -> tuple[int, dict[str, str]]:
        monkeypatch.setattr(gpu, "stages", lambda folder: stages)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            code = gpu.main(["--folder", str(tmp_path / "folder"), *arguments])
        finally:
            signal.signal(signal.SIGTERM, handler)
        return code, {name: outcome.status for name, outcome in gpu._load().items()}

    return call


def test_a_call_goes_on_where_the_last_one_stopped_and_what_failed_comes_last(
    slices: Callable[..., tuple[int, dict[str, str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, ready = tmp_path / "ran", tmp_path / "ready"
    note = f"open({str(ran)!r}, 'a').write(name)\n"
    stages = (
        stage("A", f"name = 'A'; {note}print('a figure')"),
        stage("B", f"name = 'B'; {note}sys.exit(0 if os.path.exists({str(ready)!r}) else 1)"),
        stage("C", f"name = 'C'; {note}sys.exit({run.UNFINISHED} if open({str(ran)!r}).read().count('C') < 2 else 0)"),
        stage("D", f"name = 'D'; {note}time.sleep(0 if os.path.exists({str(ready)!r}) else 60)", seconds=1),
        stage("E", f"name = 'E'; {note}", alone=True),
    )
    code, status = slices(*stages)
    assert (code, ran.read_text()) == (1, "ABCD")
    assert status == {"A": "ok", "B": "failed", "C": "unfinished", "D": "timed out"}
    assert "not ok yet: C, B, D; the same command goes on" in capsys.readouterr().out
    ready.touch()
    code, status = slices(*stages)
    assert (code, ran.read_text()) == (0, "ABCDCBD") and set(status.values()) == {"ok"}
    assert slices(*stages)[0] == 0 and ran.read_text() == "ABCDCBD", "nothing is left"
    assert slices(*stages, arguments=("--stage", "E"))[0] == 0 and ran.read_text().endswith("DE")


def test_a_slice_ends_in_time_whatever_its_stages_do(
    slices: Callable[..., tuple[int, dict[str, str]]], tmp_path: Path
) -> None:
    child = "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\ntime.sleep(60)"
    begin = time.monotonic()
    pack = tmp_path / "pack.tgz"
    code, status = slices(stage("A", child), stage("B", ""), arguments=("--limit", "1", "--pack", str(pack)))
    assert time.monotonic() - begin < 20
    assert (code, status) == (1, {"A": "timed out"}) and pack.exists()
    code, status = slices(stage("A", child, seconds=1), stage("B", ""), arguments=("--limit", "20"))
    assert status == {"A": "timed out", "B": "ok"}, "a stage that has not begun comes before one that timed out"


def test_a_call_that_is_terminated_takes_its_stage_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"""
import os, sys
from pathlib import Path
from benchmarks import gpu, machine
machine.commit, gpu.STATE = (lambda: "abc"), Path({str(tmp_path / "state")!r})
long = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
gpu.stages = lambda folder: (gpu.Stage("A", ("-c", long), 60, lambda: None),)
gpu.main(["--folder", {str(tmp_path)!r}])
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=machine.ROOT)
    until = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) != 0
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.05)


INTERPRETED = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import pytest, torch, triton, triton.language as tl
@triton.jit
def one(x_ptr):
    tl.store(x_ptr, 1)
@GPU
def test_kernel():
    one[(1,)](torch.zeros(1))
"""
COMPILED = """
import pytest, sys, time
from pathlib import Path
from triton import knobs
slow = Path(__file__).with_name("slow")
@GPU
def test_kernel():
    knobs.runtime.launch_enter_hook(None)  # as a launch of a compiled kernel does
@GPU
def test_that_hangs_once():
    knobs.runtime.launch_enter_hook(None)
    if not slow.exists():
        slow.touch()
        sys.stdout.flush()
        time.sleep(60)
@GPU
def test_random_configurations():
    raise AssertionError("left to --fuzz")
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own that pytest takes for the checkout."""
    monkeypatch.setenv("PYTHONPATH", str(machine.ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        (INTERPRETED, "interpreted: 1 launches did not run on the GPU"),
        (INTERPRETED.replace("one[", "0 and one["), "no kernel ran as compiled"),
    ],
)
def test_a_file_whose_kernels_did_not_run_on_the_gpu_fails(text: str, ended: str, checkout: Path) -> None:
    (checkout / "test_here.py").write_text(text.replace("GPU", "pytest.mark." + "gpu"))
    found = gpu_tests.run(["test_here.py"], checkout / "logs", 100.0, 1, checkout / "tests.json")["test_here.py"]
    assert found["ended"] == ended and list(found["tests"].values()) == ["passed"]


def test_tests_that_passed_are_not_run_again_after_a_time_out(checkout: Path) -> None:
    (checkout / "test_here.py").write_text(COMPILED.replace("GPU", "pytest.mark." + "gpu"))
    begin, name = time.monotonic(), "test_here.py"

    def tested(limit: float) -> dict[str, object]:
        return gpu_tests.run([name], checkout / "logs", limit, 1, checkout / "tests.json")[name]

    while not (checkout / "slow").exists() and time.monotonic() - begin < 100:
        found = tested(12.0)
    assert found["ended"] == "out of time" and found["tests"] == {f"{name}::test_kernel": "passed"}
    found = tested(100.0)
    assert (found["ended"], found["compiled"], found["interpreted"]) == ("ok", 1, 0)
    assert set(found["tests"]) == {f"{name}::test_kernel", f"{name}::test_that_hangs_once"}  # type: ignore[call-overload]
    assert gpu_tests.earlier(checkout / "tests.json")[name]["ended"] == "ok"


def test_a_figure_is_kept_when_the_run_dies_in_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider in which the run was cut comes last, and is given up after the second time."""
    tried: list[str] = []

    def measure(problem: Problem, group: list[Provider], seconds: float) -> list[Row]:
        tried.append(group[-1].name)
        if group[-1].name == "rtm_persistent_graph":
            raise KeyboardInterrupt
        facts = {"commit": "abc", "device": "cpu", "machine": "m", "versions": {"torch": "", "triton": ""},
                 "threads": 1, "clock_mhz": None, "fraction_of_limit": 0.0}  # fmt: skip
        return [Row(problem.case.name, p.name, "measured", "", p.name, 1.0, (1.0, 1.0), 1.0, (1.0, 1.0), facts=facts)
                for p in group]  # fmt: skip

    able = tuple(replace(p, unable=lambda problem: None) for p in run.PROVIDERS)
    monkeypatch.setattr(run, "PROVIDERS", able)
    monkeypatch.setattr(run, "cases", lambda device: [(Case("small", "act_step", 1, "float32", "cuda"), None)])
    monkeypatch.setattr(run, "make", lambda case: Problem(case, None, []))  # type: ignore[arg-type]
    monkeypatch.setattr(run, "_measure", measure)
    arguments = ["--results", str(tmp_path / "r.json"), "--folder", str(tmp_path), "--who"]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.main([*arguments, "own"])
    own = [group[0].name for group in run.groups("own")]
    assert own[:2] == ["rtm_triton_graph", "rtm_persistent_graph"] and own[-1] == "rtm_reference"
    assert tried == [*own[:2], *own[2:], own[1]], "the headline is kept, the others go on"
    assert run.main([*arguments, "own"]) == 0
    rows = {row["impl"]: row for row in json.loads((tmp_path / "r.json").read_text())}
    assert rows["rtm_persistent_graph"]["reason"] == "the run was cut off in it twice"
    assert sum(row["status"] == "measured" for row in rows.values()) == len(own) - 1
    tried.clear()
    assert run.main([*arguments, "peers"]) == 0 and "official_autotuned_graph" in tried and not set(own) & set(tried)


TOOL = """#!/bin/sh
echo "$*" >> "$(dirname "$0")/calls"
case "$*" in
  *slow*) test -e "$(dirname "$0")/second" || sleep 60;;
  *racecheck*wrong*) exit 9;;
esac
"""


def test_sanitizers_go_on_with_what_was_not_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sanitize, "self_test", list)
    monkeypatch.setattr(machine, "facts", lambda device: {"commit": "abc"})
    monkeypatch.setattr(sanitize, "cases", lambda: ["good", "slow"])
    arguments = ["--folder", str(tmp_path), "--limit"]
    assert sanitize.main([*arguments, "2"]) == run.UNFINISHED
    (tmp_path / "second").touch()
    before = len((tmp_path / "calls").read_text().splitlines())
    assert sanitize.main([*arguments, "100"]) == 0
    calls = (tmp_path / "calls").read_text().splitlines()[before:]
    assert len(calls) == len(sanitize.TOOLS) and all("slow" in call for call in calls)
    monkeypatch.setattr(sanitize, "cases", lambda: ["wrong"])
    assert sanitize.main([*arguments, "100"]) == 1
    clean = json.loads((tmp_path / "sanitizer.json").read_text())["clean"]
    assert [name for name, ok in clean.items() if not ok] == ["racecheck wrong"]


def test_sanitizers_follow_16_bit_kernels_first() -> None:
    found = sanitize.cases()
    assert len(found) == 8 and ["bfloat16" in name for name in found] == [True] * 4 + [False] * 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_gpu_every_stage_says_so(slices: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = gpu.stages(tmp_path)
    assert [s.name for s in real][:3] == ["headlines", "tests", "peers"]
    assert all(s.seconds <= 240 for s in real) and {s.name for s in real if s.alone} == {"fuzz", "tune", "energy"}
    assert {gpu.run(s, 100.0).status for s in real} == {"not run"}
