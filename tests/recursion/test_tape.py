"""The tape: every program survives encoding, numbers mean what is documented, and what does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rtm_kernels import program as programs
from rtm_kernels.errors import InputError
from rtm_kernels.program import INPUT, Program, Step
from rtm_kernels.recursion import tape
from rtm_kernels.recursion.tape import MAX_TERMS, WIDTH, Tape, decode, encode, why_not_program

LATENTS = ("a", "b", "c", "d")
TERMS = st.lists(st.sampled_from((*LATENTS, INPUT)), max_size=MAX_TERMS).map(tuple)
STEPS = st.builds(
    Step,
    dst=st.sampled_from(LATENTS),
    state=TERMS.filter(bool),
    inject=TERMS,
    stack=st.sampled_from(("low", "high")),
    grad=st.booleans(),
)
PROGRAMS = st.builds(Program, st.just("any"), st.lists(STEPS, max_size=6).map(tuple), st.sampled_from(LATENTS))


@pytest.mark.parametrize("arch", programs.BUILDERS)
def test_every_architecture_and_prefix_survives(arch: str) -> None:
    program = programs.build(arch, 3, 6)
    for n in range(len(program) + 1):
        assert decode(encode(program[:n])) == program[:n]


@given(PROGRAMS)
def test_any_program_survives(program: Program) -> None:
    assert decode(encode(program)) == program


def test_columns_mean_what_is_documented() -> None:
    steps = (Step("y", ("z", "y"), (INPUT,), "high", grad=False), Step("z", ("y",), (), "low"))
    encoded = encode(Program("p", steps, output="y"))
    assert encoded.slots == (INPUT, "z", "y")
    assert encoded.stacks == ("high", "low")
    assert encoded.output == 2
    assert encoded.written() == (2, 1)
    none = [-1] * MAX_TERMS
    assert encoded.rows.tolist() == [
        [2, 0, 0, 2, 1, 1, 2, *none[2:], 0, *none[1:]],
        [1, 1, 1, 1, 0, 2, *none[1:], *none],
    ]


@pytest.mark.parametrize("role", ["state", "inject"])
def test_a_sum_that_is_too_long_is_refused_by_name(role: str) -> None:
    fits = {"state": ("y",), role: ("y",) * MAX_TERMS}
    long = {"state": ("y",), role: ("y",) * (MAX_TERMS + 1)}
    assert why_not_program(Program("p", (Step("y", **fits),), "y")) is None
    program = Program("p", (Step("y", ("y",)), Step("y", **long)), "y")
    with pytest.raises(InputError, match=rf"steps\[1\]\.{role} sums 9 latents, and a tape holds at most 8"):
        encode(program)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (tape.DST, 9, r"rows\[0\]\.dst=9 is not allowed: 0 to 2"),
        (tape.STACK, -1, r"rows\[0\]\.stack=-1"),
        (tape.N_STATE, MAX_TERMS + 1, r"n of rows\[0\]\.state=9 is not allowed: 0 to 8"),
        (tape.N_STATE, 0, r"at least one latent is summed"),
        (tape.DST, 0, r"the input embedding is read-only"),
        (tape.TERMS, 3, r"rows\[0\]\.state=3"),
        (tape.TERMS + MAX_TERMS, -1, r"rows\[0\]\.inject=-1"),
    ],
)
def test_a_row_that_stands_for_nothing_is_refused(column: int, value: int, message: str) -> None:
    encoded = encode(programs.trm(1, 1))
    encoded.rows[0, column] = value
    with pytest.raises(InputError, match=message):
        decode(encoded)


def test_a_row_of_another_width_is_refused() -> None:
    encoded = encode(programs.rtm(1))
    narrow: Tape = replace(encoded, rows=encoded.rows[:, :-1])
    with pytest.raises(InputError, match=rf"{WIDTH - 1} columns, a step has {WIDTH}"):
        decode(narrow)
