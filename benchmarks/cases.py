"""What is measured, as data: models of the field at their published sizes, tasks, batch sizes, dtypes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rtm_kernels import flops
from rtm_kernels.config import ModelConfig, inner_width

PUBLISHED: dict[str, Any] = {
    "hidden_size": 512, "num_heads": 8, "puzzle_emb_ndim": 512, "puzzle_emb_len": 16, "num_puzzle_identifiers": 8,
}  # fmt: skip
ATTENTION: dict[str, Any] = {"mixer": "attention", "pos_encodings": "rope"}

MODELS: dict[str, ModelConfig] = {
    "sudoku": ModelConfig(vocab_size=11, seq_len=81, H_cycles=3, L_cycles=6, **PUBLISHED),
    "maze": ModelConfig(vocab_size=6, seq_len=900, H_cycles=3, L_cycles=4, **PUBLISHED, **ATTENTION),
    "arc1": ModelConfig(vocab_size=12, seq_len=900, H_cycles=3, L_cycles=4, **PUBLISHED, **ATTENTION),
    "hrm": ModelConfig(
        arch="hrm", vocab_size=11, seq_len=81, H_cycles=2, L_cycles=2, layers={"H_level": 4, "L_level": 4},
        halting="q_continue", **{**PUBLISHED, "puzzle_emb_len": 0}, **ATTENTION,
    ),
    "small": ModelConfig(vocab_size=11, seq_len=81, hidden_size=128, num_heads=4, H_cycles=2, L_cycles=2),
    "bundled": ModelConfig(vocab_size=11, seq_len=81, hidden_size=192, num_heads=4, H_cycles=7, L_cycles=2),
    "local": ModelConfig(
        arch="rtm", vocab_size=6, seq_len=900, hidden_size=48, num_heads=1, layers={"core": 2}, H_cycles=4, L_cycles=1,
        mixer="none", channel_mixer="conv2d", conv_width=3, inner_size=96, halting="settle",
    ),
}  # fmt: skip
"""TRM's Sudoku-Extreme (MLP mixer, L = 97), Maze-Hard and ARC-AGI-1 (attention, L = 916), HRM's Sudoku (L = 82), a
small Sudoku model (`sudoku-small`, L = 81), the bundled Sudoku model with its symmetric weights, and one as wide as the
bundled maze model, at side 30. The tables of puzzle embeddings are cut short: a step reads B rows."""

SHORT = ("sudoku_short", "small_short", "maze_short")
"""The same models with an ACT step of three program steps, for the comparison of formats and peers on a CPU."""
MODELS |= {name: replace(MODELS[name.removesuffix("_short")], H_cycles=1, L_cycles=2) for name in SHORT}

TASKS = ("mixer", "channel", "block", "act_step", "solve", "train", "train_step")
"""One half layer, the other half, one layer, one ACT step with embeddings and heads, `halt_max_steps` ACT steps, an ACT
step with the gradients of its loss for every parameter, and the same with AdamATan2's update of them."""
LATENT_TASKS = ("mixer", "channel", "block")
TRAINING = ("train", "train_step")

BATCHES = (1, 8, 64, 768)


@dataclass(frozen=True)
class Case:
    """One comparison: every provider that can run it is measured in it, in turns."""

    model: str
    task: str
    batch: int
    dtype: str
    device: str
    threads: int = 1
    """Threads of a CPU case, which every provider is given."""

    @property
    def name(self) -> str:
        """`sudoku-act_step-B8-bfloat16-cuda`; `small-solve-B1-float32-cpu-t2` where two threads are used."""
        threads = f"-t{self.threads}" if self.threads > 1 else ""
        return f"{self.model}-{self.task}-B{self.batch}-{self.dtype}-{self.device}{threads}"

    @property
    def config(self) -> ModelConfig:
        """The model's configuration in the case's dtype."""
        return replace(MODELS[self.model], forward_dtype=self.dtype)


def useful_flops(case: Case) -> int:
    """Useful FLOPs of one call, without recomputation; the backward pass of a product counts as two products."""
    config, task = case.config, case.task
    if task in LATENT_TASKS:
        return case.batch * flops.layer_flops(config, "both" if task == "block" else task)
    steps = config.halt_max_steps if task == "solve" else 1
    return case.batch * steps * flops.act_step_flops(config, train=task in TRAINING)


def useful_bytes(case: Case) -> int:
    """Bytes that one call must move if everything in between stayed on chip: weights once, latents in and out."""
    config, element = case.config, 2 if case.dtype in ("bfloat16", "float16") else 4
    length, width = config.latent_len, config.hidden_size
    taps = config.conv_width ** (2 if config.channel_mixer == "conv2d" else 1)
    channel = (3 * width + taps) * config.inner_width
    mixers = {"none": 0, "attention": 4 * width**2, "mlp": 3 * length * inner_width(length, config.expansion)}
    mixer = mixers[config.mixer]
    latent = case.batch * length * width
    if case.task in LATENT_TASKS:
        weights = {"mixer": mixer, "channel": channel, "block": mixer + channel}[case.task]
        terms = 2 if case.task == "channel" else 4  # the mixer and the block read two injected latents as well
        return element * (weights + terms * latent)
    weights = (mixer + channel) * sum(config.layers.values())
    return element * (weights + (2 * len(config.program.carried) + 1) * latent)


CPU_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "small": {
        "mixer": (64,), "channel": (64,), "block": (1, 64), "act_step": (1, 8), "solve": (1,), "train": (8,),
        "train_step": (8,),
    },
    "sudoku": {"mixer": (1,), "channel": (1,), "block": (1, 8), "act_step": (1,), "train": (1,)},
    "maze": {"mixer": (1,), "block": (1,)},
    "hrm": {"block": (1,), "act_step": (1,)},
    "bundled": {"act_step": (1, 8)},
    "local": {"act_step": (8,)},
}  # fmt: skip
"""Model -> task -> batch sizes that a small CPU does in the time of one run; the rest is reported as not run."""

PEER_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "sudoku_short": {"act_step": (1, 8, 64)},
    "small_short": {"act_step": (1, 8, 64)},
    "maze_short": {"act_step": (1, 8)},
}  # fmt: skip
"""The set `peers`, likewise: every provider of a CPU, the reduced formats included; compilation takes minutes."""

CPU_THREADED = ("small-act_step-B8", "small-solve-B1", "sudoku-block-B8", "sudoku-act_step-B1")
"""Cases that are measured once more with all cores, which is what a library takes if nobody tells it otherwise."""

GPU_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "sudoku": {
        "mixer": (8, 768), "channel": (8, 768), "block": (8, 768), "act_step": BATCHES, "solve": (1, 768),
        "train_step": (768,),
    },
    "maze": {"act_step": (1, 64)},
    "arc1": {"mixer": (64,), "act_step": (64,), "train": (64,)},
    "hrm": {"act_step": (1, 64)},
    "small": {"act_step": (1, 768), "solve": (768,)},
}  # fmt: skip


GPU_DTYPE = "bfloat16"

HEADLINES = ("sudoku-act_step-B768-", "sudoku-act_step-B1-", "sudoku-train_step-B768-")
FIRST = (*HEADLINES, "sudoku-solve-B1-", "sudoku-act_step-B8-", "sudoku-act_step-B64-", "sudoku-block-B768-")
"""How the names of the cases begin that are worth most when time is short."""

COMPILED = (("sudoku", "act_step", 1), ("sudoku", "act_step", 768), ("sudoku", "train_step", 768))
"""Model, task and batch of the cases in which torch.compile is measured on a GPU: it compiles for minutes."""


def by_worth(case: Case) -> int:
    """Rank of a case in `FIRST`, the others behind it."""
    return next((i for i, begin in enumerate(FIRST) if case.name.startswith(begin)), len(FIRST))


def dtype_on(device: str) -> str:
    """The dtype that is measured on `device`."""
    return GPU_DTYPE if device == "cuda" else "float32"


def peer_cases(threads: int) -> list[Case]:
    """The cases of the set `peers`."""
    sizes = [(m, task, b) for m, tasks in PEER_SIZES.items() for task, batches in tasks.items() for b in batches]
    return [Case(model, task, batch, "float32", "cpu", threads) for model, task, batch in sizes]


def cases(device: str, cores: int | None = None) -> Iterator[tuple[Case, str | None]]:
    """Every case for `device` ("cpu" or "cuda"), and why it is not run there (None when it is)."""
    here, dtype = CPU_SIZES if device == "cpu" else GPU_SIZES, dtype_on(device)
    for model in dict.fromkeys((*here, *(name for name in MODELS if name not in SHORT))):
        for task in TASKS:
            wanted = here.get(model, {}).get(task, ())
            for batch in sorted({*BATCHES, *wanted}):
                reason = None if batch in wanted else f"not in the {device} set of benchmarks/cases.py"
                case = Case(model, task, batch, dtype, device)
                yield case, reason
                if device == "cpu" and case.name.removesuffix("-float32-cpu") in CPU_THREADED:
                    yield from _threaded(case, cores or len(os.sched_getaffinity(0)))


def _threaded(case: Case, cores: int) -> Iterator[tuple[Case, str | None]]:
    reason = None if cores > 1 else "there is one core"
    yield replace(case, threads=max(2, cores)), reason
