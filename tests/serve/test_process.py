"""`rtm serve` as a person starts it: a process, the bundled model, signals, README's example."""

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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rtm_kernels import RecursiveReasoner, Solver
from rtm_kernels.cli.main import app
from rtm_kernels.data.examples import example_puzzles
from rtm_kernels.serve import logs, server

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT = 300.0
BITS = ("answer", "status", "steps", "halt_probability", "residual")


class Process:
    """`rtm serve` on a free port; its log lines as they come."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        command = [sys.executable, "-m", "rtm_kernels.cli.main", "serve", "--port", "0", "--json", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.lines = map(json.loads, self.process.stderr)
        self.early: list[dict[str, Any]] = []

    def event(self, name: str) -> dict[str, Any]:
        """The next line of that event."""
        for line in self.lines:
            if line["event"] == name:
                return dict(line)
            self.early.append(line)
        raise AssertionError(self.early)

    def listen(self) -> Process:
        self.port = int(self.event("listening")["address"].rsplit(":", 1)[1])
        return self

    def post(self, puzzles: list[str], **options: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        body = json.dumps({"puzzles": puzzles, **options})
        connection.request("POST", "/v1/solve", body, {"content-type": "application/json"})
        return connection

    def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        self.event("stopped")
        return self.process.wait(WAIT)


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    found = Process().listen()
    yield found
    found.process.kill()
    found.process.wait()


def test_answers_have_the_bits_of_the_solver(process: Process) -> None:
    puzzles = [puzzle.text for puzzle in example_puzzles()[:12]]
    solver = Solver(RecursiveReasoner.from_pretrained("sudoku"), max_steps=2)
    expected = [tuple(getattr(s, name) for name in BITS) for s in solver.solve(puzzles)]
    for some in (slice(None), slice(1)):
        answer = json.loads(process.post(puzzles[some], max_steps=2).getresponse().read())
        assert [tuple(s[name] for name in BITS) for s in answer["solutions"]] == expected[some]
    assert any(found[1] == "verified" for found in expected)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_example_of_the_readme(process: Process) -> None:
    text = (ROOT / "README.md").read_text().partition("## Serve it")[2]
    lines = [line.strip() for line in re.findall(r"^    (.*)$", text.partition("\n## ")[0], re.MULTILINE)]
    start = next(i for i, line in enumerate(lines) if line.startswith("curl"))
    command = " ".join(line.removesuffix("\\") for line in lines[start : start + 2])
    command = command.replace("localhost:8000", f"127.0.0.1:{process.port}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=WAIT)
    (solution,) = json.loads(done.stdout)["solutions"]
    assert solution["status"] == "verified" and solution["answer"].startswith("534678912")


def test_sigterm_finishes_what_runs_and_ends_with_0(process: Process) -> None:
    hard = process.post(["." * 81] * 64, max_steps=64)
    while b"rtm_puzzles_running 0.0" in metrics(process.port):
        time.sleep(0.05)
    assert process.end() == 0
    response = hard.getresponse()
    code = json.loads(response.read()).get("error", {}).get("code")
    assert (response.status, code) in {(200, None), (503, "stopping")}
    assert not [line for line in process.early if line["event"] == "request failed"]
    with pytest.raises(OSError):
        process.post(["." * 81])


def metrics(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    connection.request("GET", "/metrics")
    return connection.getresponse().read()


def catches_sigterm(pid: int) -> bool:
    """Whether a process has a handler of SIGTERM."""
    (mask,) = re.findall(r"^SigCgt:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells when the handler is there")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_models_load_ends_it_with_0_and_a_line(signum: signal.Signals) -> None:
    process = Process()
    while process.process.poll() is None and not catches_sigterm(process.process.pid):
        time.sleep(0.01)
    assert process.end(signum) == 0 and process.early == []


def failure(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """The one line that `rtm serve` ends with when it cannot start, with exit code 2."""
    result = CliRunner().invoke(app, ["serve", *arguments], env=environment)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
    return result.stderr


def test_what_keeps_it_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "configure", lambda as_json: None)
    monkeypatch.setattr(signal, "signal", lambda signum, handler: None)
    assert "host='0.0.0.0' is not allowed" in failure("--host", "0.0.0.0") and "token" in failure("--host", "::")
    (tmp_path / "token").write_text("short\n")
    assert "16 to 4096" in failure("--token-file", str(tmp_path / "token"))
    assert "16 to 4096" in failure(environment={"RTM_TOKEN": "short"})
    assert "No such file" in failure("--token-file", str(tmp_path / "absent"))
    assert "port=70000" in failure("--port", "70000") and "slots=0" in failure("--slots", "0")
    assert "each name once" in failure("-m", "sudoku", "-m", "sudoku")
    assert "model='a/b=c'" in failure("-m", "a/b=c")
    assert "unknown model 'nope'" in failure("--port", "0", "-m", "nope")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in failure("--port", str(port))


def test_json_lines_tell_why_it_does_not_start() -> None:
    command = [sys.executable, "-m", "rtm_kernels.cli.main", "serve", "--json", "--port", "70000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 2 and not done.stdout
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["event"] == "stderr" and "error: port=70000 is not allowed" in line["reason"]


def test_addresses_are_shown_as_urls() -> None:
    with server.bind("127.0.0.1", 0, None) as bound:
        assert server.address_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
