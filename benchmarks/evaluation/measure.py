"""What a trained arm answers for how much compute: exact accuracy after each ACT step, and where its halting stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.evaluation.cost import step_flops
from rtm_kernels.data.task import find_tasks
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.mixture import halting_update, initial_state
from rtm_kernels.ops.halting.reference import halting_logits
from rtm_kernels.ops.token_loss.reference import IGNORE_INDEX
from rtm_kernels.program import rins
from rtm_kernels.train.schema import Recipe, StochasticRounds
from rtm_kernels.train.stream import Arrays, tensors

FIXED = "fixed"
"""Policy of a point at which every puzzle has taken the same number of steps."""


@dataclass(frozen=True)
class Point:
    """Accuracy for compute. `depth` is the cap on ACT steps (or rounds), `steps` the mean number taken.

    `verified` is the share of answers that the rules of the task confirm, None where no task is known.
    """

    policy: str
    depth: int
    steps: float
    flops: float
    exact: float
    verified: float | None


def points(model: RecursiveReasoner, recipe: Recipe, arrays: Arrays, depth: int) -> list[Point]:
    """The points of a model on the puzzles in `arrays` (see `test_arrays`), by increasing depth, halting last."""
    vocab_size = model.config.vocab_size
    if isinstance(recipe.objective, StochasticRounds):
        answers = [_once(model, arrays, rounds) for rounds in range(1, depth + 1)]
        flops = [float(step_flops(model.config, rins(rounds))) for rounds in range(1, depth + 1)]
        return [
            _point(FIXED, i + 1, i + 1, f, a, arrays, vocab_size)
            for i, (f, a) in enumerate(zip(flops, answers, strict=True))
        ]
    if all(stage.halt_max_steps == 1 for stage in recipe.stages):
        depth = 1
    each = float(step_flops(model.config))
    steps, halted, taken = trajectory(model, arrays, depth)
    found = [_point(FIXED, t, t, t * each, answer, arrays, vocab_size) for t, answer in enumerate(steps, 1)]
    if halted is not None and depth > 1:
        mean = float(taken.mean())
        found.append(_point(model.config.halting, depth, mean, mean * each, halted, arrays, vocab_size))
    return found


@torch.inference_mode()
def trajectory(
    model: RecursiveReasoner, arrays: Arrays, depth: int, batch_size: int = 256
) -> tuple[list[np.ndarray], np.ndarray | None, np.ndarray]:
    """Answers [N, seq_len] after each of `depth` ACT steps, those at which halting stops, and its steps [N].

    A unit (sequence or token) keeps the answer of its last step; a puzzle costs the steps of its slowest unit.
    """
    parts = [_trajectory(model, part, depth) for part in _batches(model, arrays, batch_size)]
    steps = [np.concatenate([p[0][t] for p in parts]) for t in range(depth)]
    halted = None if parts[0][1] is None else np.concatenate([p[1] for p in parts if p[1] is not None])
    return steps, halted, np.concatenate([p[2] for p in parts])


def _trajectory(
    model: RecursiveReasoner, part: dict[str, Tensor], depth: int
) -> tuple[list[np.ndarray], np.ndarray | None, np.ndarray]:
    config, size = model.config, len(part["inputs"])
    x = model.embed(part["inputs"], part["puzzle_identifiers"])
    latents = model.initial_latents(size)
    token = config.halting == "cumulative_token"
    state = initial_state(size, config.latent_len if token else 1, x.device)
    answers, kept = [], torch.zeros_like(part["inputs"], dtype=torch.int64)
    for _ in range(depth):
        values, logits, _ = model.act_step(latents, x)
        latents = {name: values[name] for name in model.program.carried}
        answer = logits.argmax(-1)
        answers.append(answer.cpu().numpy())
        if config.has_q_head:
            active = state.active[:, config.prefix_len :] if token else state.active
            kept = torch.where(active, answer, kept)
            q = halting_logits(values[model.program.output], model.q_head.weight, model.q_head.bias, token)
            state = halting_update(state, config.halting, q, max_steps=depth)
    return answers, kept.cpu().numpy() if config.has_q_head else None, state.sample_steps.cpu().numpy()


@torch.inference_mode()
def _once(model: RecursiveReasoner, arrays: Arrays, rounds: int, batch_size: int = 256) -> np.ndarray:
    """Answers of one pass of a RINS program."""
    found = []
    for part in _batches(model, arrays, batch_size):
        x = model.embed(part["inputs"], part["puzzle_identifiers"])
        _, logits, _ = model.act_step(model.initial_latents(len(x)), x, rins(rounds))
        found.append(logits.argmax(-1).cpu().numpy())
    return np.concatenate(found)


def _batches(model: RecursiveReasoner, arrays: Arrays, size: int) -> Iterator[dict[str, Tensor]]:
    model.eval()
    whole = tensors(arrays)
    for start in range(0, len(arrays["inputs"]), size):
        yield {name: value[start : start + size].to(model.device) for name, value in whole.items()}


def _point(
    policy: str, depth: int, steps: float, flops: float, answers: np.ndarray, arrays: Arrays, vocab_size: int
) -> Point:
    counted = arrays["labels"] != IGNORE_INDEX
    exact = float(((answers == arrays["labels"]) | ~counted).all(-1).mean())
    return Point(policy, depth, steps, flops, exact, _verified(arrays["inputs"], answers, vocab_size))


def _verified(inputs: np.ndarray, answers: np.ndarray, vocab_size: int) -> float | None:
    """Share of answers that the one task of these sizes confirms."""
    known = find_tasks(inputs.shape[1], vocab_size)
    if len(known) != 1:
        return None
    return float(known[0].verify_tokens(inputs.astype(np.uint8), answers.astype(np.uint8)).mean())


def joules(
    model: RecursiveReasoner, recipe: Recipe, arrays: Arrays, depth: int, window: float
) -> dict[str, float | str] | None:
    """Energy of answering all puzzles with `depth` ACT steps each, per call; None where no counter can be read.

    Gross, over a window of at least `window` seconds; what the counter covers is in `covers`.
    """
    rounds = isinstance(recipe.objective, StochasticRounds)

    def call(i: int) -> object:
        return _once(model, arrays, depth) if rounds else trajectory(model, arrays, depth)

    return machine.energy(call, model.device.type, window)
