"""Launch table of the row kernels; the size of a shape class is the number of features of a row.

A view says how the features of a row lie in memory: "hidden" side by side, "sequence" a token apart, and "odd" side by
side in rows that are no multiple of 16 elements, which load without vectors and so take more registers.
"""

from __future__ import annotations

from rtm_kernels.ops.launch import ANY, LaunchRow, tuned

ONE, FEW = 128, 1024
"""Most rows of a bucket. At the official Sudoku sizes the channel half has 97 rows of a puzzle, the mixer 512: up to
`FEW` rows its products run apart, because tiles of all features would fill few multiprocessors."""


def _overlap(**blocks: int) -> dict[str, int]:
    """Of a launch for few rows, most of which is its start: it overlaps with the end of the launch before."""
    return {**blocks, "OVERLAP": 1}


def _loop(flatten: int = 0, **blocks: int) -> dict[str, int]:
    return {**blocks, "GROUP": 8, "FLATTEN": flatten}


ROWS: tuple[LaunchRow, ...] = (
    # Hopper, 16-bit: wgmma; up to 128 features in one kernel, and up to 256 neighbours normalised in the product
    LaunchRow("fused", "hopper", 16, 32, {"BLOCK_R": 64, "BLOCK_F": 64, "BLOCK_N": 32}, 4, 2),
    LaunchRow("fused", "hopper", 16, 64, {"BLOCK_R": 128, "BLOCK_F": 64, "BLOCK_N": 64}, 8, 2, view="hidden"),
    LaunchRow("fused", "hopper", 16, 64, {"BLOCK_R": 64, "BLOCK_F": 64, "BLOCK_N": 64}, 4, 2, view="sequence"),
    LaunchRow("fused", "hopper", 16, 128, {"BLOCK_R": 64, "BLOCK_F": 32, "BLOCK_N": 128}, 4, 2, view="hidden"),
    LaunchRow(
        "fused", "hopper", 16, 128, {"BLOCK_R": 64, "BLOCK_F": 64, "BLOCK_N": 128}, 4, 2, view="sequence", least=FEW + 1
    ),
    LaunchRow(
        "gate_up", "hopper", 16, 128, _overlap(BLOCK_R=64, BLOCK_F=32, BLOCK_N=128), 4, 2, view="sequence", rows=FEW
    ),
    LaunchRow("gate_up", "hopper", 16, ANY, _overlap(BLOCK_R=64, BLOCK_F=32, BLOCK_N=64), 4, 4, rows=ONE),
    LaunchRow("gate_up", "hopper", 16, ANY, {"BLOCK_R": 128, "BLOCK_F": 128, "BLOCK_N": 64}, 8, 3),
    LaunchRow("gemm_norm", "hopper", 16, 128, {"BLOCK_R": 128, "BLOCK_N": 128, "BLOCK_K": 64}, 8, 3, view="hidden"),
    LaunchRow("gemm_norm", "hopper", 16, 256, {"BLOCK_R": 128, "BLOCK_N": 256, "BLOCK_K": 64}, 8, 3, view="hidden"),
    LaunchRow("gemm", "hopper", 16, ANY, {"BLOCK_R": 64, "BLOCK_N": 64, "BLOCK_K": 32}, 4, 2, view="odd"),
    LaunchRow(
        "gemm", "hopper", 16, 128, _overlap(BLOCK_R=64, BLOCK_N=32, BLOCK_K=128), 4, 4, view="sequence", rows=FEW
    ),
    LaunchRow("gemm", "hopper", 16, ANY, _overlap(BLOCK_R=64, BLOCK_N=16, BLOCK_K=128), 4, 4, view="hidden", rows=ONE),
    LaunchRow("gemm", "hopper", 16, ANY, _overlap(BLOCK_R=64, BLOCK_N=64, BLOCK_K=128), 4, 4, view="hidden", rows=FEW),
    LaunchRow("gemm", "hopper", 16, 128, {"BLOCK_R": 128, "BLOCK_N": 128, "BLOCK_K": 64}, 8, 3),
    LaunchRow("gemm", "hopper", 16, ANY, {"BLOCK_R": 128, "BLOCK_N": 256, "BLOCK_K": 64}, 8, 3),
    LaunchRow("fused_input_grad", "hopper", 16, 32, {"BLOCK_R": 64, "BLOCK_F": 32, "BLOCK_N": 32}, 4, 2),
    LaunchRow("fused_input_grad", "hopper", 16, 64, {"BLOCK_R": 64, "BLOCK_F": 32, "BLOCK_N": 64}, 4, 2),
    LaunchRow("fused_input_grad", "hopper", 16, 128, {"BLOCK_R": 64, "BLOCK_F": 32, "BLOCK_N": 128}, 4, 2),
    LaunchRow("inject", "hopper", 0, ANY, _overlap(BLOCK_R=4, BLOCK_N=512), 4, 1, rows=FEW),
    LaunchRow("norm", "hopper", 0, 128, _overlap(BLOCK_R=4, BLOCK_N=128), 4, 1, view="sequence", rows=FEW),
    LaunchRow("norm", "hopper", 0, ANY, _overlap(BLOCK_R=1, BLOCK_N=512), 4, 1, view="hidden", rows=FEW),
    # Blackwell, where four stages and, at 128 features, four warps spill
    LaunchRow(
        "gemm", "blackwell", 16, ANY, _overlap(BLOCK_R=64, BLOCK_N=64, BLOCK_K=128), 4, 3, view="hidden", rows=FEW
    ),
    LaunchRow("fused_input_grad", "blackwell", 16, 64, {"BLOCK_R": 64, "BLOCK_F": 32, "BLOCK_N": 64}, 4, 2),
    LaunchRow("fused_input_grad", "blackwell", 16, 128, {"BLOCK_R": 64, "BLOCK_F": 32, "BLOCK_N": 128}, 8, 2),
    LaunchRow("hidden_backward", "hopper", 16, ANY, {"BLOCK_R": 128, "BLOCK_F": 64, "BLOCK_N": 64}, 8, 3),
    LaunchRow("weight_grad", "hopper", 16, 64, {"BLOCK_R": 64, "BLOCK_P": 128, "BLOCK_N": 64, "SPLITS": 32}, 8, 3),
    LaunchRow("weight_grad", "hopper", 16, 128, {"BLOCK_R": 64, "BLOCK_P": 128, "BLOCK_N": 128, "SPLITS": 32}, 8, 3),
    LaunchRow("weight_grad", "hopper", 16, ANY, {"BLOCK_R": 64, "BLOCK_P": 128, "BLOCK_N": 128, "SPLITS": 4}, 8, 3),
    # alternatives for the tuner: programs that loop over tiles, weights by TMA
    LaunchRow("gate_up", "hopper", 16, ANY, _loop(BLOCK_R=128, BLOCK_F=128, BLOCK_N=32), 8, 4, variant="tma"),
    LaunchRow("gemm", "hopper", 16, ANY, _loop(BLOCK_R=128, BLOCK_N=256, BLOCK_K=64), 8, 3, variant="tma"),
    # any GPU, 16-bit
    LaunchRow("gate_up", "portable", 16, ANY, {"BLOCK_R": 128, "BLOCK_F": 64, "BLOCK_N": 32}, 8, 3),
    LaunchRow("gemm_norm", "portable", 16, 128, {"BLOCK_R": 64, "BLOCK_N": 128, "BLOCK_K": 32}, 4, 3, view="hidden"),
    LaunchRow("gemm", "portable", 16, 64, {"BLOCK_R": 64, "BLOCK_N": 64, "BLOCK_K": 32}, 4, 3),
    LaunchRow("gemm", "portable", 16, ANY, {"BLOCK_R": 64, "BLOCK_N": 64, "BLOCK_K": 32}, 4, 2, view="odd"),
    LaunchRow("gemm", "portable", 16, ANY, {"BLOCK_R": 128, "BLOCK_N": 128, "BLOCK_K": 32}, 8, 3),
    LaunchRow("hidden_backward", "portable", 16, ANY, {"BLOCK_R": 128, "BLOCK_F": 64, "BLOCK_N": 32}, 8, 2),
    LaunchRow("weight_grad", "portable", 16, ANY, {"BLOCK_R": 32, "BLOCK_P": 128, "BLOCK_N": 128, "SPLITS": 4}, 8, 3),
    # any GPU, float32: no tensor cores, ieee products
    LaunchRow("gate_up", "portable", 32, ANY, {"BLOCK_R": 64, "BLOCK_F": 32, "BLOCK_N": 16}, 8, 2),
    LaunchRow("gemm", "portable", 32, ANY, {"BLOCK_R": 64, "BLOCK_N": 64, "BLOCK_K": 16}, 8, 3, view="odd"),
    LaunchRow("gemm", "portable", 32, ANY, {"BLOCK_R": 64, "BLOCK_N": 64, "BLOCK_K": 16}, 8, 2),
    LaunchRow("hidden_backward", "portable", 32, ANY, {"BLOCK_R": 64, "BLOCK_F": 32, "BLOCK_N": 16}, 8, 2),
    LaunchRow("weight_grad", "portable", 32, ANY, {"BLOCK_R": 16, "BLOCK_P": 64, "BLOCK_N": 64, "SPLITS": 4}, 8, 2),
    LaunchRow("inject", "portable", 0, ANY, {"BLOCK_R": 4, "BLOCK_N": 512}, 4, 1),
    LaunchRow("norm", "portable", 0, 128, {"BLOCK_R": 4, "BLOCK_N": 128}, 4, 1, view="sequence", rows=FEW),
    LaunchRow("norm", "portable", 0, ANY, {"BLOCK_R": 32, "BLOCK_N": 32}, 4, 1, view="sequence"),
    LaunchRow("norm", "portable", 0, ANY, {"BLOCK_R": 1, "BLOCK_N": 512}, 4, 1, view="hidden", rows=FEW),
    LaunchRow("norm", "portable", 0, ANY, {"BLOCK_R": 8, "BLOCK_N": 256}, 4, 1),
    LaunchRow("norm_backward", "portable", 0, ANY, {"BLOCK_R": 32, "BLOCK_N": 32}, 4, 1, view="sequence"),
    # four warps spill under Triton 3.9
    LaunchRow("norm_backward", "portable", 32, ANY, {"BLOCK_R": 4, "BLOCK_N": 512}, 8, 1),
    LaunchRow("norm_backward", "portable", 0, ANY, {"BLOCK_R": 4, "BLOCK_N": 512}, 4, 1),
    # the interpreter, whose time goes by the number of programs
    LaunchRow("fused", "interpreter", 0, 32, {"BLOCK_R": 128, "BLOCK_F": 64, "BLOCK_N": 32}),
    LaunchRow("fused", "interpreter", 0, 64, {"BLOCK_R": 128, "BLOCK_F": 64, "BLOCK_N": 64}),
    LaunchRow("fused_input_grad", "interpreter", 0, 64, {"BLOCK_R": 128, "BLOCK_F": 64, "BLOCK_N": 64}),
    LaunchRow("gate_up", "interpreter", 0, ANY, {"BLOCK_R": 128, "BLOCK_F": 256, "BLOCK_N": 128}),
    LaunchRow("gemm_norm", "interpreter", 0, 128, {"BLOCK_R": 128, "BLOCK_N": 128, "BLOCK_K": 128}, view="hidden"),
    LaunchRow("gemm", "interpreter", 0, ANY, {"BLOCK_R": 128, "BLOCK_N": 128, "BLOCK_K": 128}),
    LaunchRow("hidden_backward", "interpreter", 0, ANY, {"BLOCK_R": 128, "BLOCK_F": 256, "BLOCK_N": 128}),
    LaunchRow("weight_grad", "interpreter", 0, ANY, {"BLOCK_R": 128, "BLOCK_P": 256, "BLOCK_N": 128, "SPLITS": 2}),
    LaunchRow("inject", "interpreter", 0, ANY, {"BLOCK_R": 64, "BLOCK_N": 128}),
    LaunchRow("norm", "interpreter", 0, ANY, {"BLOCK_R": 64, "BLOCK_N": 128}),
    LaunchRow("norm_backward", "interpreter", 0, ANY, {"BLOCK_R": 64, "BLOCK_N": 128}),
    LaunchRow("gate_up", "interpreter", 0, ANY, _loop(BLOCK_R=64, BLOCK_F=64, BLOCK_N=64), variant="tma"),
    LaunchRow("gemm", "interpreter", 0, ANY, _loop(BLOCK_R=64, BLOCK_N=64, BLOCK_K=64), variant="tma"),
)

TABLE = tuned("swiglu", ROWS)
VIEWS = {view: tuple(row for row in TABLE if row.view in ("", view)) for view in ("hidden", "sequence", "odd")}
"""View -> the rows that run for it: its own and, behind them in the table, those for every view."""
