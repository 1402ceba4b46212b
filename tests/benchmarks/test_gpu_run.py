"""The run on a GPU machine: what it can be held to without one. No stage passes by being skipped."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, machine, profile, sanitize, tune
from benchmarks.cases import Case
from benchmarks.harness import Row
from benchmarks.providers import REFERENCE
from rtm_kernels.ops.swiglu_norm import forward
from rtm_kernels.ops.swiglu_norm import launch as table_of


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
    assert {o["stage"] for o in json.loads((state / "stages.json").read_text())} == {"good", "bad"}
    with pytest.raises(SystemExit):
        gpu.main(["--stage", "none"])


def test_every_stage_names_a_module_that_exists() -> None:
    found = gpu.stages(Path("folder"))
    assert [s.name for s in found] == ["build", "tests", "choose", "bench", "profile", "sanitize", "tune", "energy"]
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


def test_candidates_differ_in_one_number_and_are_put_back() -> None:
    row = next(r for r in table_of.TABLE if r.kernel == "gate_up" and r.family == "hopper")
    found = list(tune.candidates(row))
    assert len(found) > 5
    for other in found:
        changes = (row.num_warps != other.num_warps) + (row.num_stages != other.num_stages)
        assert changes + sum(row.blocks[k] != other.blocks[k] for k in row.blocks) == 1
    before = table_of.TABLE
    with tune.replaced(row, found[0]):
        assert any(r is found[0] for r in forward.TABLE) and all(r is not row for r in forward.TABLE)
        assert forward.TABLE is not before
    assert forward.TABLE is before and table_of.TABLE is before


def test_the_rows_that_a_call_uses_are_found() -> None:
    from benchmarks.problem import make
    from benchmarks.providers import TRITON

    problem = make(Case("small", "channel", 1, "float32", "cpu"), copies=1)
    used = tune.rows_used(TRITON, problem)
    assert used and all(row in table_of.TABLE for row in used)
    assert tune.rows_used(REFERENCE, problem) == []


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
