"""Input that nobody meant: never a traceback, never a control character, always the right exit code."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtm_kernels.cli.group import ALL_VERIFIED, BAD_INPUT, NOT_ALL_VERIFIED

CELLS = st.text(alphabet=".0*123456789", min_size=75, max_size=85)
LINES = st.one_of(
    st.text(max_size=100), CELLS, st.just("puzzle,solution"), st.text(alphabet='123456789.|-+ \t,"\x00\x1b')
)
SETTINGS = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(result) -> None:
    assert result.exit_code in (ALL_VERIFIED, NOT_ALL_VERIFIED, BAD_INPUT)
    assert all(line.isprintable() and line.startswith("error: ") for line in result.stderr.split("\n")[:-1])
    statuses = {json.loads(line)["status"] for line in result.stdout.split("\n")[:-1]}
    assert (result.exit_code == BAD_INPUT) == ("invalid" in statuses or not statuses)
    assert (result.exit_code == BAD_INPUT) == bool(result.stderr)


@SETTINGS
@given(st.lists(LINES, max_size=12))
def test_any_text_on_standard_input(rtm, texts: list[str]) -> None:
    check(rtm("solve", "-", "--json", "--max-steps", "1", input="\n".join(texts).encode("utf-8", "surrogatepass")))


@SETTINGS
@given(st.lists(LINES, max_size=3))
def test_any_text_as_arguments(rtm, texts: list[str]) -> None:
    check(rtm("solve", "--json", "--max-steps", "1", "--limit", "3", "--", *texts))


@SETTINGS
@given(st.sampled_from(["--max-steps", "--batch-size", "--limit", "--rollouts", "--noise", "--halt", "--device",
                        "--executor", "--seed", "--model"]), st.text(max_size=20))  # fmt: skip
def test_any_option_value(rtm, option: str, value: str) -> None:
    result = rtm("solve", "--json", "--limit", "1", f"{option}={value}")
    assert result.exit_code in (ALL_VERIFIED, NOT_ALL_VERIFIED, BAD_INPUT)
    assert "Traceback" not in result.output and "\x1b" not in result.stderr
