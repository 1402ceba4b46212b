"""A task whose every outcome a test can choose, and an executor that plays it, so that steps can be predicted.

A puzzle is four characters of 0..7. Its answer is the puzzle reversed. The first character is how many steps the
executor needs before it answers correctly (before, it answers `1111`), the second how many before its head says
halt, 0 meaning never. A puzzle that ends in 7 turns to NaN in its second step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.data.task import Task, Verdict
from rtm_kernels.engine import HaltingPolicy, Solution, Solver
from rtm_kernels.engine.executor import Act, ActStep
from rtm_kernels.engine.rollouts import RolloutSlots
from rtm_kernels.engine.samples import Finished
from rtm_kernels.engine.slots import Slots
from rtm_kernels.model import RecursiveReasoner
from tests.recursion.support import Recorder

SEQ_LEN = 4


class Reverse(Task):
    name = "reverse"
    vocabulary = "01234567"
    seq_len = SEQ_LEN

    def verify(self, puzzle: str, answer: str) -> Verdict:
        return Verdict(answer == puzzle[::-1], "" if answer == puzzle[::-1] else "not reversed")


TASK = Reverse()


def config(**changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "vocab_size": TASK.vocab_size, "seq_len": SEQ_LEN, "hidden_size": 16, "num_heads": 2,
        "layers": {"L_level": 1}, "H_cycles": 1, "L_cycles": 1, "halt_max_steps": 8,
    }  # fmt: skip
    return ModelConfig.from_dict(values | changes)


class ScriptedExecutor:
    """Counts its own steps in the latents and plays the script that the puzzle's characters give."""

    name = "scripted"
    batch_invariant = False

    def __init__(self, model: RecursiveReasoner) -> None:
        self.model = model
        self.batch_sizes: list[int] = []

    @property
    def recorded(self) -> Act:
        return self._play

    def check(self) -> None:
        """Nothing fails on a device."""

    def step(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        self.batch_sizes.append(len(x))
        return self._play(latents, x)

    def _play(self, latents: Mapping[str, Tensor], x: Tensor) -> ActStep:
        tokens = (x[..., 0] / x.shape[-1] ** 0.5).round().long()  # [B, S], see `model`
        values = tokens - 1
        new = {name: latent + 1 for name, latent in latents.items()}
        step = new["z_H"][:, 0, 0]
        right = step >= values[:, 0]
        answer = torch.where(right[:, None], tokens.flip(1), 2)
        logits = (answer[..., None] == torch.arange(self.model.config.vocab_size)).float()
        halts = (step >= values[:, 1]) & (values[:, 1] > 0)
        q = torch.where(halts, 2.0, -2.0)[:, None].repeat(1, 2) * torch.tensor([1.0, -1.0])
        broken = (values[:, 3] == 7) & (step == 2)
        new["z_L"] = new["z_L"].masked_fill(broken[:, None, None], float("nan"))
        return ActStep(new, logits, q if self.model.config.has_q_head else None)


def model(**changes: object) -> RecursiveReasoner:
    """A model whose latents start at 0 and whose embedding of token t is t in every feature."""
    result = RecursiveReasoner(config(**changes))
    with torch.no_grad():
        table = torch.arange(TASK.vocab_size, dtype=torch.float32)
        result.embed_tokens.embedding_weight.copy_(table[:, None].expand(-1, 16))
        for name in ("H_init", "L_init"):
            result.get_buffer(name).zero_()
    return result


def scripted(policy: HaltingPolicy | str | None = None, **options: Any) -> Solver:
    """A solver that plays the script; `halting` is that of its model."""
    made = model(halting=options.pop("halting", "q"))
    solver = Solver(made, task=TASK, policy=policy, **options)
    solver.executor = ScriptedExecutor(solver.model)
    return solver


def captured(solver: Solver, made: list[Slots] | None = None, **options: Any) -> Solver:
    """The solver with slots whose steps are recorded; those it makes are added to `made`."""
    eager = solver.slots

    def slots(observer: None = None, *, ahead: bool = False) -> Slots | RolloutSlots:
        found = eager(ahead=ahead)
        inner = found.slots if isinstance(found, RolloutSlots) else found
        placed = Slots(solver.model, *inner.recipe, **{"capture": Recorder(), "impl": "reference"} | options)
        if made is not None:
            made.append(placed)
        return placed if inner is found else RolloutSlots(placed, solver.rollouts, solver.task, solver.policy)

    solver.slots = slots  # type: ignore[method-assign]
    return solver


def told(found: Solution | Finished) -> tuple[object, ...]:
    """All that is said of a sample but the time it took."""
    values = dict(vars(found))
    if isinstance(found, Finished):
        values["answer"] = None if found.answer is None else found.answer.tolist()
    return tuple(value for name, value in values.items() if name != "seconds")
