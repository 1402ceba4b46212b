"""FLOPs of training a recipe and of answering a puzzle, a multiply-add being two; the backward pass counts double."""

from __future__ import annotations

from dataclasses import replace

from rtm_kernels.config import ModelConfig
from rtm_kernels.flops import act_step_flops, layer_flops
from rtm_kernels.program import Program, rins
from rtm_kernels.train.schema import CumulativeHalting, FinalLoss, Recipe, Stage, StochasticRounds


def head_flops(config: ModelConfig) -> int:
    """FLOPs of the output and halting heads for one puzzle, after one ACT step."""
    units = config.latent_len if config.halting == "cumulative_token" else 1
    halting = 4 * config.hidden_size * units if config.has_q_head else 0
    return 2 * config.latent_len * config.hidden_size * config.vocab_size + halting


def step_flops(config: ModelConfig, program: Program | None = None) -> int:
    """FLOPs of one ACT step of one puzzle: the layers of the program, and the heads."""
    return act_step_flops(config, program=program) + head_flops(config)


def with_gradient(config: ModelConfig) -> int:
    """FLOPs of the part of an ACT step that has a gradient."""
    return (act_step_flops(config, train=True) - act_step_flops(config)) // 2 + head_flops(config)


def sample_flops(recipe: Recipe, stage: Stage) -> float:
    """FLOPs that one sample costs in one optimiser step of a stage, in the mean over what the objective draws."""
    config, objective = stage.model(recipe.model), recipe.objective
    if isinstance(objective, CumulativeHalting):
        return 3.0 * config.halt_max_steps * step_flops(config)
    if isinstance(objective, StochasticRounds):
        fewest, one_more = (step_flops(config, rins(r)) for r in (1, 2))
        return 3.0 * (fewest + objective.keep * (config.H_cycles - 1) * (one_more - fewest))
    chained = 0.0
    if isinstance(objective, FinalLoss) and config.H_cycles > 1:
        chained = (1 - objective.prob_detach_prev_H) * config.layers["core"] * layer_flops(config)
    again = step_flops(config) if config.q_continue_target and config.halt_max_steps > 1 else 0
    return step_flops(config) + again + 2 * (with_gradient(config) + chained)


def training_flops(recipe: Recipe) -> float:
    """FLOPs of all optimiser steps of `recipe`; evaluations on the way are not counted."""
    return sum(stage.steps * stage.batch_size * sample_flops(recipe, stage) for stage in recipe.stages)


def aligned(recipe: Recipe, flops: float) -> Recipe:
    """`recipe` with as many steps, in the same proportions, as `flops` pay for."""
    factor = flops / training_flops(recipe)
    stages = tuple(replace(s, steps=max(1, round(s.steps * factor))) for s in recipe.stages)
    return replace(recipe, stages=stages, warmup_steps=max(1, round(recipe.warmup_steps * factor)), epochs=None)
