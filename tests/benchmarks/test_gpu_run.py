"""The run on a GPU machine: what it can be held to without one. No stage passes by being skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_tests, machine, profile, sanitize
from benchmarks.harness import Row


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu, "STATE", tmp_path / "state")
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def stage(*command: str, seconds: int = 60, reason: str | None = None, name: str = "one") -> gpu.Stage:
    return gpu.Stage(name, command, seconds, lambda: reason)


@pytest.mark.parametrize(
    ("command", "seconds", "reason", "status"),
    [
        (("-c", "print('fine')"), 60, None, "ok"),
        (("-c", "raise SystemExit(3)"), 60, None, "failed"),
        (("-c", "import time; time.sleep(60)"), 1, None, "timed out"),
        (("-c", "pass"), 60, "a tool is missing", "not run"),
    ],
)
def test_a_stage_ends_as_it_ended(command: tuple[str, ...], seconds: int, reason: str | None, status: str) -> None:
    outcome = gpu.run(stage(*command, seconds=seconds, reason=reason), left=100.0)
    assert outcome.status == status
    assert reason is None or outcome.detail == reason
    assert gpu.run(stage("-c", "pass"), left=1.0).detail == "no time is left"


def test_only_ok_everywhere_is_a_pass_and_what_succeeded_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    good = stage("-c", "print('done')", name="good")
    monkeypatch.setattr(gpu, "stages", lambda folder: (good, stage("-c", "pass", name="bad", reason="no tool")))
    assert gpu.main([]) == 1
    assert "not run" in capsys.readouterr().out
    assert gpu.main(["--stage", "good"]) == 0
    capsys.readouterr()
    assert gpu.main([]) == 1
    assert "good ..." not in capsys.readouterr().out
    monkeypatch.setattr(machine, "commit", lambda: "def")
    gpu.main([])
    assert "good ..." in capsys.readouterr().out
    left = state / "left.json"
    for arguments, kept in (["--stage", "good"], True), (["--fresh"], False):
        left.write_text("")
        monkeypatch.setattr(gpu, "stages", lambda folder: (replace(good, partial=left),))
        assert gpu.main(arguments) == 0 and left.exists() == kept
    assert {o["stage"] for o in json.loads((state / "stages.json").read_text())} == {"good", "bad"}
    with pytest.raises(SystemExit):
        gpu.main(["--stage", "none"])


def test_every_stage_names_a_module_that_exists() -> None:
    found = gpu.stages(Path("folder"))
    order = ["build", "tests", "choose", "bench", "train", "loops", "profile", "sanitize", "tune", "energy"]
    assert [s.name for s in found] == order
    assert sum(s.seconds for s in found) <= gpu.LIMIT < 600
    for one in found:
        module = one.command[1] if one.command[0] == "-m" else None
        path = machine.ROOT / ((module.replace(".", "/") + ".py") if module else one.command[0])
        assert module == "pytest" or path.is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_stage_says_so() -> None:
    assert all(s.why_not() == "PyTorch finds no CUDA device here" for s in gpu.stages(Path("folder")))


def test_the_sanitizer_must_find_what_is_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a sanitizer that finds nothing the self-test fails, and so does the stage."""
    done = sanitize.subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(sanitize.subprocess, "run", lambda *args, **kwargs: done)
    assert sanitize.self_test() == [f"{tool} does not find the planted defect" for tool in ("memcheck", "racecheck")]
    assert sanitize.main([]) == 1


def test_the_profile_of_a_step_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    assert profile.main(["small", "--repeats", "1", "--impl", "rtm_reference", "--folder", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("act_step_*.json")
    found = json.loads(path.read_text())["rows"]
    assert sum(row["share"] for row in found) == pytest.approx(1.0)
    total = sum(row["microseconds"] for row in found) / 1e6
    assert 0 < total <= 2 * (time.monotonic() - begin)
    assert any("mm" in row["op"] for row in found)
    with pytest.raises(SystemExit):
        profile.main(["nothing"])


def test_rows_say_what_could_not_be_read() -> None:
    row = Row("case", "impl", "measured", facts={"joules": None})
    assert row.as_dict()["joules"] is None and "samples" not in row.as_dict()


MODULES = ("build", "choose", "energy", "gpu", "gpu_tests", "loops", "profile", "run", "sanitize", "tune")
BARE = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
absent = {"typer", "rich", "safetensors", "hypothesis", "matplotlib", "nvtx", "xdist", "pytest_benchmark", "execnet"}
PathFinder.find_spec = classmethod(lambda cls, name, path=None, target=None:
                                   None if name.partition(".")[0] in absent else find(name, path, target))
"""


def test_every_stage_imports_on_a_bare_machine() -> None:
    code = BARE + f"for name in {MODULES}: __import__('benchmarks.' + name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=machine.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_gpu_test_is_collected_on_a_bare_machine() -> None:
    found = gpu_tests.files()
    assert set(gpu_tests.FIRST) <= set(found)
    options = gpu_tests.pytest_command("--collect-only", "-q", "-m", "gpu", *found)[3:]
    there = BARE.replace('"safetensors", ', "")  # a dependency of what tests/train trains
    code = there + f"import pytest; raise SystemExit(pytest.main({options!r}))"
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=machine.ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    for file in found:
        assert f"{file}::" in done.stdout, f"no test of {file}"


def test_gpu_tests_end_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"import os, time, pytest\npytestmark = pytest.mark.{'gpu'}\n"
    for name, body in {
        "good": "def test_a(): pass\ndef test_b(): pytest.skip('no tool')",
        "bad": "def test_c(): assert False",
        "dies": "def test_d(): pass\ndef test_e(): os._exit(9)",
        "slow": "def test_f(): pass\ndef test_g(): time.sleep(600)",
    }.items():
        (tmp_path / f"test_{name}.py").write_text(mark + body)
    (tmp_path / "conftest.py").write_text("")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    chosen = ["test_good.py", "test_bad.py", "test_dies.py", "test_slow.py", "test_late.py"]
    begin = time.monotonic()
    gpu_tests.run(["test_good.py"], tmp_path / "logs", 300.0, 1, tmp_path / "tests.json")
    limit = 10 + 6 * (time.monotonic() - begin)  # a machine that is busy starts five processes slowly
    ended = gpu_tests.run(chosen, tmp_path / "logs", limit, 4, tmp_path / "tests.json")
    assert {file: one["ended"] for file, one in ended.items()} == {
        "test_good.py": "ok", "test_bad.py": "exit 1", "test_dies.py": "exit 9", "test_slow.py": "out of time",
        "test_late.py": "exit 4",
    }  # fmt: skip
    assert ended["test_good.py"]["tests"] == {"test_good.py::test_a": "passed", "test_good.py::test_b": "skipped"}
    assert ended["test_slow.py"]["tests"] == {"test_slow.py::test_f": "passed"}
    assert set(gpu_tests.earlier(tmp_path / "tests.json")) == {"test_good.py"}, "the others are tested again"
    written = json.loads((tmp_path / "tests.json").read_text())
    assert written["commit"] == "abc" and written["files"].keys() == ended.keys()
    assert gpu_tests.read("tests/a.py::test_x[b c] FAILED [ 3%]\n") == {"tests/a.py::test_x[b c]": "failed"}


def test_results_and_logs_are_packed(tmp_path: Path, state: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "summary.json").write_text("[]")
    (state / "one.log").write_text("log")
    gpu.pack(tmp_path / "all.tgz", folder)
    with tarfile.open(tmp_path / "all.tgz") as archive:
        assert {"results/summary.json", "logs/one.log"} <= set(archive.getnames())


def test_a_tree_without_git_is_known_by_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no git")))
    assert machine.commit.__wrapped__() == f"tree-{machine.digest()}" and len(machine.digest()) == 12
