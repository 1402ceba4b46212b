"""The tape: numbers mean what is documented, and what does not fit is refused by name."""

from __future__ import annotations

import pytest

from rtm_kernels import program as programs
from rtm_kernels.errors import InputError
from rtm_kernels.program import INPUT, Program, Step
from rtm_kernels.recursion.tape import MAX_TERMS, encode, layer_rows, numbers, why_not_program

STEPS = (Step("y", ("z", "y"), (INPUT,), "high", grad=False), Step("z", ("y",), (), "low"))


def test_numbers_mean_what_is_documented() -> None:
    program = Program("p", STEPS, output="y")
    assert numbers(program) == {"z": 0, "y": 1, INPUT: 2} and program.stacks == ("high", "low")
    assert encode(program) == [(1, 0, [0, 1], [2]), (0, 1, [1], [])]


def test_rows_name_the_layers_and_the_latents_whose_norm_is_pending() -> None:
    program = Program("p", STEPS, output="y")
    rest = MAX_TERMS * [0]
    assert layer_rows(program, {"low": range(2, 3), "high": range(2)}).tolist() == [
        [1, 0, 2, 1, 0, 2, *rest[2:], 4, *rest[1:]],
        [1, 1, 1, 0, 3, *rest[1:], *rest],
        [0, 2, 1, 0, 3, *rest[1:], *rest],
    ]


@pytest.mark.parametrize("role", ["state", "inject"])
def test_a_sum_that_is_too_long_is_refused_by_name(role: str) -> None:
    fits = {"state": ("y",), role: ("y",) * MAX_TERMS}
    long = {"state": ("y",), role: ("y",) * (MAX_TERMS + 1)}
    assert why_not_program(Program("p", (Step("y", **fits),), "y")) is None
    program = Program("p", (Step("y", ("y",)), Step("y", **long)), "y")
    with pytest.raises(InputError, match=rf"steps\[1\]\.{role} sums 9 latents, and a tape holds at most 8"):
        encode(program)


def test_averages_and_adapters_have_no_tape() -> None:
    assert "keeps 0.25 of its latent" in str(why_not_program(programs.averaged(programs.rtm(1), 0.25)))
