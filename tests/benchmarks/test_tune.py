"""The tuner under a fake clock: how it searches, what it refuses, what it writes, and which kernels it reaches."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import tune
from benchmarks.tune import Work
from rtm_kernels.ops import launch
from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.ops.swiglu.launch import TABLE
from tests.cases import DIFFERENTIABLE, OPS, small_cases
from tests.cases.case import Tuned
from tests.gates.test_hazards import COMMIT, FENCE, PRODUCT, WAIT_0, WRITE_A, entry
from tests.ops.support import half_layer
from tests.proof.launching import every_launch
from tests.proof.tiles import tiles

pytest.importorskip("triton")

DEFAULT = next(r for r in TABLE if r.kernel == "gate_up" and r.family == "interpreter")


def channel() -> Work:
    """A tiny channel half layer, whose rows are as far from its reference as rounding allows."""
    call, leaves = half_layer("channel", (1, 3, 72), inner=16)

    def run(impl: str = "triton") -> list[torch.Tensor]:
        with torch.no_grad():
            return [call(*leaves, impl=impl)]

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
    """The fake clock: it likes blocks of 128 and 8 warps."""
    return 4.0 - (row.blocks["BLOCK_F"] == 128) - 2 * (row.num_warps == 8)


def test_a_run_that_was_cut_goes_on_with_the_uses_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune.machine, "commit", lambda: "abc")
    other = replace(DEFAULT, num_warps=8)
    found = [tune.Found("first", "swiglu", DEFAULT, other, "faster", 1.5, 1.4, 1.6)]
    tune.report(found, tmp_path, write=False, done=["first"])
    assert tune.earlier(tmp_path / "tuned.json") == (found, ["first"])
    monkeypatch.setattr(tune.machine, "commit", lambda: "def")
    assert tune.earlier(tmp_path / "tuned.json") == ([], [])
    uses = [Tuned(name, lambda _: None, 1, torch.float32) for name in ("second", "third")]
    assert tune.tune(uses, time.monotonic() - 1, timer, lambda use, new: None) == uses, "no time, nothing begun"


def timer(now: LaunchRow, after: LaunchRow) -> tuple[float, float, float]:
    ratio = cost(now) / cost(after)
    return ratio, ratio - 0.01, ratio + 0.01


def test_the_search_goes_uphill_and_its_winner_enters_the_file_that_the_tables_read(tmp_path: Path) -> None:
    climbed = list(tune.climb("use", channel(), DEFAULT, time.monotonic() + 600, timer, current))
    winner, path = climbed[-1], tmp_path / "package.json"
    assert (winner.status, winner.op, winner.row) == ("winner", "swiglu", DEFAULT)
    assert (winner.candidate.num_warps, winner.candidate.blocks["BLOCK_F"]) == (8, 128)
    assert winner.ratio == pytest.approx(cost(DEFAULT) / cost(winner.candidate))
    assert any(f.candidate.variant == "tma" for f in climbed) and current() is DEFAULT
    refused = {f.status for f in climbed if f.candidate.num_stages == 4 or f.candidate.blocks["BLOCK_N"] == 64}
    assert refused == {"refused: it is wrong", "refused: it raises RuntimeError: out of resources"}
    path.write_text("[]")
    assert tune.report(climbed, tmp_path, write=False, path=path) == 0 and path.read_text() == "[]"
    assert tune.report(climbed, tmp_path, write=True, path=path) == 0
    (written,) = json.loads(path.read_text())
    assert written["measured"]["ratio"] == pytest.approx(winner.ratio, abs=1e-4)
    table = launch.tuned("swiglu", TABLE, [written])
    assert launch.select(table, "gate_up", torch.float32, 72) == winner.candidate and len(table) == len(TABLE)
    assert len(json.loads((tmp_path / "tuned.json").read_text())["found"]) == len(climbed)


def test_forward_backward_and_attention_kernels_of_every_op_are_reached() -> None:
    reached = set()
    for case in small_cases():
        if case.op == "queue":  # its kernels have nothing to choose
            continue
        use = Tuned(case.name, lambda _, case=case: case, 1, torch.float32, gradient=case.op in DIFFERENTIABLE)
        with case.scope(), tiles(32), every_launch(lambda launch: None):
            used = tune.rows_used(tune.work_of(use, "cpu").run)
        reached |= {row.kernel for row in used}
        assert used and all(tune.table_of(row)[0] for row in used), use.name
    tables = (row for op in OPS.values() for table in op.tables.values() for row in table)
    assert reached == {row.kernel for row in tables if row.family == "interpreter" and "queue" not in row.kernel}


def test_a_row_that_overwrites_operands_of_running_products_is_refused(tmp_path: Path) -> None:
    from triton import knobs

    def refusal() -> None:  # compiles a kernel
        knobs.compilation.listener(
            src=None, metadata={}, metadata_group={"k.ptx": str(path)}, times=None, cache_hit=True
        )

    path = tmp_path / "k.ptx"
    for lines, wanted in (
        ((FENCE, PRODUCT, COMMIT, WAIT_0, WRITE_A), None),
        ((FENCE, PRODUCT, COMMIT, WRITE_A), "A of"),
    ):
        path.write_text(entry(*lines))
        assert str(tune._refusal(Work(list, refusal))).startswith(str(wanted))
    assert knobs.compilation.listener is None


def test_a_wrong_result_is_refused() -> None:
    (case,) = [c for c in small_cases() if c.name.startswith("[3, 7, 24] F=40")]
    wrong = replace(case, call=lambda impl, t: case.call(impl, t) * (1 + (impl == "triton")))
    for chosen, failures in ((case, ""), (wrong, "d_x")):
        work = tune.work_of(Tuned("channel", lambda _, c=chosen: c, 3, torch.float32, gradient=True), "cpu")
        assert failures in str(work.refusal()) and (work.refusal() is None) == (not failures)
