"""The recipe of mazes, as data: sides that grow, on a CPU."""

from __future__ import annotations

from collections.abc import Mapping

from rtm_kernels.config import ModelConfig
from rtm_kernels.train.schema import MaskedSupervision, Recipe, Source, Stage


def mazes(*sides: int, count: int = 2048) -> dict[str, Source]:
    """Sources of generated mazes, by name."""
    return {f"side{side}": Source(task="maze", size=side, count=count, seed=1000 + side) for side in sides}


def maze_stages(steps: Mapping[int, int]) -> tuple[Stage, ...]:
    """One stage for each side, with so many steps; a sample takes at most 8 + 2 * side of them."""
    return tuple(
        Stage(steps=count, batch_size=48, mix={f"side{side}": 1.0}, halt_max_steps=8 + 2 * side)
        for side, count in steps.items()
    )


MAZE_LOCAL = Recipe(
    model=ModelConfig(
        vocab_size=6, seq_len=900, arch="rtm", hidden_size=48, num_heads=1, layers={"core": 2}, H_cycles=4, L_cycles=1,
        mixer="none", channel_mixer="conv2d", conv_width=3, inner_size=96, halting="settle", halt_max_steps=68,
    ),
    sources=mazes(*range(5, 17), 20, 27) | mazes(24, 36, count=4096) | mazes(30, count=8192) | mazes(48, count=3072)
    | mazes(64, count=1024),
    test=Source(task="maze", size=30, count=200, seed=77),
    objective=MaskedSupervision(leave=0.3),
    stages=(
        *maze_stages({side: 100 if side < 11 else 150 for side in range(5, 14)} | {14: 200, 15: 200, 16: 800}),
        Stage(
            steps=2_750, batch_size=24, lr=(0.5, 0.5), halt_max_steps=68,
            mix={"side16": 0.1, "side20": 0.15, "side24": 0.2, "side27": 0.2, "side30": 0.35},
        ),
        Stage(
            steps=1_425, batch_size=24, lr=(0.5, 0.3325625), halt_max_steps=104,
            mix={"side20": 0.1, "side24": 0.2, "side30": 0.4, "side36": 0.2, "side48": 0.1},
        ),
        Stage(steps=1_000, batch_size=24, lr=(0.3, 0.02), halt_max_steps=40,
              mix={"side24": 0.2, "side30": 0.7, "side36": 0.1}),
        Stage(
            steps=6_300, batch_size=24, lr=(0.4, 0.01), halt_max_steps=56,
            mix={"side24": 0.08, "side30": 0.42, "side36": 0.15, "side48": 0.2, "side64": 0.15},
        ),
    ),
    optimizer="adamw", lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_steps=100, ema=0.998, threads=1,
    loss="softmax_cross_entropy", eval_every=1000, eval_limit=50, eval_steps=100,
)  # fmt: skip
