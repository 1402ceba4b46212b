"""Loss heads of the contracts that the official code lacks: cumulative halting (RTM) and stochastic rounds (RINS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rtm_kernels import program as programs
from rtm_kernels.errors import InputError
from rtm_kernels.interop.loss_head import LOSSES, Result
from rtm_kernels.model import Batch, Carry, RecursiveReasoner
from rtm_kernels.ops.halting.mixture import HaltingState, halting_update, initial_state
from rtm_kernels.ops.halting.reference import halting_logits, relative_change
from rtm_kernels.ops.token_loss.reference import IGNORE_INDEX
from rtm_kernels.train.observe import CONFIDENCE, DELTA

COSTS = ("continue", "graves")
"""Ponder costs of a unit: the sum of 1 - p over its steps, or their number and the remainder."""


def mean_token_loss(logits: Tensor, labels: Tensor, loss: str, weight: Tensor | None = None) -> Tensor:
    """Sum over the batch of each sample's mean loss over labelled tokens, weighted by `weight` [B, seq_len or 1]."""
    losses = LOSSES[loss](logits, labels, ignore_index=IGNORE_INDEX)
    divisor = (labels != IGNORE_INDEX).sum(-1, keepdim=True).clamp_min(1)
    return ((losses if weight is None else losses * weight) / divisor).sum()


@torch.no_grad()
def answer_metrics(predictions: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`count` of samples with labels, and over them the sums `accuracy` and `exact_accuracy`."""
    counted = labels != IGNORE_INDEX
    labelled = counted.sum(-1)
    right = (counted & (predictions == labels)).sum(-1)
    return {
        "count": (labelled > 0).sum(),
        "accuracy": (right / labelled.clamp_min(1)).sum(),
        "exact_accuracy": ((right == labelled) & (labelled > 0)).sum(),
    }


class _FreshHead(nn.Module):
    """A head whose every call starts from fresh latents; the carry it is given is handed back unread."""

    _progress: Tensor

    def __init__(self, model: RecursiveReasoner, loss: str) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.register_buffer("_progress", torch.zeros(()), persistent=False)

    @property
    def progress(self) -> Tensor:
        """Share of the run that is done, set by the trainer; on the device, so that a captured step sees it change."""
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress.fill_(value)

    def labels(self, batch: Batch) -> Tensor:
        """The labels of a batch, `InputError` without them."""
        if "labels" not in batch:
            raise InputError(f"batch has no 'labels'; it has {sorted(batch)}")
        return batch["labels"]

    def result(
        self, carry: Carry, loss: Tensor, metrics: dict[str, Tensor], outputs: dict[str, Tensor] | None = None
    ) -> Result:
        return carry, loss, metrics, outputs or {}, torch.ones((), dtype=torch.bool, device=loss.device)


class CumulativeHead(_FreshHead):
    """The loss of `CumulativeHalting`: every ACT step answers, weighted by its share of the halting probability."""

    def __init__(
        self, model: RecursiveReasoner, loss: str, ponder: float, entropy: float, min_steps: int, anneal: float,
        cost: str = "continue",
    ) -> None:  # fmt: skip
        super().__init__(model, loss)
        self.cost = cost
        self.ponder, self.entropy, self.min_steps, self.anneal = ponder, entropy, min_steps, anneal

    def forward(self, return_keys: Sequence[str], *, carry: Carry, batch: Batch) -> Result:
        """All ACT steps of `batch`, their loss and metrics; called as the official heads are."""
        model, labels = self.model, self.labels(batch)
        config, size = model.config, len(labels)
        policy, prefix = config.halting, config.prefix_len
        x = model.embed(batch["inputs"], batch["puzzle_identifiers"])
        latents = model.initial_latents(size)
        token = policy == "cumulative_token"
        state = initial_state(size, config.latent_len if token else 1, x.device)
        lm_loss, ponder, entropy = (torch.zeros((), device=x.device) for _ in range(3))
        answer = torch.zeros_like(labels, dtype=torch.int64)
        taken = config.halt_max_steps
        confidence, change = torch.zeros((), device=x.device), torch.zeros((), device=x.device)
        for _ in range(config.halt_max_steps):
            previous = latents[model.program.output].detach()
            latents, logits, _ = model.act_step(latents, x)
            head = halting_logits(latents[model.program.output], model.q_head.weight, model.q_head.bias, token)
            active, p = state.active, torch.sigmoid(head[..., 0])
            confidence = confidence + p.detach().mean(-1).sum()
            change = change + relative_change(latents[model.program.output].detach(), previous).sum()
            floor = min(self.min_steps, config.halt_max_steps)
            state = halting_update(state, policy, head, max_steps=config.halt_max_steps, min_steps=floor)
            weight = state.weight[:, prefix:] if token else state.weight
            lm_loss = lm_loss + mean_token_loss(logits, labels, self.loss, weight)
            ponder = ponder + torch.where(active, 1 - p, 0).mean(-1).sum()
            entropy = entropy - torch.xlogy(state.weight, state.weight.clamp_min(1e-12)).mean(-1).sum()
            takes = active[:, prefix:] if token else active
            answer = torch.where(takes, logits.argmax(-1), answer)
        if self.cost == "graves":
            ponder = (state.steps + state.remainder).mean(-1).sum()
        total, metrics = self._total(lm_loss, ponder, entropy, state, answer, labels)
        metrics |= {CONFIDENCE: confidence / taken, DELTA: change / taken}
        return self.result(carry, total, metrics, {"steps": state.sample_steps})

    def _total(
        self, lm_loss: Tensor, ponder: Tensor, entropy: Tensor, state: HaltingState, answer: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rise = 1.0 if self.anneal == 0 else (self.progress / self.anneal).clamp(max=1.0)
        total = lm_loss + rise * (self.ponder * ponder - self.entropy * entropy)
        metrics = answer_metrics(answer, labels) | {
            "steps": state.sample_steps.sum(),
            "lm_loss": lm_loss.detach(),
            "ponder_loss": ponder.detach(),
            "entropy_loss": -entropy.detach(),
        }
        return total, metrics


class RoundsHead(_FreshHead):
    """The loss of `StochasticRounds`: the token loss after a number of rounds that is drawn for each call."""

    def __init__(self, model: RecursiveReasoner, loss: str, keep: float) -> None:
        super().__init__(model, loss)
        self.keep = keep
        self.drawn: int | None = None

    def draw(self) -> int:
        """Draw the number of rounds that calls take from now on, and return it; without it each call draws its own."""
        self.drawn = self._random()
        return self.drawn

    def _random(self) -> int:
        return 1 + int((torch.rand(self.model.config.H_cycles - 1) < self.keep).sum())

    def forward(self, return_keys: Sequence[str], *, carry: Carry, batch: Batch) -> Result:
        """One pass over `batch`, its loss and metrics; called as the official heads are."""
        model, labels = self.model, self.labels(batch)
        rounds = (self.drawn or self._random()) if self.training else model.config.H_cycles
        x = model.embed(batch["inputs"], batch["puzzle_identifiers"])
        program = programs.rins(rounds, adapters=model.config.adapter_rank > 0)
        _, logits, _ = model.act_step(model.initial_latents(len(labels)), x, program)
        loss = mean_token_loss(logits, labels, self.loss)
        metrics = answer_metrics(logits.argmax(-1), labels) | {"lm_loss": loss.detach()}
        metrics["steps"] = torch.full((), rounds * len(labels), device=loss.device)
        return self.result(carry, loss, metrics)
