"""Small configurations that reach every kernel and every branch, for the proofs that run each case many times."""

from __future__ import annotations

from rtm_kernels import program as programs
from rtm_kernels.ops.token_loss.api import LOSSES
from tests.gates import (
    interpret_adam_atan2,
    interpret_attention_norm,
    interpret_halting,
    interpret_mixer_norm,
    interpret_persistent,
    interpret_queue,
    interpret_swiglu_norm,
    interpret_token_loss,
)
from tests.gates.interpret_gate import OpCase

SWIGLU = (
    ((3, 7, 24), 40, 2, "plain"),  # one kernel each way
    ((2, 11, 70), 33, 0, "plain"),  # the down product normalises
    ((2, 9, 70), 24, 1, "strided"),
    ((1, 5, 136), 24, 0, "offset"),  # wider than any tile
)
MIXER = (
    (2, 17, 24, 33, "sequence", 2, "plain"),
    (2, 7, 20, 24, "hidden", 1, "transposed"),
    (1, 130, 20, 24, "sequence", 1, "plain"),
    (1, 131, 17, 20, "hidden", 0, "strided"),
)
ATTENTION = (
    ((3, 7, 24), 3, 1, "strided", "rope qk_norm"),
    ((2, 9, 32), 2, 2, "plain", "rope causal"),
    ((1, 5, 130), 1, 0, "plain", "qk_norm"),
    ((1, 6, 144), 2, 0, "offset", ""),
)
HALTING = (
    ((5, 9, 70), "q", "first", "plain"),
    ((33, 3, 24), "q_continue", "mean", "strided"),
    ((4, 7, 17), "cumulative_sequence", "first", "offset"),
    ((3, 17, 24), "cumulative_token", "token", "plain"),
    ((24, 9, 170), "settle", "first", "plain"),
    ((40, 1, 1), "fixed", "first", "plain"),
)
TOKEN_LOSS = (((3, 67, 11), "plain", 3.0, 0.3), ((2, 5, 70), "transposed", 10.0, 0.2))
ADAM = ((((97, 24), (1,), (7, 130)), "plain", 0.9), (((511,), (513,)), "offset", 0.0))
SPARSE = ((5, 9, 70, "plain"), (3, 12, 24, "strided"))
PERSISTENT = (
    (2, 9, 24, (20, 40), "sequence", "q", "first", 2, programs.trm(1, 1)),
    (3, 5, 40, (18, 50), "hidden", "cumulative_token", "token", 1, programs.rtm(1)),
    (3, 5, 24, (20, 40), "hidden", "settle", "first", 1, programs.transformer()),
)
QUEUE = ((5, 5, 7, (9, 70)), (7, 7, 7, (3, 40)))


def small_cases() -> list[OpCase]:
    """A few configurations of each op; together they launch every kernel."""
    return [
        *(interpret_swiglu_norm.case(*row) for row in SWIGLU),
        *(interpret_swiglu_norm.case(*row, variant="tma") for row in SWIGLU[1:]),
        *(interpret_mixer_norm.case(*row) for row in MIXER),
        *(interpret_attention_norm.case(*row) for row in ATTENTION),
        *(interpret_halting.case(*row) for row in HALTING),
        *(interpret_token_loss.case(*row, loss) for row in TOKEN_LOSS for loss in LOSSES),
        *(interpret_adam_atan2.case(*row) for row in ADAM),
        *(interpret_adam_atan2.sparse_case(*row) for row in SPARSE),
        *(interpret_persistent.case(*row) for row in PERSISTENT),
        *(interpret_queue.case(*row) for row in QUEUE),
    ]


def name_of(case: OpCase) -> str:
    """A test id."""
    return f"{case.op}-{case.shape}".replace(" ", "")
