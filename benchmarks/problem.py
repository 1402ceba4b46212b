"""A case made concrete: a model with weights, random inputs in rotation, and the exact answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import LATENT_TASKS, TRAINING, Case
from rtm_kernels.config import ModelConfig
from rtm_kernels.model import RecursiveReasoner

Inputs = Mapping[str, Tensor]
Run = Callable[[Inputs], Sequence[Tensor]]
"""One call of a task: inputs to the tensors that the gate compares."""


@dataclass(frozen=True)
class Problem:
    """What a provider is built from. `model` holds float32 weights under their official names."""

    case: Case
    model: RecursiveReasoner
    inputs: list[Inputs]
    memory: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What is worked out once for all providers."""

    @property
    def config(self) -> ModelConfig:
        """The configuration of `model`, which a shortened problem has cut."""
        return self.model.config

    def short(self) -> Problem:
        """The same weights and inputs with the shortest recursion of the architecture, and one ACT step to solve.

        Rounding errors grow about thirtyfold per ACT step, so a tight budget holds for a few layers only.
        """
        return Problem(self.case, clone(self.model, H_cycles=1, L_cycles=1, halt_max_steps=1), self.inputs[:1])

    def take(self, samples: Sequence[int]) -> Problem:
        """The problem of these samples of the first set of inputs."""
        case = replace(self.case, batch=len(samples))
        return Problem(case, self.model, [{k: v[list(samples)] for k, v in self.inputs[0].items()}])

    def double(self) -> Problem:
        """The same problem in float64."""
        inputs = [{k: v.double() if v.is_floating_point() else v for k, v in one.items()} for one in self.inputs]
        return Problem(self.case, clone(self.model, forward_dtype="float64").double(), inputs)


def clone(
    model: RecursiveReasoner, *, impl: str = "reference", attention: str = "sdpa", **changes: Any
) -> RecursiveReasoner:
    """A copy of `model` with another `impl` or `attention`, or other fields of its configuration."""
    other = RecursiveReasoner(replace(model.config, **changes), impl=impl, attention=attention).to(model.device)
    other.load_state_dict(model.state_dict())
    return other.eval()


def make(case: Case, copies: int = 4, seed: int = 0) -> Problem:
    """The problem of `case` with `copies` sets of random inputs, or with one set to train on (each may be captured).

    Weights are random, those of the halting head and the embeddings too; those of the bundled model are its own.
    """
    torch.manual_seed(seed)
    inputs = [_inputs(case) for _ in range(1 if case.task in TRAINING else copies)]
    if case.model == "bundled":
        return Problem(case, RecursiveReasoner.from_pretrained("sudoku", impl="reference").to(case.device), inputs)
    model = RecursiveReasoner(case.config, impl="reference").eval()
    with torch.no_grad():
        if model.config.has_q_head:
            model.q_head.weight.normal_(std=case.config.hidden_size**-0.5)
        if model.config.puzzle_emb_ndim:
            model.puzzle_emb.weights.normal_()
    return Problem(case, model.to(case.device), inputs)


def _inputs(case: Case) -> Inputs:
    c, size = case.config, case.batch
    shape, dtype = (size, c.latent_len, c.hidden_size), getattr(torch, case.dtype)
    if case.task in LATENT_TASKS:
        names = ("h",) if case.task == "channel" else ("h", "y", "x")
        return {name: torch.randn(shape).to(case.device, dtype) for name in names}
    batch = {
        "inputs": torch.randint(1, c.vocab_size, (size, c.seq_len), dtype=torch.int32),
        "puzzle_identifiers": torch.randint(0, c.num_puzzle_identifiers, (size,), dtype=torch.int32),
    }
    if case.task in TRAINING:
        batch["labels"] = torch.randint(1, c.vocab_size, (size, c.seq_len))
    latents = {name: torch.randn(shape).to(dtype) for name in c.program.carried}
    return {k: v.to(case.device) for k, v in {**batch, **latents}.items()}


def loss(logits: Tensor, q: Tensor | None, labels: Tensor) -> Tensor:
    """Mean softmax cross entropy in float32, plus the halting head's against "all right"."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(wide.flatten(0, 1), labels.flatten())
    if q is not None:
        solved = (logits.argmax(-1) == labels).all(-1).to(q.dtype)
        total = total + 0.5 * F.binary_cross_entropy_with_logits(q[..., 0], solved)
    return total
