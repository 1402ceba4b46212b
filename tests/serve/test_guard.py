"""How deep JSON nests and how much it holds is read from bytes, in linear time, before any of it is parsed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtm_kernels.serve import guard
from rtm_kernels.serve.guard import shape


def depth(body: bytes) -> int:
    return shape(body)[0]


def leaves(value: object) -> int:
    """How many names and values stand in `value`, an empty list or object being one."""
    if isinstance(value, dict) and value:
        return sum(1 + leaves(inner) for inner in value.values())
    if isinstance(value, list) and value:
        return sum(map(leaves, value))
    return 1


def nesting(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(nesting, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(nesting, value), default=0)
    return 0


VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\[]{}\n', max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='"\\[{', max_size=4), inner, max_size=3)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 16])
def test_depth_and_size_are_those_of_the_value(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "CHUNK", chunk)

    @given(VALUES)
    def check(value: object) -> None:
        assert shape(json.dumps(value).encode()) == (nesting(value), leaves(value))

    check()


@pytest.mark.parametrize(
    ("body", "expected"),
    [(b"[" * (1 << 20), 1 << 20), (b"[]" * (1 << 19), 1), (b'"' * (1 << 20), 0), (b'"\\' * (1 << 19), 0),
     (b"\\" * (1 << 20), 0), (b'"\\"' * (1 << 18) + b"[", 1)],
    ids=["open", "pairs", "quotes", "escapes", "slashes", "escaped_quotes"],
)  # fmt: skip
def test_a_megabyte_of_anything_is_read_in_linear_time(body: bytes, expected: int) -> None:
    assert depth(body) == expected  # a quadratic scan would take hours


def test_no_text_is_no_depth() -> None:
    assert depth(b"") == 0 and depth(b"17") == 0 and depth(b']]]"[[["[{') == 0
