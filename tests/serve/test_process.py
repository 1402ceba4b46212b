"""`rtm serve` as a person starts it: a process with a worker process, the bundled model, signals, README's example."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rtm_kernels import RecursiveReasoner, Solver
from rtm_kernels.cli.main import app
from rtm_kernels.data.examples import example_puzzles
from rtm_kernels.serve import logs

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT = 300.0
BITS = ("answer", "status", "steps", "halt_probability", "residual")


NO_JSON = "a line that is no JSON"


def parsed(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {"event": NO_JSON, "reason": line}


class Process:
    """`rtm serve` on a free port; its log lines as they come."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        command = [sys.executable, "-m", "rtm_kernels.cli.main", "serve", "--port", "0", "--json", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        self.lines: list[dict[str, Any]] = []
        self.changed, self.ended = threading.Condition(), False
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.event("listening")["address"].rsplit(":", 1)[1])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.changed:
                self.lines.append(parsed(line))
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == name]

    def event(self, name: str, number: int = 1) -> dict[str, Any]:
        """The line of that event, waited for as long as the process may still say it, and says nothing but JSON."""
        with self.changed:
            over = lambda: self.ended or self.events(NO_JSON) or len(self.events(name)) >= number  # noqa: E731
            self.changed.wait_for(over, WAIT)
            assert len(self.events(name)) >= number and not self.events(NO_JSON), self.lines
            return self.events(name)[number - 1]

    def post(self, body: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        connection.request("POST", "/v1/solve", json.dumps(body), {"content-type": "application/json"})
        return connection

    def solve(self, *puzzles: str, **options: Any) -> list[dict[str, Any]]:
        response = self.post({"puzzles": list(puzzles), **options}).getresponse()
        answer = json.loads(response.read())
        assert response.status == 200, answer
        return list(answer["solutions"])


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    found = Process()
    yield found
    found.process.kill()
    found.process.wait()


def bits(solutions: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(solution[name] for name in BITS) for solution in solutions]


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[Any, ...]]:
    """Puzzle -> what a solver in this process gives it, with at most two steps."""
    solver = Solver(RecursiveReasoner.from_pretrained("sudoku"), max_steps=2)
    puzzles = [puzzle.text for puzzle in example_puzzles()[:12]]
    return {s.input: tuple(getattr(s, name) for name in BITS) for s in solver.solve(puzzles)}


def test_answers_have_the_bits_of_the_solver(process: Process, expected: dict[str, tuple[Any, ...]]) -> None:
    together = bits(process.solve(*expected, max_steps=2))
    assert dict(zip(expected, together, strict=True)) == expected
    assert any(found[1] == "verified" for found in together)
    puzzle = next(iter(expected))
    assert bits(process.solve(puzzle, max_steps=2)) == [expected[puzzle]]


def test_the_front_imports_no_torch(process: Process) -> None:
    maps = Path(f"/proc/{process.process.pid}/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    assert "libtorch" not in maps.read_text()
    assert "libtorch" in Path(f"/proc/{process.events('worker ready')[-1]['worker']}/maps").read_text()


def test_a_killed_worker_loses_nothing(process: Process, expected: dict[str, tuple[Any, ...]]) -> None:
    puzzles = list(expected) * 2
    connections = [process.post({"puzzles": puzzles, "max_steps": 2}) for _ in range(2)]
    ended = len(process.events("worker ended"))
    os.kill(process.events("worker ready")[-1]["worker"], signal.SIGKILL)
    process.event("worker ended", ended + 1)
    for connection in connections:
        answer = json.loads(connection.getresponse().read())
        assert bits(answer["solutions"]) == [expected[text] for text in puzzles]
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=WAIT)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_example_of_the_readme(process: Process) -> None:
    text = (ROOT / "README.md").read_text().partition("## Serve it")[2]
    lines = [line.strip() for line in re.findall(r"^    (.*)$", text.partition("\n## ")[0], re.MULTILINE)]
    start = next(i for i, line in enumerate(lines) if line.startswith("curl"))
    command = " ".join(line.removesuffix("\\") for line in lines[start : start + 2])
    done = subprocess.run(
        ["bash", "-c", command.replace("localhost:8000", f"127.0.0.1:{process.port}")], capture_output=True, text=True,
        timeout=WAIT,
    )  # fmt: skip
    (solution,) = json.loads(done.stdout)["solutions"]
    assert solution["status"] == "verified" and solution["answer"].startswith("534678912")


def test_sigterm_finishes_what_runs_and_ends_with_0() -> None:
    process = Process()
    puzzles = [puzzle.text for puzzle in example_puzzles()[:6]]
    before = process.post({"puzzles": puzzles, "max_steps": 1})
    hard = process.post({"puzzles": ["." * 81] * 64, "max_steps": 64})
    while not process.events("draining"):
        time.sleep(0.3)
        process.process.send_signal(signal.SIGTERM)
        process.event("draining")
    statuses = []
    for connection in (before, hard):
        response = connection.getresponse()
        answer = json.loads(response.read())
        statuses.append((response.status, answer.get("error", {}).get("code")))
    assert set(statuses) <= {(200, None), (503, "draining")}
    assert process.process.wait(WAIT) == 0
    assert process.event("stopped") and not process.events("request failed")
    with pytest.raises(OSError):
        process.post({"puzzles": puzzles})


def catches_sigterm(pid: int) -> bool:
    """Whether a process has a handler of SIGTERM."""
    (mask,) = re.findall(r"^SigCgt:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells when the handler is there")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_models_load_ends_it_with_0_and_a_line(signum: signal.Signals) -> None:
    command = [sys.executable, "-m", "rtm_kernels.cli.main", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not catches_sigterm(process.pid):
            time.sleep(0.01)
        process.send_signal(signum)
        _, said = process.communicate(timeout=WAIT)
    assert process.returncode == 0 and [parsed(line)["event"] for line in said.splitlines()] == ["stopped"]


STALE = """
import sys, types
sys.modules["rtm_kernels._cpu"] = types.ModuleType("rtm_kernels._cpu")
sys.modules["rtm_kernels._cpu"].sources = "those of yesterday"
"""


@pytest.mark.skipif(not (ROOT / "csrc" / "cpu").is_dir(), reason="no sources to compare with")
def test_what_is_no_log_comes_as_json_too(tmp_path: Path) -> None:
    """A stale extension, of which the worker warns, and what the death of a worker leaves."""
    (tmp_path / "sitecustomize.py").write_text(STALE)
    process = Process(PYTHONPATH=str(tmp_path))
    try:
        said = process.event("stderr")
        assert said["level"] == "warning" and said["reason"].startswith("note: using the slower PyTorch executor")
        assert "older or newer" in said["reason"]
        assert process.events("stderr") == [said] and not process.events(NO_JSON)
    finally:
        process.process.kill()
        process.process.wait()


def test_json_lines_tell_why_it_does_not_start() -> None:
    command = [sys.executable, "-m", "rtm_kernels.cli.main", "serve", "--json", "--port", "70000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 2 and not done.stdout
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["event"] == "stderr" and "error: port=70000 is not allowed" in line["reason"]


def failure(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """The one line that `rtm serve` ends with when it cannot start, with exit code 2."""
    result = CliRunner().invoke(app, ["serve", *arguments], env=environment)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
    return result.stderr


@pytest.fixture
def quiet_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the loggers of this process as they are."""
    monkeypatch.setattr(logs, "configure", lambda as_json: None)


@pytest.mark.usefixtures("quiet_logs")
def test_what_keeps_it_from_starting(tmp_path: Path) -> None:
    assert "host='0.0.0.0' is not allowed" in failure("--host", "0.0.0.0") and "token" in failure("--host", "::")
    (tmp_path / "token").write_text("short\n")
    assert "16 to 4096" in failure("--token-file", str(tmp_path / "token"))
    assert "16 to 4096" in failure(environment={"RTM_TOKEN": "short"})
    assert "No such file" in failure("--token-file", str(tmp_path / "absent"))
    assert "port=70000" in failure("--port", "70000") and "slots=0" in failure("--slots", "0")
    assert "each name once" in failure("-m", "sudoku", "-m", "sudoku")
    assert "model='a/b=c'" in failure("-m", "a/b=c")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in failure("--port", str(port))


@pytest.mark.usefixtures("quiet_logs")
def test_a_model_that_cannot_be_loaded_is_named() -> None:
    assert "unknown model 'nope'" in failure("--port", "0", "-m", "nope")
