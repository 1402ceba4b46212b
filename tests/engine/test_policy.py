from __future__ import annotations

import pytest

from rtm_kernels.engine import HaltingPolicy
from rtm_kernels.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        "verified", "fixed", "q", "q=0.9", "settle", "settle=5", "q=0.75+settle=2",
        "cumulative", "cumulative_token+verified", "settle=3/0.001", "settle=2/1e-06", "settle=5/0.25+q=0.9",
    ],
)  # fmt: skip
def test_text_round_trip(text: str) -> None:
    assert str(HaltingPolicy.parse(text)) == text


def test_parse_reads_numbers_and_caps() -> None:
    policy = HaltingPolicy.parse("q=0.9+settle=4", min_steps=2, max_steps=7)
    assert policy == HaltingPolicy(("q", "settle"), min_steps=2, max_steps=7, q_threshold=0.9, settle_steps=4)


@pytest.mark.parametrize(
    "text",
    [
        "", "Q", "q=", "q=1.5", "q=0", "q=1..2", "settle=1.5", "settle=0", "fixed+q",
        "verified=2", "q+", "nope", "q=0.9/3", "settle=/0.1", "settle=3/0.1/2", "settle=3/1.5", "cumulative_token=1",
    ],
)  # fmt: skip
def test_bad_text_is_one_clear_error(text: str) -> None:
    with pytest.raises(InputError, match="is not allowed"):
        HaltingPolicy.parse(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_steps", 0), ("max_steps", 20_001), ("max_steps", 2.0), ("max_steps", True), ("min_steps", 0),
     ("min_steps", 17), ("q_threshold", 1.0), ("q_threshold", float("nan")), ("settle_steps", 0),
     ("settle_tolerance", -0.1)],
)  # fmt: skip
def test_bad_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        HaltingPolicy(**{field: value})
