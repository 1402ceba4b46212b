from __future__ import annotations

import json

from rtm_kernels.pretrained import known_models


def test_info_names_what_runs_and_why_the_rest_does_not(rtm) -> None:
    result = rtm("info", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert {"rtm_kernels", "python", "torch", "triton"} <= set(found["versions"])
    assert found["devices"][0]["name"] == "cpu"
    rows = {(b["kind"], b["name"], b["device"]): b for b in found["backends"]}
    assert rows["executor", "reference", "cpu"]["available"]
    assert ("executor", "native", "cpu") in rows and ("ops", "triton", "cpu") in rows
    assert all(b["available"] != bool(b["reason"]) for b in found["backends"])
    assert tuple(m["name"] for m in found["models"]) == known_models()


def test_info_for_a_person(rtm) -> None:
    result = rtm("info")
    assert result.exit_code == 0
    for word in ("versions", "devices", "backends", "models", "executor reference on cpu", "can run"):
        assert word in result.stdout
