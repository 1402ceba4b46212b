"""The tuner under a fake clock: how it searches, what it refuses, what it writes, and which kernels it reaches."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cases, tune, tune_uses
from benchmarks.tune_uses import Use, Work
from rtm_kernels.config import ModelConfig
from rtm_kernels.ops import launch, tuned
from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.ops.swiglu.launch import TABLE
from rtm_kernels.ops.swiglu_norm.api import swiglu_norm
from tests.ops.support import swiglu_inputs

pytest.importorskip("triton")

DEFAULT = next(r for r in TABLE if r.kernel == "gate_up" and r.family == "interpreter")
FAST = {"BLOCK_F": 64}
"""What the fake clock likes in a row of gate_up, beside 8 warps."""


def channel() -> Work:
    """A tiny channel half layer, whose rows are as far from its reference as rounding allows."""
    x, gate_up, down, _ = swiglu_inputs((1, 3, 72), -1, inner=16)

    def run(impl: str = "triton") -> list[torch.Tensor]:
        with torch.no_grad():
            return [swiglu_norm(x, gate_up, down, impl=impl)]

    def refusal() -> str | None:
        row = current(run)
        if row.num_stages == 4:
            return "it is wrong"
        if row.blocks["BLOCK_N"] == 64:
            raise RuntimeError("out of resources")
        return None if torch.allclose(run()[0], run("reference")[0], atol=1e-5) else "it is wrong"

    return Work(run, refusal)


def current(run: object = None) -> LaunchRow:
    """The row of gate_up that a launch would take now; stands for a captured graph."""
    return launch.select(TABLE, "gate_up", torch.float32, 72)


def cost(row: LaunchRow) -> float:
    return 4.0 - (row.blocks["BLOCK_F"] == FAST["BLOCK_F"]) - 2 * (row.num_warps == 8)


def timer(now: LaunchRow, after: LaunchRow) -> tuple[float, float, float]:
    ratio = cost(now) / cost(after)
    return ratio, ratio - 0.01, ratio + 0.01


@pytest.fixture
def climbed() -> list[tune.Found]:
    return list(tune.climb("use", channel(), DEFAULT, time.monotonic() + 600, timer, current))


def test_the_search_goes_uphill_and_measures_the_winner_against_the_table(climbed: list[tune.Found]) -> None:
    winner = climbed[-1]
    assert winner.status == "winner" and winner.op == "swiglu_norm" and winner.row is DEFAULT
    assert (winner.candidate.num_warps, winner.candidate.blocks["BLOCK_F"]) == (8, 64)
    assert winner.ratio == pytest.approx(cost(DEFAULT) / cost(winner.candidate))
    assert any(f.candidate.variant == "tma" for f in climbed)
    assert current() is DEFAULT


def test_a_candidate_that_fails_or_is_wrong_is_never_timed(climbed: list[tune.Found]) -> None:
    for f in climbed:
        if f.candidate.num_stages == 4:
            assert f.status == "refused: it is wrong" and f.ratio is None
        elif f.candidate.blocks["BLOCK_N"] == 64:
            assert f.status == "refused: it raises RuntimeError: out of resources"
    assert len({str(f.candidate) for f in climbed[:-1]}) == len(climbed) - 1


def test_nothing_is_tried_after_the_time_is_up() -> None:
    use = Use("use", channel)
    assert tune.tune([use], time.monotonic() - 10, 1.0, timer, current) == []


def test_candidates_differ_in_one_number() -> None:
    for row in TABLE:
        for other in tune.candidates(row):
            changes = (row.num_warps != other.num_warps) + (row.num_stages != other.num_stages)
            assert changes + sum(row.blocks[k] != other.blocks[k] for k in row.blocks) == 1


def test_winners_enter_the_file_that_the_tables_read(
    climbed: list[tune.Found], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "package.json"
    path.write_text("[]")
    assert tune.report(climbed, tmp_path, write=False, path=path) == 0
    assert path.read_text() == "[]" and "BLOCK_F" in capsys.readouterr().out
    assert tune.report(climbed, tmp_path, write=True, path=path) == 0
    (written,) = json.loads(path.read_text())
    assert written["measured"]["ratio"] == pytest.approx(climbed[-1].ratio, abs=1e-4)
    assert {"gpu", "commit", "versions", "use", "low"} <= set(written["measured"])
    table = tuned.tuned("swiglu_norm", TABLE, [written])
    assert launch.select(table, "gate_up", torch.float32, 72) == climbed[-1].candidate
    assert len(table) == len(TABLE)
    everything = json.loads((tmp_path / "tuned.json").read_text())["found"]
    assert len(everything) == len(climbed)
    assert tune.report([], tmp_path, write=False, path=path) == 1


def test_of_one_row_tuned_for_two_uses_the_larger_gain_is_kept() -> None:
    base = {"op": "x", "kernel": "k", "family": "hopper", "bits": 16, "limit": 1, "num_warps": 4}
    less, more = ({**base, "num_warps": n, "measured": {"ratio": r}} for n, r in ((8, 1.1), (2, 1.3)))
    other = {**base, "limit": 2, "measured": {"ratio": 1.0}}
    assert tune.merge([{**base, "measured": {"ratio": 9.0}}, other], [more, less]) == [more, other]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {"vocab_size": 5, "seq_len": 9, "hidden_size": 80, "num_heads": 2, "expansion": 1}
    monkeypatch.setitem(cases.MODELS, "tiny", ModelConfig(**sizes))
    monkeypatch.setitem(
        cases.MODELS, "tiny-attention", ModelConfig(**{**sizes, "mixer": "attention", "pos_encodings": "rope"})
    )


def small_uses() -> list[Use]:
    """The uses of a GPU at sizes that the interpreter runs."""
    f32 = torch.float32
    return [
        *tune_uses.half_layers("tiny", 2, "cpu", "float32", ("mixer", "channel")),
        *tune_uses.half_layers("tiny-attention", 2, "cpu", "float32", ("mixer",)),
        Use("token_loss", partial(tune_uses.loss, 2, 9, 5, "cpu", f32)),
        Use("adam_atan2", partial(tune_uses.adam, ((7, 5), (3,)), "cpu")),
        Use("sign_sgd", partial(tune_uses.sign_sgd, 9, 6, 8, "cpu")),
        *(
            Use(policy, partial(tune_uses.halting, 3, 9, 16, policy, "cpu", f32))
            for policy in ("q", "cumulative_token", "settle")
        ),
    ]


def test_forward_backward_and_attention_kernels_of_every_op_are_reached(tiny: None) -> None:
    reached = set()
    for use in small_uses():
        work = use.build()
        used = tune.rows_used(work.run)
        reached |= {row.kernel for row in used}
        assert used and all(tune.table_of(row)[0] for row in used), use.name
        if "-" not in use.name or (use.name.startswith("tiny-channel") and "gradient" in use.name):
            assert work.refusal() is None, use.name
    assert reached == {
        "fused", "norm_backward", "inject", "fused_input_grad", "fused_weight_grad",
        "gate_up", "down_norm", "hidden_backward", "residual_gemm", "weight_grad",
        "attention_norm.qkv", "attention_norm.output", "attention_norm.norm_backward", "attention_norm.turn_backward",
        "attention_norm.input_grad", "attention_norm.weight_grad",
        "token_loss.forward", "token_loss.backward", "adam_atan2", "sign_sgd",
        "halting.step",
    }  # fmt: skip


def test_a_wrong_gradient_is_refused(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (use,) = [u for u in tune_uses.half_layers("tiny", 2, "cpu", "float32", ("channel",)) if "gradient" in u.name]
    work = use.build()
    original = tune_uses._gradients

    def swapped(problem: Any, impl: str) -> Any:
        run = original(problem, impl)
        return lambda: [2 * g for g in run()] if impl == "triton" else run()

    monkeypatch.setattr(tune_uses, "_gradients", swapped)
    assert "error" in str(work.refusal())


def test_without_a_gpu_it_says_so_and_lists_what_it_would_tune(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--list", "halting"]) == 0
    assert capsys.readouterr().out.split() == ["halting-q", "halting-cumulative_token", "halting-settle"]
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            tune.main([])
        assert "no CUDA device" in capsys.readouterr().err


def test_a_row_of_no_table_is_an_error() -> None:
    with pytest.raises(LookupError, match="no launch table"):
        tune.table_of(replace(DEFAULT, num_warps=2))
