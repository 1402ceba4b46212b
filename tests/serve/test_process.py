"""`rtm serve` as a person starts it: a process, the bundled model, signals, README's example."""

from __future__ import annotations

import json
import os
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
from rtm_kernels.serve import server
from tests.serve.support import Client

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT = 300.0
BITS = ("answer", "status", "steps", "halt_probability", "residual")


class Process(Client):
    """`rtm serve` on a free port; its log lines as they come."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "rtm_kernels.cli.main", "serve", "--port", "0", "--json"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
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
        assert [tuple(s[name] for name in BITS) for s in process.solve(*puzzles[some], max_steps=2)] == expected[some]
    assert any(found[1] == "verified" for found in expected)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_example_of_the_docs(process: Process) -> None:
    lines = [line.strip() for line in (ROOT / "docs" / "serving.md").read_text().splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("curl"))
    command = " ".join(line.removesuffix("\\") for line in lines[start : start + 2])
    command = command.replace("localhost:8000", f"127.0.0.1:{process.port}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=WAIT)
    (solution,) = json.loads(done.stdout)["solutions"]
    assert solution["status"] == "verified" and solution["answer"].startswith("534678912")


def test_sigterm_finishes_what_runs_and_ends_with_0(process: Process) -> None:
    hard = process.post("/v1/solve", ["." * 81] * 64, max_steps=64)
    while "rtm_puzzles_running 0.0" in process.ask("GET", "/metrics")[2]:
        time.sleep(0.05)
    assert process.end() == 0
    response = hard.getresponse()
    code = json.loads(response.read()).get("error", {}).get("code")
    assert (response.status, code) in {(200, None), (503, "stopping")}
    assert not [line for line in process.early if line["event"] == "request failed"]
    with pytest.raises(OSError):
        process.solve("." * 81)


def test_what_keeps_it_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 and one line."""
    monkeypatch.setattr(server, "configure_log", lambda as_json: None)
    monkeypatch.setattr(signal, "signal", lambda signum, handler: None)
    (tmp_path / "token").write_text("short\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, message in (
            (["--host", "0.0.0.0"], "host='0.0.0.0' is not allowed"), (["--host", "::"], "token"),
            (["--token-file", str(tmp_path / "token")], "16 to 4096"), (["--slots", "0"], "slots=0"),
            (["--token-file", str(tmp_path / "absent")], "No such file"), (["--port", "70000"], "port=70000"),
            (["-m", "sudoku", "-m", "sudoku"], "each name once"), (["-m", "a/b=c"], "model='a/b=c'"),
            (["--port", "0", "-m", "nope"], "unknown model 'nope'"), (["--port", port], f"127.0.0.1:{port}"),
        ):  # fmt: skip
            result = CliRunner().invoke(app, ["serve", *arguments])
            assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
            assert message in result.stderr
