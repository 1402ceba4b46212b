"""Comparison of two results: intervals, refusals, and a red gate that ends it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import compare, machine, rows
from rtm_kernels.errors import InputError

FACTS = {
    "case": "small-block-B1-float32-cpu", "impl": "rtm_native", "status": "measured", "baseline": "official_eager",
    "machine": "a machine", "device": "cpu", "commit": "abc", "threads": 1, "clock_mhz": None, "seconds": 1.0,
    "ratio": 2.0, "ratio_interval": [1.5, 2.5], "fraction_of_limit": 0.5, "versions": {"torch": "2", "triton": "3"},
    "useful_flops": 100, "useful_bytes": 10, "tflops": 1e-3, "gbs": 1.0, "limit_tflops": 2e-3, "limit_gbs": 2.0,
}  # fmt: skip


def results(samples: list[float], **changes: object) -> list[rows.Result]:
    return [rows.Result({**FACTS, **changes}, samples)]


@pytest.mark.parametrize(
    ("new", "verdict"), [([0.5, 0.51, 0.49], "faster"), ([2.0, 2.1, 1.9], "slower"), ([0.6, 1.0, 1.7], "unclear")]
)
def test_verdicts_follow_the_interval(new: list[float], verdict: str) -> None:
    (change,) = compare.compare(results([1.0, 1.01, 0.99]), results(new))
    assert change.verdict == verdict and change.low <= change.ratio <= change.high


def test_files_go_there_and_back(tmp_path: Path) -> None:
    rows.write(tmp_path / "a.json", results([1.0, 2.0]))
    (back,) = rows.read(tmp_path / "a.json")
    assert back.samples == [1.0, 2.0] and back.facts == FACTS
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(InputError, match="not a file of benchmark results"):
        rows.read(tmp_path / "b.json")


def test_unlike_things_are_not_compared() -> None:
    with pytest.raises(InputError, match="different machines"):
        compare.compare(results([1.0]), results([1.0], machine="another"))
    with pytest.raises(InputError, match="no case in common"):
        compare.compare(results([1.0]), results([1.0], case="another"))


def test_the_exit_status_tells_slower_from_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write(tmp_path / "fast.json", results([1.0, 1.1, 1.0]))
    rows.write(tmp_path / "slow.json", results([3.0, 3.1, 3.0]))
    fast, slow = str(tmp_path / "fast.json"), str(tmp_path / "slow.json")
    assert compare.main([fast, slow]) == 1 and "slower" in capsys.readouterr().out
    assert compare.main([slow, fast]) == 0
    (tmp_path / "bad.json").write_text(json.dumps({}))
    assert compare.main([fast, str(tmp_path / "bad.json")]) == 2


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two commits whose tests are green, then red, and whose benchmarks write a file."""
    folder = tmp_path / "repository"
    folder.mkdir()

    def git(*args: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True)

    git("init", "-q", "-b", "main")
    (folder / "setup.py").write_text("")
    (folder / "benchmarks").mkdir()
    content = json.dumps({"benchmarks": [{"extra_info": FACTS, "stats": {"data": [1.0, 1.1]}}]})
    script = f"import pathlib\n\ndef test_it(request):\n    file = pathlib.Path('.benchmarks/compare.json')\n    file.write_text({content!r})\n"  # noqa: E501
    (folder / "benchmarks" / "test_it.py").write_text(script)
    (folder / "benchmarks" / "conftest.py").write_text("")
    for red in (False, True):
        (folder / "test_gate.py").write_text(f"def test_gate():\n    assert {not red}\n")
        git("add", ".")
        git("commit", "-q", "-m", "red" if red else "green")
    monkeypatch.setattr(machine, "ROOT", folder)
    return folder


def test_a_red_gate_ends_the_comparison(repository: Path) -> None:
    options = {"selection": "", "rounds": 1, "tests": ("test_gate.py",)}
    with pytest.raises(InputError, match="its tests are red; not compared"):
        compare.compare_commits("HEAD~1", "HEAD", **options)
    with pytest.raises(InputError, match="no such commit: nothing"):
        compare.compare_commits("nothing", "HEAD", **options)
    (change,) = compare.compare_commits("HEAD~1", "HEAD~1", **options)
    assert change.ratio == 1.0 and change.verdict == "unclear"
    left = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True).stdout
    assert len(left.splitlines()) == 1
