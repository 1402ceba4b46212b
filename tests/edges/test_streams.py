"""Commands whose input is a pipe or closed, and whose output is closed or on a full disk.

| situation met in public | what happens |
|---|---|
| a service starts `rtm solve -` without standard input | one line, exit code 2 |
| `rtm solve /dev/stdin`, `rtm solve <(zcat p.gz)` | read as files are |
| standard output or errors closed, or on a full disk | one line or none, never a traceback |
| `rtm generate -` | the prompt is standard input |
| an option that names a file to write in a folder that is none | refused before anything is computed |
| a pipe, a device or a link as the file to write | written, and still there afterwards |
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rtm_kernels.cli.group import Group
from rtm_kernels.cli.main import app as rtm
from rtm_kernels.cli.source import read_all
from rtm_kernels.data import get_task
from rtm_kernels.errors import InputError
from rtm_kernels.files import new_file

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
RTM = f"'{sys.executable}' -m rtm_kernels.cli.main"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("source", [f"/dev/stdin <<< '{PUZZLE}'", f"<(echo '{PUZZLE}')", f"- <<< '{PUZZLE}'"])
def test_pipes_are_files(source: str) -> None:
    result = shell(f"{RTM} solve --json {source}")
    assert result.returncode == 0 and '"status": "verified"' in result.stdout, result.stderr


def test_standard_input_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="arguments='- twice' is not allowed: standard input is read once"):
        read_all(["-", "-"], get_task("sudoku"), None)


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        ("<&-", 2, "error: standard input is closed; give a file or a puzzle instead of -"),
        (f"<<< '{PUZZLE}' >&-", 0, ""),
        (f"<<< '{PUZZLE}' >/dev/full", 2, "error: No space left on device"),
        (f"<<< '{PUZZLE[1:]}' 2>&-", 2, ""),
        (f"<<< '{PUZZLE}' >&- 2>&-", 0, ""),
    ],
)
def test_closed_streams_and_a_full_disk(streams: str, code: int, said: str) -> None:
    result = shell(f"{RTM} solve - --json {streams}")
    assert "Traceback" not in result.stderr and result.stderr.strip() == said
    assert result.returncode == code


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_a_full_disk_while_parsing(option: str) -> None:
    result = shell(f"{RTM} {option} >/dev/full")
    assert (result.returncode, result.stderr.strip()) == (2, "error: No space left on device")


@pytest.mark.parametrize("streams", ["<&-", "</dev/null >&-"])
def test_tools_for_agents_need_both_streams(streams: str) -> None:
    pytest.importorskip("mcp")
    result = shell(f"{RTM} mcp {streams}")
    said = "error: transport='stdio' is not allowed: http, because standard input or output is closed"
    assert (result.returncode, result.stderr.strip()) == (2, said)


def test_a_full_disk_in_a_group_of_errors_is_one_line() -> None:
    class Several(Exception):
        exceptions = (OSError(28, "No space left on device"),)

    def command() -> None:
        raise Several

    app = typer.Typer(cls=Group)
    app.command()(command)
    app.callback()(lambda: None)
    result = CliRunner().invoke(app, ["command"])
    assert (result.exit_code, result.stderr) == (2, "error: No space left on device\n")


@pytest.mark.parametrize(
    "command", [("solve", PUZZLE, "--stats"), ("generate", "x", "--trace"), ("eval", "p.csv", "--submission")]
)
def test_a_file_that_cannot_be_written_is_told_first(command: tuple[str, ...], tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "x"):
        result = CliRunner().invoke(rtm, [*command, str(path)])
        said = f"error: {command[-1]}={str(path)!r} is not allowed: a file in a folder that exists\n"
        assert (result.exit_code, result.stdout, result.stderr) == (2, "", said)


def test_the_prompt_on_a_closed_standard_input() -> None:
    result = shell(f"{RTM} generate - <&-")
    said = "error: standard input is closed; give a prompt instead of -"
    assert (result.returncode, result.stderr.strip()) == (2, said)


def test_pipes_and_links_are_written_themselves(tmp_path: Path) -> None:
    pipe, link, file = (tmp_path / name for name in ("pipe", "link", "file"))
    os.mkfifo(pipe)
    link.symlink_to(file)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    for target in (pipe, link):
        with new_file(target) as made:
            made.write("all of it")
    reader.join()
    assert read == [file.read_text()] == ["all of it"]
    assert pipe.is_fifo() and link.is_symlink() and sorted(os.listdir(tmp_path)) == ["file", "link", "pipe"]
