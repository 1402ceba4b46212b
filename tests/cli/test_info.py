from __future__ import annotations

import json

import rtm_kernels
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


def test_info_for_a_person(rtm) -> None:
    result = rtm("info")
    assert result.exit_code == 0
    for word in ("versions", "devices", "backends", "models", "executor reference on cpu", "can run"):
        assert word in result.stdout


def test_what_is_piped_has_no_colours_no_trailing_blanks_and_fits(rtm) -> None:
    for command in ("info", "--help", "--version"):
        result = rtm(command)
        lines = result.stdout.splitlines()
        assert result.exit_code == 0 and lines and "\x1b" not in result.stdout
        assert max(map(len, lines)) <= 80
    assert lines == [f"rtm_kernels {rtm_kernels.__version__}"]
    assert all(line == line.rstrip() for line in rtm("info").stdout.splitlines())


def test_a_mistyped_command_is_named_with_the_one_meant(rtm) -> None:
    result = rtm("solv")
    assert result.exit_code == 2 and result.stdout == "" and "Did you mean 'solve'?" in result.stderr
