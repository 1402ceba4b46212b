"""What is attacked besides files and HTTP: traces, the command line and the arguments of the agent's tools.

Each target takes a folder of its own; what needs an extra is imported when it is built.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from rtm_kernels.cli.main import app
from rtm_kernels.errors import RTMError
from rtm_kernels.trace import read_trace, record
from rtm_kernels.trace.page import page
from tests.hostile.mutations import damage_bytes, damage_json, damage_text
from tests.oracle import saved
from tests.trace.support import PUZZLES, tiny_model, tiny_solver

Attack = Callable[[], tuple[str, bool]]
"""Tries one input; returns what was tried, in words, and whether it was taken; raises unless the answer was clear."""

Target = Callable[[random.Random], Attack]
"""Makes an attack, whose time and memory are those of what is attacked and not of making the input."""

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def clear(text: str, tried: str) -> None:
    """One line that a terminal may print."""
    assert text and "\n" not in text and text.isprintable() and len(text) < 2000, (tried, text)


def taken_or_refused(read: Callable[[], object], tried: str) -> tuple[str, bool]:
    """What an attack returns: `read` works, or it raises an error of the package with one clear line."""
    try:
        read()
    except RTMError as error:
        clear(str(error), tried)
        return tried, False
    return tried, True


def recorded(root: Path) -> Path:
    """A trace of a model that lies beside it."""
    folder = tiny_model().save_pretrained(root / "tiny")
    record(tiny_solver(), PUZZLES, root / "t.jsonl", model_name=str(folder))
    return root / "t.jsonl"


def trace_files(root: Path) -> Target:
    """Damaged traces: read whole and shown, or refused in one line."""
    content, path = recorded(root).read_bytes(), root / "hostile.jsonl"

    def show() -> None:
        trace = read_trace(path)
        page(trace.header, trace.puzzles)

    def make(rng: random.Random) -> Attack:
        if rng.random() < 0.5:
            damaged = damage_bytes(content, rng)
        else:
            lines = content.splitlines(keepends=True)
            number = rng.randrange(len(lines))
            lines[number] = json.dumps(damage_json(json.loads(lines[number]), rng)).encode() + b"\n"
            damaged = b"".join(lines)
        path.write_bytes(damaged)
        return lambda: taken_or_refused(show, f"a trace of {len(damaged)} bytes")

    return make


def command_line(root: Path) -> Target:
    """Damaged arguments: exit code 0, 1 or 2, and no traceback."""
    folder, model, trace = root / "scratch", str(saved("sudoku", root)), str(recorded(root))
    folder.mkdir()
    out = str(folder / "out")
    small = ("--model", model, "--executor", "reference")
    commands = (
        ["solve", PUZZLE, *small, "--max-steps", "1", "--rollouts", "1", "--halt", "verified", "--json"],
        ["solve", "-", *small, "--limit", "2", "--batch-size", "2", "--noise", "0.1", "--max-steps", "1"],
        ["solve", PUZZLE, *small, "--rollout-kind", "twins", "--max-steps", "1", "--stats", out],
        ["trace", "record", PUZZLE, *small, "--out", out, "--max-steps", "1", "--batch-size", "2"],
        ["trace", "view", trace, "--out", out, "--limit", "1"],
        ["trace", "replay", trace, "--model", model],
        ["eval", str(folder / "none.csv"), *small, "--max-steps", "2"],
        ["mcp", "--transport", "pigeon", "--port", "1", "--token-file", out],
    )

    def make(rng: random.Random) -> Attack:
        arguments = list(rng.choice(commands))
        # the first word stays, or another command with work of its own would run; mcp without its transport would wait
        fixed = {"mcp": 3}.get(arguments[0], 1)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(fixed, len(arguments))
            if arguments[at].startswith(str(folder)) or arguments[at] in (model, trace):
                continue
            arguments[at] = damage_text(arguments[at], rng).replace("/", "_")[:6000]
        given = damage_text(PUZZLE, rng).encode("utf-8", "surrogatepass")
        return lambda: run(arguments, given)

    def run(arguments: list[str], given: bytes) -> tuple[str, bool]:
        done = CliRunner().invoke(app, arguments, input=given)
        tried = repr(arguments)[:600]
        assert done.exception is None or isinstance(done.exception, SystemExit), (tried, done.exception)
        assert done.exit_code in (0, 1, 2), (tried, done.exit_code)
        assert "Traceback" not in done.output, tried
        own = [line for line in done.stderr.split("\n") if line.startswith(("error: ", "note: "))]
        for line in own:
            clear(line, tried)
        return tried, done.exit_code != 2

    return make


def tool_arguments(root: Path) -> Target:
    """Damaged tool calls: a result, or one clear line."""
    from mcp.server.mcpserver.exceptions import ToolError

    from rtm_kernels.agent.server import build
    from rtm_kernels.agent.solvers import Solvers

    models = [f"{task}={saved(task, root)}" for task in ("sudoku", "maze", "arc")]
    server, loop = build(Solvers(models, executor="reference", batch_size=1)), asyncio.new_event_loop()
    calls: tuple[tuple[str, dict[str, Any]], ...] = (
        ("solve_sudoku", {"puzzle": PUZZLE, "max_steps": 1}),
        ("solve_maze", {"maze": "S" + "." * 898 + "G", "max_steps": 1}),
        ("solve_arc_candidates", {"test_input": [[1], [3]], "candidates": 1, "augmentations": 2, "max_steps": 1}),
        ("list_models", {}),
    )

    def make(rng: random.Random) -> Attack:
        name, arguments = rng.choice(calls)
        damaged = damage_json(arguments, rng)
        if not isinstance(damaged, dict):
            damaged = {"puzzle": damaged}
        return lambda: call(name, damaged, f"{name} {damaged!r:.600}")

    def call(name: str, damaged: dict[str, Any], tried: str) -> tuple[str, bool]:
        try:
            found = loop.run_until_complete(server.call_tool(name, damaged))
        except ToolError as error:
            clear(str(error), tried)
            return tried, False
        assert not CONTROL.search(found.content[0].text), tried
        assert found.structured_content is not None, tried
        return tried, True

    return make
