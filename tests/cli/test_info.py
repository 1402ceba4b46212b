from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import rtm_kernels
from rtm_kernels.cli.main import app
from rtm_kernels.pretrained import known_models


def test_info_names_what_runs_and_why_the_rest_does_not(rtm) -> None:
    result = rtm("info", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert {"rtm_kernels", "python", "torch", "triton"} <= set(found["versions"])
    assert found["devices"][0]["name"] == "cpu"
    rows = {(b["kind"], b["name"], b["device"]): b for b in found["backends"]}
    assert rows["executor", "reference", "cpu"]["available"]
    assert "flash_attn" in rows["attention", "flash_attn", "cpu"]["reason"]
    assert ("executor", "native", "cpu") in rows and ("ops", "triton", "cpu") in rows
    assert all(b["available"] != bool(b["reason"]) for b in found["backends"])
    assert tuple(m["name"] for m in found["models"]) == known_models()


def test_what_is_piped_has_no_colours_no_trailing_blanks_and_fits(rtm) -> None:
    for command in ("info", "--help", "--version"):
        result = rtm(command)
        lines = result.stdout.splitlines()
        assert result.exit_code == 0 and lines and "\x1b" not in result.stdout
        assert max(map(len, lines)) <= 80
    assert lines == [f"rtm_kernels {rtm_kernels.__version__}"]
    shown = rtm("info").stdout
    assert all(line == line.rstrip() for line in shown.splitlines())
    assert all(word in shown for word in ("versions", "devices", "models", "executor reference on cpu", "can run"))


def commands(group: Any, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *above, name)
        else:
            yield (*above, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("names", COMMANDS, ids="-".join)
def test_help_shows_whole_examples_and_json(names: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*names, "--help"])
    shown = [line.strip() for line in result.stdout.splitlines()]
    assert result.exit_code == 0 and ("--json" in result.stdout or names == ("mcp",))
    _, text = re.split("Examples?:\n", COMMANDS[names].callback.__doc__)
    examples = [line.strip() for line in text.splitlines() if "rtm " in line]
    assert examples and all(example in shown for example in examples)
