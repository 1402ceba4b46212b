"""The halting step: the state of samples that have come differently far, after one more ACT step."""

from __future__ import annotations

import random
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.kernel import TABLE, halting_step
from rtm_kernels.ops.halting.policy import HaltingPolicy
from rtm_kernels.ops.halting.reference import Outputs, SlotStates
from tests.cases.case import MOST, SIZES, Case, Op, Tensors, Tuned, meta
from tests.ops.support import LAYOUTS, laid_out

SMALL = (
    ((5, 9, 70), "q", "plain"),
    ((33, 3, 24), "q_continue", "strided"),
    ((12, 7, 17), "cumulative", "offset"),
    ((3, 17, 24), "cumulative_token", "plain"),
    ((3, 7, 24), "q_continue+cumulative_token", "plain"),
    ((24, 9, 170), "settle=2/0.06+q", "plain"),
    ((12, 2, 5), "verified+settle=2", "plain"),
)
GATE = (  # shape of y, policy, layout
    ((5, 97, 512), "q", "plain"),
    ((70, 7, 24), "q_continue=0.6", "strided"),
    ((4, 97, 100), "cumulative", "offset"),
    ((3, 17, 64), "cumulative_token", "transposed"),
    ((3, 7, 100), "settle=2/0.06", "plain"),
    ((40, 1, 1), "fixed", "plain"),
    ((0, 9, 24), "q", "plain"),
    ((33, 3, 130), "verified", "plain"),
    ((5, 1, 7), "q_continue", "expanded"),
    ((6, 18, 40), "cumulative+settle=2", "strided"),
    ((2, 33, 17), "cumulative_token+q_continue", "plain"),
    ((31, 5, 67), "settle=3/0.05+verified", "offset"),
)
LAUNCHES = ("q", "q_continue=0.9+settle=3/0.001", "cumulative", "cumulative_token", "settle", "fixed", "verified")
BY_BATCH = ("q", "cumulative_token", "settle")
PREFIX, VOCABULARY = 1, 5


def _states(text: str, batch: int, length: int, device: torch.device | None = None) -> SlotStates:
    prefix = min(PREFIX, length - 1)
    policy = HaltingPolicy.parse(text, min_steps=2, max_steps=4)
    return SlotStates(policy, batch, length - prefix, prefix, device)


def _make(shape: tuple[int, ...], text: str, layout: str, g: torch.Generator) -> dict[str, Tensor]:
    batch, length, width = shape
    y = laid_out(shape, layout, g).detach()
    states = _states(text, batch, length)
    states.rows.copy_(states.fresh.expand(batch, -1))
    at = states.first(batch)
    for column, most in ((at.steps, 4), (at.stable, 4), (at.verified, 2), (at.answers, VOCABULARY), (at.limit, 6),
                         (at.token_halted, 2)):  # fmt: skip
        column.copy_(torch.randint(0, most, column.shape, generator=g, dtype=torch.int32))
    for column in (at.accumulated, at.token_accumulated, at.best_logit):
        column.copy_(torch.rand(column.shape, generator=g))
    logits = torch.randint(0, 3, (batch, length, VOCABULARY), generator=g).float()  # with equals
    answered = logits[::2, length - states.seq_len :]
    answered.copy_(torch.nn.functional.one_hot(at.answers[::2].long(), VOCABULARY))  # unchanged
    q, bias = torch.randn(batch, 2, generator=g), torch.tensor([0.5, 0.25])
    weight = torch.randn(2, width, generator=g) / width**0.5
    at.limit[1::3] = at.steps[1::3] + 1  # every third sample takes its last step
    # and another third is at the thresholds: a logit of 0, a sum that it makes 1, enough steps just now
    compares = "continue" in text
    q[::3, 0] = q[::3, 1] if compares else 0
    at.accumulated[::3] = at.token_accumulated[::3, ::2] = 0.5
    at.steps[::3], at.stable[::3], at.token_halted[::3] = 1, 1, 0
    weight[:, 0] = torch.tensor([1.0, 0.0])
    if layout != "expanded":
        y[::3, ::2] = 0
        y[::3, ::2, 0] = (bias[1] if compares else 0) - bias[0]
        y[2:3, -1, -1] = torch.inf
    broken = torch.randn(shape, generator=g)
    broken[1:2] = torch.inf
    return {
        "y": y, "rows": states.rows, "logits": logits, "q": q, "other": broken,
        "previous": y + 0.1 * torch.rand(batch, 1, 1, generator=g) * torch.randn(shape, generator=g),
        "weight": weight, "bias": bias,
        "confirmed": torch.rand(batch, generator=g) < 0.3,
    }  # fmt: skip


def _call(text: str, impl: str, t: Tensors) -> tuple[Tensor, ...]:
    batch, length, _ = t["y"].shape
    states = _states(text, batch, length, t["y"].device)
    states.rows.copy_(t["rows"])
    at, policy = states.first(batch), states.policy
    seen = Outputs(
        t["logits"][:, length - states.seq_len :], t["q"], t["y"], t["previous"], (t["other"],),
        (t["weight"], t["bias"]), "q_continue" in text,
    )  # fmt: skip
    halting_step_(at, policy, seen, impl=impl)
    if "verified" in policy.on:
        halting_step_(at, policy, None, t["confirmed"], impl=impl)
    return tuple(column.nan_to_num() if column.is_floating_point() else column for column in at[1:])


def halting(shape: tuple[int, ...], text: str, layout: str) -> Case:
    """One halting step under the policy `text`."""
    name = f"{list(shape)} {text} {layout}"
    return Case("halting", name, partial(_make, shape, text, layout), partial(_call, text))


def launch_halting(batch: int, length: int, width: int, text: str, dtype: torch.dtype = torch.float32) -> None:
    """One halting step on meta tensors."""
    states = _states(text, batch, length, torch.device("meta"))
    y = meta(batch, length, width, dtype=dtype)
    logits = meta(batch, length, VOCABULARY, dtype=dtype)[:, length - states.seq_len :]
    head = meta(2, width), meta(2)
    seen = Outputs(logits, meta(batch, length, 2)[:, 0], y, y, (y,), head, "q_continue" in text)
    halting_step(states.first(batch), states.policy, seen, None, False)
    if text == "verified":
        halting_step(states.first(batch), states.policy, None, meta(batch, dtype=torch.bool), False)


def draw(rng: random.Random) -> tuple[Case, torch.dtype]:
    signals = rng.sample(("q", "q=0.7", "settle=2", "settle=1/0.07", "cumulative", "cumulative_token", "verified"),
                         rng.choice((1, 1, 2, 3)))  # fmt: skip
    batch = rng.choice((1, 2, 7, 31, 33))
    length, width = rng.choice([(n, d) for n in SIZES for d in SIZES if batch * n * d <= MOST])
    return halting((batch, length, width), rng.choice(("fixed", *["+".join(signals)] * 9)), rng.choice(LAYOUTS)), \
        torch.float32  # fmt: skip


OP = Op(
    gate=[halting(*row) for row in GATE],
    small=[halting(*row) for row in SMALL],
    drawn=[draw],
    launched={
        f"halting {text} D=512 bf16": partial(launch_halting, 8, 97, 512, text, torch.bfloat16) for text in LAUNCHES
    },
    by_batch={f"halting {text}": partial(launch_halting, length=97, width=512, text=text) for text in BY_BATCH},
    tuned=[
        Tuned(f"halting-{text}", lambda b, text=text: halting((b, 97, 512), text, "plain"), 768, torch.float32)
        for text in ("q", "cumulative_token", "settle")
    ],
    tables={"halting": TABLE},
)  # fmt: skip
