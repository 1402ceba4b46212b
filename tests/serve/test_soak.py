"""A short run of the soak, and the proof that it would notice."""

from __future__ import annotations

import json

import pytest

from benchmarks import soak
from benchmarks.soak_client import BITS as NAMES
from benchmarks.soak_client import Request, judge

BITS = ("0001", "verified", 1, 0.5, None)


def answer(**changes: object) -> bytes:
    solution = dict(zip(NAMES, BITS, strict=True)) | {"reason": "verified"} | changes
    return json.dumps({"solutions": [solution]}).encode()


def test_the_soak_notices_what_is_wrong() -> None:
    request = Request(b"", 200, [BITS])
    assert judge(request, 200, answer()) == "right" == judge(request, 503, b"")
    assert judge(request, 200, answer(halt_probability=0.5000001)) == "wrong"
    assert judge(request, 200, answer(status="unverified")) == "wrong"
    assert judge(request, 200, answer(answer=None, reason="deadline")) == "late"
    assert judge(request, 500, b"") == "wrong" == judge(request, 404, b"")
    assert judge(Request(b"", 422), 200, answer()) == "wrong"


@pytest.mark.slow
def test_a_short_soak() -> None:
    found = soak.run(600, clients=8, sockets=64)
    phases = [found[name] for name in ("steady", "kills", "overload", "drain")]
    phases += [found["idle_sockets"]["alone"], found["idle_sockets"]["beside"]]
    assert [(phase["wrong"], phase["5xx_but_503"]) for phase in phases] == [(0, 0)] * len(phases)
    assert found["steady"]["fds_constant"] and found["steady"]["requests"] == 600
    assert len(found["kills"]["healthy_after_seconds"]) == soak.KILLS
    assert found["drain"]["exit_code"] == 0 and found["unexpected_log_lines"] == 0
