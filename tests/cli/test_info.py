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
