"""The named training recipes, as data. `paper` and `repo` differ where a paper and its published code do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from rtm_kernels.config import ModelConfig
from rtm_kernels.train.maze_recipe import MAZE_LOCAL
from rtm_kernels.train.schema import (
    CumulativeHalting,
    DeepSupervision,
    FinalLoss,
    Recipe,
    Source,
    Stage,
    StochasticRounds,
)

SUDOKU_4X4 = Recipe(
    model=ModelConfig(
        vocab_size=6, seq_len=16, hidden_size=64, num_heads=4, layers={"L_level": 1}, H_cycles=2, L_cycles=2,
        halt_max_steps=8,
    ),
    sources={"all": Source(size=4, clues=(4, 9), count=4_000, seed=1)},
    test=Source(size=4, clues=(4, 9), count=400, seed=2),
    stages=(
        Stage(steps=180, batch_size=64, mix={"all": 1.0}, halt_max_steps=2, lr=(1.0, 0.5)),
        Stage(steps=120, batch_size=64, mix={"all": 1.0}, halt_max_steps=4, lr=(0.5, 0.02)),
    ),
    optimizer="muon", lr=8e-3, ema=0.98, warmup_steps=30, symmetric=True, eval_every=50, eval_steps=8, threads=1,
)  # fmt: skip

EASY = Source(difficulty="singles", clues=(26, 40), count=40_000, seed=101)
SPARSE = Source(difficulty="singles", clues=(22, 28), count=20_000, seed=102)
HARDEST = Source(path="data/forum_hardest.csv", count=40_724)

SUDOKU_SMALL = Recipe(
    model=ModelConfig(
        vocab_size=11, seq_len=81, hidden_size=128, num_heads=4, layers={"L_level": 2}, H_cycles=2, L_cycles=2,
    ),
    sources={
        "easy": EASY,
        "sparse": SPARSE,
        "locked": Source(difficulty="locked", count=1_000, seed=103),
        "subsets": Source(difficulty="subsets", count=400, seed=104),
        "search": Source(difficulty="search", count=600, seed=105),
    },
    test=Source(difficulty="singles", clues=(24, 32), count=500, seed=106),
    stages=(
        Stage(steps=500, batch_size=64, mix={"easy": 0.6, "sparse": 0.4}, halt_max_steps=8),
        Stage(
            steps=1_000, batch_size=64, lr=(1.0, 0.02),
            mix={"easy": 0.25, "sparse": 0.35, "locked": 0.15, "subsets": 0.1, "search": 0.15},
        ),
    ),
    optimizer="muon", lr=4e-3, ema=0.99, warmup_steps=50, symmetric=True, compile=True, eval_every=500, eval_limit=500,
)  # fmt: skip

SUDOKU_SMALL_HARD = Recipe(
    model=replace(SUDOKU_SMALL.model, hidden_size=192),
    sources={
        "easy": EASY,
        "sparse": SPARSE,
        "few_clues": Source(path="data/17_clue.csv", count=40_721),
        "hardest": HARDEST,
        "hinted": replace(HARDEST, hints=(1, 3)),
        "hinted_more": replace(HARDEST, hints=(4, 8)),
    },
    stages=(
        Stage(
            steps=600, batch_size=64, halt_max_steps=8,
            mix={"easy": 0.3, "sparse": 0.25, "few_clues": 0.25, "hinted_more": 0.2},
        ),
        Stage(
            steps=3_000, batch_size=64,
            mix={"easy": 0.06, "sparse": 0.1, "few_clues": 0.26, "hardest": 0.2, "hinted": 0.2, "hinted_more": 0.18},
        ),
        Stage(
            steps=5_600, batch_size=64, halt_max_steps=32,
            mix={"easy": 0.05, "sparse": 0.08, "few_clues": 0.25, "hardest": 0.3, "hinted": 0.2, "hinted_more": 0.12},
        ),
    ),
    optimizer="muon", lr=4e-3, min_lr_ratio=0.02, ema=0.996, warmup_steps=50, symmetric=True, compile=True,
)  # fmt: skip

SUDOKU_SMALL_HARDER = replace(
    SUDOKU_SMALL_HARD,
    model=replace(SUDOKU_SMALL_HARD.model, H_cycles=7),  # with it a step applies the block 21 times, as one of TRM does
    init="runs/sudoku-small-hard/model",
    stages=(
        Stage(
            steps=7_400, batch_size=64, H_cycles=3,
            mix={"easy": 0.03, "sparse": 0.06, "few_clues": 0.22, "hardest": 0.37, "hinted": 0.24, "hinted_more": 0.08},
        ),
    ),
    lr=3e-3, warmup_steps=100,
)  # fmt: skip

SUDOKU_SMALL_HARDEST = replace(
    SUDOKU_SMALL_HARDER,
    init="runs/sudoku-small-harder/model",
    objective=DeepSupervision(noise=0.1),
    stages=(
        Stage(
            steps=13_400, batch_size=64, halt_max_steps=32, H_cycles=3, lr=(1.0, 0.02),
            mix={"easy": 0.02, "sparse": 0.04, "few_clues": 0.2, "hardest": 0.48, "hinted": 0.2, "hinted_more": 0.06},
        ),
        Stage(
            steps=12_500, batch_size=64, halt_max_steps=32, H_cycles=3, lr=(1.0, 0.02),
            mix={"easy": 0.02, "sparse": 0.05, "few_clues": 0.27, "hardest": 0.43, "hinted": 0.17, "hinted_more": 0.06},
        ),
    ),
    lr=2e-3, aux_lr=1e-3, min_lr_ratio=1.0, ema=0.998, warmup_steps=200, compile=False,
)  # fmt: skip

TRM = ModelConfig(
    vocab_size=11, seq_len=81, arch="trm", hidden_size=512, num_heads=8, layers={"L_level": 2}, H_cycles=3, L_cycles=6,
    mixer="attention", pos_encodings="rope", puzzle_emb_ndim=512, puzzle_emb_len=16, forward_dtype="bfloat16",
)  # fmt: skip
TRM_MLP = replace(TRM, mixer="mlp", pos_encodings="none")
TRM_MAZE = replace(TRM, vocab_size=6, seq_len=900)
TRM_ARC = replace(TRM, vocab_size=12, seq_len=900)
HRM = replace(
    TRM, arch="hrm", layers={"H_level": 4, "L_level": 4}, H_cycles=2, L_cycles=2, puzzle_emb_len=0,
    halting="q_continue", q_continue_target=True,
)  # fmt: skip
HRM_MAZE = replace(HRM, vocab_size=6, seq_len=900)
HRM_ARC = replace(HRM, vocab_size=12, seq_len=900)
TRANSFORMER = replace(
    TRM, arch="transformer", layers={"H_level": 8}, H_cycles=1, L_cycles=1, puzzle_emb_len=0, halting="q_continue",
    q_continue_target=True,
)  # fmt: skip
"""The baseline of the TRM repository, with 8 heads: its 12 do not divide 512."""


def official(
    model: ModelConfig, epochs: int, eval_epochs: int, *, batch_size: int = 768, groups: int = 1000, lr: float = 1e-4,
    puzzle_lr: float = 1e-4, decay: float = 1.0, optimizer: str = "adam_atan2", ema: float = 0.999,
) -> Recipe:  # fmt: skip
    """A run of the official `pretrain.py`: constant rate after warm-up, no clipping.

    Steps are for a data set of `groups` puzzles of one example; `fit_to_data` counts again.
    """
    per_epoch = groups / batch_size
    return Recipe(
        model=model, data="", epochs=epochs, optimizer=optimizer, lr=lr, puzzle_lr=puzzle_lr, weight_decay=decay,
        puzzle_weight_decay=decay, warmup_steps=2000, grad_clip=None, ema=ema,
        eval_every=int(eval_epochs * per_epoch),
        stages=(
            Stage(steps=int(epochs * per_epoch), batch_size=batch_size, mix={"all": 1.0},
                  halt_max_steps=model.halt_max_steps),
        ),
    )  # fmt: skip


ARC: dict[str, Any] = {"epochs": 100_000, "eval_epochs": 10_000, "puzzle_lr": 1e-2, "decay": 0.1}

HRM_SUDOKU_FULL = replace(
    official(replace(HRM, L_cycles=8, pos_encodings="learned", halt_max_steps=8), 100, 10, batch_size=2304, lr=3e-4,
             puzzle_lr=3e-4, decay=0.1, groups=3_831_994, ema=0.0),
    loss="softmax_cross_entropy", min_lr_ratio=0.1,
)  # fmt: skip


def growth(total: int, batch_size: int, H: tuple[float, ...], L: tuple[float, ...], ramp: int = 0) -> tuple[Stage, ...]:
    """RSM's growing depth as stages: from 2 and 2 cycles, one more at each of these percentages of the steps.

    The n-th step is of the new depth when 100 n / total has reached its percentage. Over `ramp` steps after each
    growth the learning rate rises again from 0.
    """
    at = sorted({*H, *L})
    starts = [0, *(math.ceil(percent * total / 100) - 1 for percent in at)]
    stages: list[Stage] = []
    for start, end, percent in zip(starts, [*starts[1:], total], [0.0, *at], strict=True):
        outer, inner = (2 + sum(p <= percent for p in grown) for grown in (H, L))
        rising = min(ramp, end - start) if start else 0
        pieces = ((rising, (0.0, rising / ramp if ramp else 1.0)), (end - start - rising, (1.0, 1.0)))
        stages += [
            Stage(steps=steps, batch_size=batch_size, mix={"all": 1.0}, halt_max_steps=1, lr=lr, H_cycles=outer,
                  L_cycles=inner)
            for steps, lr in pieces if steps
        ]  # fmt: skip
    return tuple(stages)


RSM_H = (20.1, 40.1, 55.1, 65.1, 75.1, 85.1)
RSM_L = (30.1, 50.1, 70.1, 80.1, 84.1, 86.1, 88.1, 90.1, 92.1, 94.1)
RSM_SUDOKU = Recipe(
    model=replace(
        TRM_MLP, arch="rsm", layers={"core": 1}, H_cycles=8, L_cycles=12, norm_axis="hidden", tied_lm_head=True,
        halting="settle",
    ),
    data="", epochs=2, objective=FinalLoss(prob_detach_prev_H=0.99),
    stages=growth(14_968, 512, RSM_H, RSM_L),
    optimizer="adam_atan2", lr=1e-3, puzzle_lr=1e-4, betas=(0.8, 0.9), weight_decay=0.1, puzzle_weight_decay=1.0,
    warmup_steps=2000, min_lr_ratio=0.02, grad_clip=1.0, ema=0.999, eval_every=500, eval_steps=1,
)  # fmt: skip
RSM_MAZE = replace(
    RSM_SUDOKU,
    model=replace(
        RSM_SUDOKU.model, vocab_size=6, seq_len=900, layers={"core": 2}, H_cycles=9, L_cycles=5, mixer="attention",
        pos_encodings="rope",
    ),
    epochs=500, objective=FinalLoss(prob_detach_prev_H=1.0), weight_decay=1.0, eval_every=200,
    stages=growth(3_906, 128, (*RSM_H, 95.1), (30.1, 50.1, 70.1), ramp=200),
)  # fmt: skip

SUDOKU_FULL = replace(
    RSM_SUDOKU, model=replace(RSM_SUDOKU.model, puzzle_emb_ndim=0, puzzle_emb_len=0, halting="q"), epochs=None,
    augment=True, stages=growth(15_000, 512, RSM_H, RSM_L), eval_every=500, eval_steps=4,
)  # fmt: skip
SUDOKU_FULL_HALTING = replace(
    SUDOKU_FULL,
    model=replace(SUDOKU_FULL.model, H_cycles=3, L_cycles=6),
    objective=DeepSupervision(),
    init="runs/sudoku-full/model",
    lr=2e-4,
    warmup_steps=200,
    stages=(Stage(steps=5_000, batch_size=512, mix={"all": 1.0}, halt_max_steps=16, H_cycles=3, L_cycles=6),),
    eval_steps=16,
)

SUDOKU_FULL_SYMMETRIC = replace(
    SUDOKU_SMALL_HARD,
    model=replace(SUDOKU_SMALL_HARD.model, hidden_size=512, forward_dtype="bfloat16"),
    stages=tuple(
        replace(stage, steps=steps, batch_size=512)
        for stage, steps in zip(SUDOKU_SMALL_HARD.stages, (1_000, 6_000, 8_000), strict=True)
    ),
    lr=2e-3, ema=0.999, warmup_steps=200,
)  # fmt: skip

RTM_SUDOKU = Recipe(
    model=ModelConfig(
        vocab_size=11, seq_len=81, arch="rtm", hidden_size=512, num_heads=8, layers={"core": 2}, H_cycles=1,
        L_cycles=1, mixer="attention", pos_encodings="rope", qk_norm=True, halting="cumulative",
        forward_dtype="bfloat16",
    ),
    sources={"easy": Source(clues=(26, 40), count=40_000, seed=101), "search": Source(difficulty="search", count=2_000,
                                                                                      seed=105)},
    test=Source(clues=(26, 40), count=1_000, seed=106),
    objective=CumulativeHalting(ponder=0.01, entropy=0.001, min_steps=2, anneal=0.3),
    stages=(
        Stage(steps=5_000, batch_size=256, mix={"easy": 1.0}, halt_max_steps=4),
        Stage(steps=5_000, batch_size=256, mix={"easy": 0.8, "search": 0.2}, halt_max_steps=8),
        Stage(steps=10_000, batch_size=256, mix={"easy": 0.6, "search": 0.4}, halt_max_steps=16),
    ),
    optimizer="adam_atan2", lr=3e-4, warmup_steps=1000, min_lr_ratio=0.1, eval_every=1000,
)  # fmt: skip

RINS_SUDOKU = replace(
    RTM_SUDOKU,
    model=replace(
        RTM_SUDOKU.model, arch="rins", layers={"A": 2, "B": 2}, H_cycles=8, halting="fixed", qk_norm=False,
        adapter_rank=4,
    ),
    objective=StochasticRounds(keep=0.75),
    stages=(Stage(steps=20_000, batch_size=256, mix={"easy": 0.6, "search": 0.4}, halt_max_steps=1),),
    eval_steps=1,
)  # fmt: skip


URM_SUDOKU = ModelConfig(
    vocab_size=11, seq_len=81, arch="urm", hidden_size=512, num_heads=8, layers={"layers": 4}, H_cycles=2, L_cycles=6,
    mixer="attention", channel_mixer="conv", conv_width=2, pos_encodings="rope", puzzle_emb_ndim=512,
    halt_max_steps=16, forward_dtype="bfloat16",
)  # fmt: skip
EQR_SUDOKU = ModelConfig(
    vocab_size=11, seq_len=81, arch="eqr", hidden_size=512, num_heads=8, layers={"L_level": 2}, H_cycles=3, L_cycles=6,
    state_ema=0.05, noise=0.01, forward_dtype="bfloat16",
)  # fmt: skip

PRESETS: dict[str, Recipe] = {
    "sudoku-4x4": SUDOKU_4X4,
    "sudoku-small": SUDOKU_SMALL,
    "sudoku-small-hard": SUDOKU_SMALL_HARD,
    "sudoku-small-harder": SUDOKU_SMALL_HARDER,
    "sudoku-small-hardest": SUDOKU_SMALL_HARDEST,
    "trm-sudoku-paper": official(TRM_MLP, 60_000, 6_000, optimizer="adamw"),
    "trm-sudoku-repo": official(TRM_MLP, 50_000, 5_000),
    "trm-sudoku-attention": official(TRM, 50_000, 5_000),
    "trm-maze-paper": official(TRM_MAZE, 60_000, 6_000, optimizer="adamw"),
    "trm-maze-repo": official(replace(TRM_MAZE, L_cycles=4), 50_000, 5_000),
    "trm-arc-paper": official(TRM_ARC, **ARC, groups=960, optimizer="adamw"),
    "trm-arc-repo": official(replace(TRM_ARC, L_cycles=4), **ARC, groups=960),
    "trm-arc2-paper": official(TRM_ARC, **ARC, groups=1280, optimizer="adamw"),
    "trm-arc2-repo": official(replace(TRM_ARC, L_cycles=4), **ARC, groups=1280),
    "hrm-sudoku": official(HRM, 20_000, 2_000, ema=0.0),
    "hrm-sudoku-laptop": official(HRM, 20_000, 2_000, batch_size=384, lr=7e-5, puzzle_lr=7e-5, ema=0.0),
    "hrm-sudoku-full": HRM_SUDOKU_FULL,
    "hrm-maze": official(HRM_MAZE, 20_000, 2_000, ema=0.0),
    "hrm-arc": official(HRM_ARC, **ARC, groups=960, ema=0.0),
    "hrm-arc2": official(HRM_ARC, **ARC, groups=1120, ema=0.0),
    "transformer-sudoku": official(TRANSFORMER, 20_000, 2_000),
    "urm-sudoku": official(URM_SUDOKU, 50_000, 5_000),
    "urm-arc": official(replace(URM_SUDOKU, vocab_size=12, seq_len=900, H_cycles=4, L_cycles=3), **ARC, groups=960),
    "eqr-sudoku": official(EQR_SUDOKU, 50_000, 5_000),
    "rsm-sudoku": RSM_SUDOKU,
    "rsm-maze": RSM_MAZE,
    "sudoku-full": SUDOKU_FULL,
    "sudoku-full-halting": SUDOKU_FULL_HALTING,
    "sudoku-full-symmetric": SUDOKU_FULL_SYMMETRIC,
    "rtm-sudoku": RTM_SUDOKU,
    "rins-sudoku": RINS_SUDOKU,
    "maze-local": MAZE_LOCAL,
}
"""Recipes by the name that `rtm train` takes."""

ABOUT = {
    "sudoku-4x4": "4x4 Sudoku on a CPU, half a minute",
    "sudoku-small": "9x9 Sudoku on a CPU, generated puzzles, ten minutes",
    "sudoku-small-hard": "9x9 Sudoku on a CPU, an hour; reads data/17_clue.csv and data/forum_hardest.csv",
    "sudoku-small-harder": "goes on from sudoku-small-hard with deeper ACT steps; the same lists",
    "sudoku-small-hardest": "goes on from sudoku-small-harder with noise in the steps; the same lists",
    "sudoku-full": "full-size RSM for hard puzzles, a GPU, in slices; needs data=FOLDER",
    "sudoku-full-halting": "deep supervision and a halting head after sudoku-full; needs data=FOLDER",
    "sudoku-full-symmetric": "sudoku-small-hard at full size, a GPU, in slices; the same lists",
    "rtm-sudoku": "cumulative halting, generated puzzles, a GPU",
    "maze-local": "mazes of any side on a CPU, generated mazes, hours; its weights know no size",
    "rins-sudoku": "stochastic rounds, generated puzzles, a GPU",
}
"""What a recipe that brings its own puzzles is; every other one needs `data=`."""
