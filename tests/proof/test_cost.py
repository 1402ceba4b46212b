"""The cost models count what the kernels do: the interpreter's dots, exponentials, roots and distinct bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable

import pytest
import torch

from benchmarks.costs import KernelCost
from benchmarks.costs import adam_atan2 as adam_cost
from benchmarks.costs import attention_norm as attention_cost
from benchmarks.costs import conv_swiglu_norm as conv_cost
from benchmarks.costs import halting as halting_cost
from benchmarks.costs import mixer_norm as mixer_cost
from benchmarks.costs import swiglu_norm as swiglu_cost
from benchmarks.costs import token_loss as loss_cost
from benchmarks.roofline import H200, MIXERS, act_step, modelled_milliseconds, training_step
from tests.cases.attention_norm import attention
from tests.cases.case import Case, run
from tests.cases.conv import conv
from tests.cases.halting import halting
from tests.cases.optimisers import adam, sparse
from tests.cases.swiglu import channel, mixer
from tests.cases.token_loss import loss as token_loss
from tests.proof.counting import Counted, counting
from tests.proof.launching import process

pytest.importorskip("triton")
pytestmark = pytest.mark.proof("cost")

HERE = ("interpreter",)
OWN = {"element": 4, "families": HERE}


def counted(case: Case) -> list[Counted]:
    """The launches of a case, forward and backward."""
    with counting() as counts:
        run(case, "triton", case.make(torch.Generator().manual_seed(0)))
    return counts


def compare(found: Iterable[Counted], modelled: Iterable[KernelCost]) -> int:
    """Every model must have a launch with its counts, and no launch may be left over."""
    facts = sorted((c.flops, 2 * (c.exponentials + c.roots), c.bytes) for c in found)
    models = sorted((m.flops, m.special, m.bytes) for m in modelled if "PyTorch" not in m.kernel)
    assert facts == models
    return len(facts)


@pytest.mark.parametrize(
    ("batch", "length", "width", "inner", "terms"),
    [(3, 50, 24, 40, 2), (2, 150, 64, 200, 0), (2, 70, 100, 150, 0), (1, 140, 100, 33, 1), (1, 70, 150, 40, 2)],
)
def test_swiglu_norm(batch: int, length: int, width: int, inner: int, terms: int, cells: Callable[[int], None]) -> None:
    sizes = (batch, length, width, inner, terms)
    models = [*swiglu_cost.forward(*sizes, **OWN), *swiglu_cost.backward(*sizes, **OWN)]
    cells(compare(counted(channel((batch, length, width), inner, terms, "plain")), models))


@pytest.mark.parametrize("axis", ["sequence", "hidden"])
@pytest.mark.parametrize(
    ("batch", "length", "width", "inner", "terms"), [(2, 97, 150, 100, 2), (1, 20, 24, 33, 0), (2, 140, 70, 40, 1)]
)
def test_mixer_norm(
    batch: int, length: int, width: int, inner: int, terms: int, axis: str, cells: Callable[[int], None]
) -> None:
    sizes = (batch, length, width, inner, terms, axis)
    models = [*mixer_cost.forward(*sizes, **OWN), *mixer_cost.backward(*sizes, **OWN)]
    cells(compare(counted(mixer(batch, length, width, inner, axis, terms, "plain")), models))


@pytest.mark.parametrize(
    ("batch", "width", "heads", "terms", "options"), [(2, 64, 2, 2, "rope"), (1, 300, 3, 0, "qk_norm rope")]
)
def test_attention_norm(
    batch: int, width: int, heads: int, terms: int, options: str, cells: Callable[[int], None]
) -> None:
    case = attention((batch, 70, width), heads, terms, "plain", options)
    qk_norm = "qk_norm" in options
    models = [
        *attention_cost.forward(batch, 70, width, heads, terms, qk_norm, **OWN),
        *attention_cost.backward(batch, 70, width, heads, qk_norm, **OWN),
    ]
    cells(compare(counted(case), models))


@pytest.mark.parametrize("loss", ["stablemax_cross_entropy", "softmax_cross_entropy"])
def test_token_loss_bytes(loss: str) -> None:
    found = counted(token_loss((3, 70, 11), "plain", 1.0, 0.0, loss))
    sizes = (3, 70, 11, loss.startswith("stable"), 4)
    (forward,), (backward,) = loss_cost.forward(*sizes, block=64), loss_cost.backward(*sizes)
    assert [c.bytes for c in found] == [forward.bytes, backward.bytes]


@pytest.mark.parametrize(("size", "width"), [((2, 70, 24, 33), (2,)), ((1, 81, 16, 96), (3, 3))])
def test_conv_swiglu_norm_bytes(size: tuple[int, int, int, int], width: tuple[int, ...]) -> None:
    found = counted(conv(size, width, 0, "plain", 0))
    batch, length, _, inner = size
    model = conv_cost.launches(batch, length, inner, math.prod(width), element=4, block=64)
    assert [c.bytes for c in found] == [c.bytes for c in model]


def test_optimiser_bytes() -> None:
    found = counted(adam(((97, 24), (7, 130)), "plain", 0.9))
    parameters = 97 * 24 + 7 * 130
    table = 2 * (6 * 8 + 4) + 5 * 8 + 8 + 4  # rows and steps, constants, lr, found_inf
    assert [c.bytes for c in found] == [adam_cost.adam_atan2(parameters).bytes + table] * 2
    (rows,) = counted(sparse(1000, 1, 70, "plain"))
    assert rows.bytes == adam_cost.sign_sgd(1, 70).bytes + 8 + 4


@pytest.mark.parametrize("text", ["q", "cumulative_token", "settle=2"])
def test_halting_bytes(text: str) -> None:
    (fact,) = counted(halting((40, 7, 64), text, "plain"))
    per_token = text == "cumulative_token"
    model = halting_cost.step(40, 7, 64, tokens=6, vocabulary=5, per_token=per_token, element=4)
    assert 0.9 * model.bytes <= fact.bytes <= model.bytes


REPEATED = {"fused_weight_grad": (1.5, 2)}
"""Kernel -> FLOPs and special functions as compiled over those of its code: of six products three are done twice."""
ROWS = 2e7
"""Special functions that the cost models leave out: a few per row, in each thread that holds a part of it."""


def test_compiled_code_executes_what_is_modelled(cells: Callable[[int], None]) -> None:
    rows = json.loads(process("-m", "benchmarks.roofline", "--json", interpret=False))
    rows = [row for row in rows if "executed_flops" in row]
    for row in rows:
        flops, special = REPEATED.get(row["kernel"], (1, 1))
        assert row["executed_flops"] == pytest.approx(flops * row["flops"]), row
        assert 0 <= row["executed_special"] - special * row["special"] < ROWS, row
        assert row["L2_bytes"] >= 0.9 * row["bytes"], row
        assert row["milliseconds"] >= 1e3 * max(row["flops"] / H200.flops, row["bytes"] / H200.bytes), row
    cells(len(rows))


def test_an_act_step_of_the_official_sudoku_model_is_modelled_below_30_ms() -> None:
    assert 20 < modelled_milliseconds(act_step(768)) <= 30


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_training_step_is_its_forward_pass_and_the_backward_of_the_last_cycle(mixer: str) -> None:
    forward, whole = act_step(768, mixer), training_step(768, mixer)
    assert whole[: len(forward)] == forward
    added = sum(line.calls * line.cost.useful for line in whole[len(forward) :])
    of_grad_steps = sum(line.calls * line.cost.useful for line in forward) * 7 / 21  # 7 of 21 steps have a gradient
    assert 1.95 * of_grad_steps < added < 2 * of_grad_steps  # useful FLOPs of a backward are twice those of its forward
    assert modelled_milliseconds(forward) < modelled_milliseconds(whole) < 3 * modelled_milliseconds(forward)
