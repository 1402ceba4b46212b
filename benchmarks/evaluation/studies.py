"""The studies as data: what is varied, and the recipe that it is varied on, for a small CPU and for a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.evaluation.cost import aligned, training_flops
from rtm_kernels.train.configure import fit_to_data, override
from rtm_kernels.train.recipe import PRESETS
from rtm_kernels.train.schema import Recipe, Source, Stage
from rtm_kernels.train.text_recipe import TEXT_SMALL, TextRecipe


@dataclass(frozen=True)
class Scale:
    """The recipe that every arm is a change of, and the sizes that the studies try on it.

    `steps` ACT steps are evaluated on `puzzles` puzzles. `depths` holds (layers, H_cycles, L_cycles) of equal
    applications of a layer per ACT step; the first is the base recipe's.
    """

    name: str
    base: Recipe
    seeds: int
    puzzles: int
    steps: int
    prefixes: tuple[int, ...]
    caps: tuple[int, ...]
    depths: tuple[tuple[int, int, int], ...]
    ponder: float

    @property
    def layers(self) -> int:
        """Distinct layers of the base recipe."""
        return self.depths[0][0]

    @property
    def applied(self) -> int:
        """Layers applied in one ACT step of the base recipe."""
        layers, outer, inner = self.depths[0]
        return layers * outer * (inner + 1)


CPU = Scale(
    name="cpu",
    base=replace(
        PRESETS["sudoku-4x4"],
        model=replace(PRESETS["sudoku-4x4"].model, hidden_size=32),
        test=Source(size=4, clues=(4, 5), count=800, seed=2),
        stages=(
            Stage(steps=130, batch_size=64, mix={"all": 1.0}, halt_max_steps=4),
            Stage(steps=70, batch_size=64, mix={"all": 1.0}, halt_max_steps=4, lr=(1.0, 0.02)),
        ),
        ema=0.99, symmetric=False, aux_lr=0.03, eval_every=0, eval_limit=64, eval_steps=1,
    ),
    seeds=3, puzzles=500, steps=8, prefixes=(0, 4, 16), caps=(1, 2, 4, 8),
    depths=((1, 2, 2), (2, 1, 2), (3, 1, 1)), ponder=0.05,
)  # fmt: skip
GPU = Scale(
    name="gpu",
    base=replace(PRESETS["trm-sudoku-repo"], eval_every=0, eval_limit=64, eval_steps=1),
    seeds=3, puzzles=10_000, steps=16, prefixes=(0, 16, 64), caps=(1, 4, 16, 32),
    depths=((2, 3, 6), (7, 2, 2), (14, 1, 2), (21, 1, 1)), ponder=0.01,
)  # fmt: skip
SCALES = {scale.name: scale for scale in (CPU, GPU)}
"""4x4 Sudoku, generated; and the published Sudoku-Extreme recipe, whose data set has to be given."""


@dataclass(frozen=True)
class Arm:
    """One contestant of a study, as overrides of the base recipe."""

    name: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A question, and the arms that answer it."""

    question: str
    arms: Callable[[Scale], tuple[Arm, ...]]


@dataclass(frozen=True)
class TextStudy:
    """A question about text models, and the arms that answer it."""

    question: str
    arms: Callable[[TextRecipe], tuple[Arm, ...]]


ONCE = ("model.halt_max_steps=1", "stages.*.halt_max_steps=1")


def _layers(**count: int) -> str:
    return f"model.layers={json.dumps(count)}"


def fixed_depth(layers: int, name: str = "") -> Arm:
    """A transformer of that many layers of the same kind, each of its own, applied once."""
    cycles = ("model.H_cycles=1", "model.L_cycles=1")
    return Arm(name or f"{layers} layers, fixed", ("model.arch=transformer", _layers(H_level=layers), *cycles, *ONCE))


def _baselines(scale: Scale) -> tuple[Arm, ...]:
    return (
        Arm("recursive"),
        fixed_depth(scale.layers, "fixed, same parameters"),
        fixed_depth(scale.applied, "fixed, FLOPs of 1 step"),
        fixed_depth(2 * scale.applied, "fixed, FLOPs of 2 steps"),
    )


def _no_regret(scale: Scale) -> tuple[Arm, ...]:
    size = ("model.arch=rins", _layers(A=scale.layers, B=scale.layers), "model.halting=fixed", *ONCE)

    def arm(name: str, rounds: int, keep: float) -> Arm:
        objective = json.dumps({"kind": "stochastic_rounds", "keep": keep})
        return Arm(name, (*size, f"model.H_cycles={rounds}", f"objective={objective}"))

    return arm("1 round, fixed", 1, 1.0), arm("4 rounds, fixed", 4, 1.0), arm("4 rounds, stochastic", 4, 0.5)


def _mixer(scale: Scale) -> tuple[Arm, ...]:
    return (
        Arm("mlp", ("model.mixer=mlp", 'model.pos_encodings="none"')),
        Arm("attention", ("model.mixer=attention", "model.pos_encodings=rope")),
    )


def _symmetry(scale: Scale) -> tuple[Arm, ...]:
    model = ("model.mixer=mlp", 'model.pos_encodings="none"', "model.puzzle_emb_ndim=0", "model.puzzle_emb_len=0")
    return Arm("free", model), Arm("symmetric", (*model, "symmetric=true"))


def _halting(scale: Scale) -> tuple[Arm, ...]:
    model = ("model.arch=rtm", _layers(core=scale.layers), "model.H_cycles=1", "model.L_cycles=1")
    objective = json.dumps({"kind": "cumulative_halting", "ponder": scale.ponder, "entropy": 0.001, "min_steps": 1})
    return (
        Arm("per token", (*model, "model.halting=cumulative_token", f"objective={objective}")),
        Arm("per sequence", (*model, "model.halting=cumulative", f"objective={objective}")),
        Arm("q head", model),
    )


def _workspace(scale: Scale) -> tuple[Arm, ...]:
    none = ("model.puzzle_emb_ndim=0",)
    return tuple(Arm(f"prefix {n}", (*none, f"model.puzzle_emb_len={n}")) for n in scale.prefixes)


def _step_cap(scale: Scale) -> tuple[Arm, ...]:
    return tuple(Arm(f"T = {t}", (f"model.halt_max_steps={t}", f"stages.*.halt_max_steps={t}")) for t in scale.caps)


def _sharing(scale: Scale) -> tuple[Arm, ...]:
    n, rounds = scale.layers, scale.applied // scale.layers
    full = ("model.arch=rtm", _layers(core=n), f"model.H_cycles={rounds}", "model.L_cycles=1", *ONCE)
    part = ("model.arch=rins", _layers(A=n, B=n), f"model.H_cycles={rounds - 1}", "model.L_cycles=1", *ONCE)
    return Arm("full", full), Arm("partial", part), fixed_depth(scale.applied, "none")


def _depth(scale: Scale) -> tuple[Arm, ...]:
    arms = []
    for layers, outer, inner in scale.depths:
        cycles = (f"model.H_cycles={outer}", f"model.L_cycles={inner}")
        arms.append(Arm(f"{layers} x {outer * (inner + 1)}", (_layers(L_level=layers), *cycles)))
    return (*arms, fixed_depth(scale.applied, f"{scale.applied} x 1, fixed"))


STUDIES: dict[str, Study] = {
    "compute-aligned": Study("Recursion against a fixed-depth transformer of equal parameters, or FLOPs", _baselines),
    "no-regret": Study("What stochastic rounds cost a model run for few rounds, or many (RINS)", _no_regret),
    "mixer": Study("Mixing tokens by a SwiGLU over the sequence or by attention", _mixer),
    "symmetry": Study("Weights that commute with the symmetries of the task, or free ones", _symmetry),
    "halting": Study("Halting per token, per sequence (cumulative), or by the q head", _halting),
    "workspace": Study("Latent positions beyond those of the puzzle", _workspace),
    "step-cap": Study("The cap T on ACT steps in training", _step_cap),
    "sharing": Study("One block for all depths, one for all but the last (RINS), or one for each", _sharing),
    "depth": Study("Recursion or depth: layers x applications in one ACT step, equal in number", _depth),
}  # fmt: skip


TEXT_CPU = replace(
    TEXT_SMALL,
    model=replace(
        TEXT_SMALL.model, byte_size=64, byte_inner=176, decoder_layers=1,
        backbone=replace(TEXT_SMALL.model.backbone, hidden_size=128, inner_size=352, adapter_rank=0, H_cycles=2),
    ),
    steps=1000, keep=1.0, eval_every=0, eval_bytes=300_000,
)  # fmt: skip
TEXT_GPU = replace(
    TEXT_SMALL,
    model=replace(
        TEXT_SMALL.model, byte_size=256, byte_inner=704, decoder_layers=2, encoder_layers=2,
        backbone=replace(
            TEXT_SMALL.model.backbone, hidden_size=512, num_heads=8, inner_size=1408, seq_len=512, adapter_rank=0,
            layers={"A": 3, "B": 3}, forward_dtype="bfloat16",
        ),
    ),
    steps=10_000, batch_size=64, keep=1.0, eval_every=0, eval_bytes=2_000_000, lr=2e-3, aux_lr=2e-3,
)  # fmt: skip
TEXT_SCALES = {"cpu": TEXT_CPU, "gpu": TEXT_GPU}
"""Text recipes that the arms of the text study are changes of, by scale."""


def _text(base: TextRecipe) -> tuple[Arm, ...]:
    """RINS of one round is the fixed depth of equal parameters."""
    backbone = "model.backbone."
    n, below = base.model.backbone.layers["A"], base.model.backbone.layers["B"]

    def rins(name: str, rounds: int, layers: int = n, *more: str) -> Arm:
        count = json.dumps({"A": layers, "B": below})
        return Arm(name, (f"{backbone}layers={count}", f"{backbone}H_cycles={rounds}", *more))

    drawn = (f"{backbone}adapter_rank=8", "keep=0.5")
    halting = (
        f"{backbone}arch=rtm", f"{backbone}layers={json.dumps({'core': n + below})}", f"{backbone}H_cycles=1",
        f"{backbone}halting=cumulative_token", f"{backbone}halt_max_steps=3", "ponder=0.01",
    )  # fmt: skip
    return (
        rins("fixed, RINS r = 1", 1),
        rins("fixed, FLOPs of r = 2", 1, 2 * n),
        rins("RINS r = 2", 2),
        rins("RINS r = 3", 3),
        rins("RINS r drawn, 1 to 4", 4, n, *drawn),
        Arm("RTM, words halt", halting),
    )


TEXT_STUDIES: dict[str, TextStudy] = {
    "text": TextStudy("What recursion over words buys in bits per byte at equal training FLOPs", _text)
}


def recipes(study: Study, scale: Scale, changes: tuple[str, ...] = (), seed: int = 0) -> dict[str, Recipe]:
    """Arm -> its recipe, with as many steps as the training FLOPs of the base recipe pay for."""
    base = replace(fit_to_data(override(scale.base, list(changes))), epochs=None, seed=seed)
    total = training_flops(base)
    return {arm.name: aligned(override(base, list(arm.changes)), total) for arm in study.arms(scale)}
