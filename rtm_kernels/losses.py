"""Loss heads: the loss and metrics of one training step of a `RecursiveReasoner`, called as the official heads are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtm_kernels import program as programs
from rtm_kernels.carry import Batch, Carry
from rtm_kernels.errors import InputError, one_of, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.mixture import halting_update, initial_state
from rtm_kernels.ops.halting.reference import halting_logits, relative_change
from rtm_kernels.ops.token_loss.api import LOSSES, TokenLoss, token_loss
from rtm_kernels.ops.token_loss.reference import IGNORE_INDEX, token_counts

COSTS = ("continue", "graves")
"""Ponder costs of a unit: the sum of 1 - p over its steps, or their number and the remainder."""

CONFIDENCE, DELTA = "halt_confidence", "latent_delta"
"""Metrics: means over the batch of sigmoid(q_halt) and of |dy| / |y|."""

Metrics = dict[str, Tensor]
Result = tuple[Carry, Tensor, Metrics, dict[str, Tensor], Tensor]
"""(carry, loss, metrics, detached outputs named by return_keys, whether all samples halted)."""


def official_loss_head(
    model: RecursiveReasoner, loss_type: str = "stablemax_cross_entropy", *, prob_detach_prev_H: float = 0.5
) -> ACTLossHead | LossHead:
    """The loss head that the official training puts around `model`: `ACTLossHead`, or `LossHead` for RSM.

    Both are called `head(return_keys, carry=..., batch=...)` and return (carry, loss, metrics, outputs,
    all_halted) as the official ones do. `loss_type`: stablemax_cross_entropy or softmax_cross_entropy.
    `prob_detach_prev_H` is RSM's: the probability that a training step takes the gradient of the last cycle only.

    Errors: `InputError` for an unknown loss, a probability below 0, or a model without a halting head that is not an
    RSM.
    """
    require(prob_detach_prev_H >= 0, "prob_detach_prev_H", prob_detach_prev_H, "a probability")
    if model.config.arch == "rsm":
        return LossHead(model, loss_type, prob_detach_prev_H)
    if not model.config.has_q_head:
        raise InputError(f"halting={model.config.halting!r} has no halting head, which ACTLossHead trains")
    return ACTLossHead(model, loss_type)


class Head(nn.Module):
    """What all heads share: the model, the token loss in its implementation, and the metrics of answers."""

    model: RecursiveReasoner

    def __init__(self, model: RecursiveReasoner, loss_type: str) -> None:
        super().__init__()
        one_of("loss_type", loss_type, LOSSES)
        self.model, self.loss_type = model, loss_type
        self.drawn: Any = None

    def initial_carry(self, batch: Batch) -> Carry:
        """The model's carry in which every sample is halted."""
        return self.model.initial_carry(batch)

    def enter(self, carry: Carry, batch: Batch) -> Carry:
        """The carry for the next call: a head may put halted samples at starts of its own; most leave it alone."""
        return carry

    def set_progress(self, share: float) -> None:
        """The trainer calls this before each step with the share of the run that is done; most heads ignore it."""

    def draw(self) -> Hashable:
        """Draw what calls do at random from now on, and return it: it names the operations of a captured step.

        Without it each call draws its own, as officially.
        """
        self.drawn = self._random()
        return self.drawn

    def _random(self) -> Any:
        return None

    def _labels(self, data: Batch) -> Tensor:
        if "labels" not in data:
            raise InputError(f"batch has no 'labels'; it has {sorted(data)}")
        return data["labels"]

    def _score(self, logits: Tensor, data: Batch) -> TokenLoss:
        """Loss and correctness of every answer [B, seq_len] of a batch, in one pass over the logits."""
        labels = self._labels(data)
        try:
            return token_loss(logits, labels, loss=self.loss_type, impl=self.model.impl)
        except (IndexError, RuntimeError):  # on a CPU; on a GPU the kernel stops
            low, high = map(int, labels[labels != IGNORE_INDEX].aminmax())
            allowed = f"0 to {logits.shape[-1] - 1}, or {IGNORE_INDEX}"
            require(low >= 0 and high < logits.shape[-1], "labels", f"{low} to {high}", allowed)
            raise

    def _total(self, found: TokenLoss, weight: Tensor | None = None) -> Tensor:
        """`found.total`, summed in float64 for stablemax as in the official code."""
        return found.total(weight, torch.float64 if self.loss_type == "stablemax_cross_entropy" else None)


@torch.no_grad()
def answer_metrics(found: TokenLoss, counted: Tensor | None = None) -> Metrics:
    """`count` of the samples `counted` [B] that have labels (default: all), and over them the sums of `accuracy` and
    `exact_accuracy`."""
    labelled = found.labelled > 0
    counted = labelled if counted is None else counted & labelled
    return {
        "count": counted.sum(),
        "accuracy": torch.where(counted, found.token_accuracy, 0).sum(),
        "exact_accuracy": (counted & found.exact).sum(),
    }


class ACTLossHead(Head):
    """`loss = lm_loss + (q_halt_loss + q_continue_loss) / 2`, summed over the batch, and its metrics.

    `lm_loss` is the sum of each sample's mean token loss; `q_halt_loss` the binary cross entropy of q_halt against
    "the whole answer is right"; `q_continue_loss` that of q_continue against the model's target, if it has one.
    Metrics are sums over samples that halted and have labels, `count` of them (`models/losses.py` of the TRM
    repository).
    """

    def forward(self, return_keys: Sequence[str], *, carry: Carry, batch: Batch) -> Result:
        """One ACT step of the model, its loss and metrics; see `official_loss_head`."""
        carry, outputs = self.model(carry=carry, batch=batch)
        found = self._score(outputs["logits"], carry.current_data)
        outputs["preds"] = found.predictions
        q_halt, exact = outputs["q_halt_logits"], found.exact
        q_loss = F.binary_cross_entropy_with_logits(q_halt, exact.to(q_halt.dtype), reduction="sum")
        lm_loss, counted = self._total(found), carry.halted & (found.labelled > 0)
        metrics = answer_metrics(found, carry.halted) | {
            "q_halt_accuracy": (counted & ((q_halt >= 0) == exact)).sum(),
            "steps": torch.where(counted, carry.steps, 0).sum(),
            "lm_loss": lm_loss.detach(),
            "q_halt_loss": q_loss.detach(),
        }
        if "target_q_continue" in outputs:
            target = outputs["target_q_continue"]
            continue_loss = F.binary_cross_entropy_with_logits(outputs["q_continue_logits"], target, reduction="sum")
            metrics["q_continue_loss"] = continue_loss.detach()
            q_loss = q_loss + continue_loss
        detached = {key: outputs[key].detach() for key in return_keys if key in outputs}
        return carry, lm_loss + 0.5 * q_loss, metrics, detached, carry.halted.all()


class MaskedHead(Head):
    """The token loss of one ACT step from the carry, where tokens count by what the puzzle shows at them.

    Tokens whose input is `open_token` weigh 1 and all others `other`; the weights of a sample sum to its number of
    tokens. A sample whose answer is right leaves with probability `leave`, every other one at the cap on ACT steps.
    """

    def __init__(self, model: RecursiveReasoner, loss_type: str, open_token: int, other: float, leave: float) -> None:
        super().__init__(model, loss_type)
        self.open_token, self.other, self.leave = open_token, other, leave

    def forward(self, return_keys: Sequence[str], *, carry: Carry, batch: Batch) -> Result:
        """One ACT step of the model, its loss and metrics; called as the official heads are."""
        carry, outputs = self.model(carry=carry, batch=batch)
        data = carry.current_data
        found = self._score(outputs["logits"], data)
        weight = torch.where(data["inputs"] == self.open_token, 1.0, self.other)
        loss = self._total(found, weight / weight.mean(1, keepdim=True))
        leaves = found.exact & (torch.rand(len(found.exact), device=weight.device) < self.leave)
        carry = replace(carry, halted=carry.halted | leaves)
        counted = carry.halted & (found.labelled > 0)
        metrics = answer_metrics(found, carry.halted) | {
            "steps": torch.where(counted, carry.steps, 0).sum(),
            "lm_loss": loss.detach(),
        }
        detached = {key: outputs[key].detach() for key in return_keys if key in outputs}
        return carry, loss, metrics, detached, carry.halted.all()


class LossHead(Head):
    """RSM's loss head: the token loss at the final depth, every call from fresh latents, always finished.

    In training the depth is at least two H cycles, and one draw per call decides whether the gradient also chains
    through the outer update before the last cycle (`models/recursive_reasoning/rsm.py`, `prob_detach_prev_H`).
    """

    def __init__(self, model: RecursiveReasoner, loss_type: str, prob_detach_prev_H: float) -> None:
        super().__init__(model, loss_type)
        self.prob_detach_prev_H = prob_detach_prev_H

    def _random(self) -> bool:
        """Whether a call detaches."""
        return self.prob_detach_prev_H > 0 and bool(torch.rand(1).item() < self.prob_detach_prev_H)

    def forward(
        self, return_keys: Sequence[str], *, carry: Carry, batch: Batch, override_H_cycles: int | None = None
    ) -> Result:
        """Loss and metrics of `batch`; `carry` is accepted as in the official call and not read."""
        program = self._program(override_H_cycles)
        carry, outputs = self.model(carry=self.model.initial_carry(batch), batch=batch, program=program)
        found = self._score(outputs["logits"], carry.current_data)
        outputs["preds"] = found.predictions
        loss, metrics = self._total(found), answer_metrics(found)
        metrics |= {
            "count": metrics["count"].to(torch.float32).clamp_min(1.0),
            "exact_accuracy": metrics["exact_accuracy"].to(torch.float32),
            "lm_loss": loss.detach(),
        }
        detached = {key: outputs[key].detach() for key in return_keys if key in outputs}
        return carry, loss, metrics, detached, torch.ones_like(loss, dtype=torch.bool)

    def _program(self, override_H_cycles: int | None) -> programs.Program:
        c = self.model.config
        depth = c.H_cycles if override_H_cycles is None else override_H_cycles
        require(depth >= 1, "override_H_cycles", depth, "at least 1")
        detach = self.training and (self._random() if self.drawn is None else self.drawn)
        return programs.rsm(max(2, depth) if self.training else depth, c.L_cycles, chained=not detach)


class CumulativeHead(Head):
    """Cumulative halting (RTM): every ACT step answers, weighted by its share of the halting probability.

    `loss = sum_t w_t loss_t + rise * (ponder * cost - entropy * entropy(w))`, with `rise` growing from 0 to 1 over the
    first `anneal` share of the run; see `train.objective.CumulativeHalting`. Every call starts from fresh latents; the
    carry it is given is handed back unread.
    """

    progress: Tensor

    def __init__(
        self, model: RecursiveReasoner, loss_type: str, ponder: float, entropy: float, min_steps: int, anneal: float,
        cost: str = "continue",
    ) -> None:  # fmt: skip
        super().__init__(model, loss_type)
        self.cost = cost
        self.ponder, self.entropy, self.min_steps, self.anneal = ponder, entropy, min_steps, anneal
        zero = torch.zeros((), dtype=torch.float32)  # on the device: captured steps read it
        self.register_buffer("progress", zero, persistent=False)

    def set_progress(self, share: float) -> None:
        """Set how far the penalties have risen."""
        self.progress.fill_(share)

    def forward(self, return_keys: Sequence[str], *, carry: Carry, batch: Batch) -> Result:
        """All ACT steps of `batch`, their loss and metrics; called as the official heads are."""
        model, labels = self.model, self._labels(batch)
        config, size = model.config, len(labels)
        policy, prefix = config.halting, config.prefix_len
        x = model.embed(batch["inputs"], batch["puzzle_identifiers"])
        latents = model.initial_latents(size)
        token = policy == "cumulative_token"
        state = initial_state(size, config.latent_len if token else 1, x.device)
        lm_loss, ponder, entropy, confidence, change = (x.new_zeros((), dtype=torch.float32) for _ in range(5))
        answer, taken = torch.zeros_like(labels, dtype=torch.int64), config.halt_max_steps
        for _ in range(taken):
            previous = latents[model.program.output].detach()
            latents, logits, _ = model.act_step(latents, x)
            head = halting_logits(latents[model.program.output], model.q_head.weight, model.q_head.bias, token)
            active, p = state.active, torch.sigmoid(head[..., 0])
            confidence = confidence + p.detach().mean(-1).sum()
            change = change + relative_change(latents[model.program.output].detach(), previous).sum()
            state = halting_update(state, policy, head, max_steps=taken, min_steps=min(self.min_steps, taken))
            found = self._score(logits, batch)
            lm_loss = lm_loss + self._total(found, state.weight[:, prefix:] if token else state.weight)
            ponder = ponder + torch.where(active, 1 - p, 0).mean(-1).sum()
            entropy = entropy - torch.xlogy(state.weight, state.weight.clamp_min(1e-12)).mean(-1).sum()
            answer = torch.where(active[:, prefix:] if token else active, found.predictions, answer)
        if self.cost == "graves":
            ponder = (state.steps + state.remainder).mean(-1).sum()
        answered = found._replace(predictions=answer, correct=token_counts(answer, labels)[:, 1])
        rise = (self.progress / self.anneal).clamp(max=1.0) if self.anneal else torch.ones_like(self.progress)
        total = lm_loss + rise * (self.ponder * ponder - self.entropy * entropy)
        metrics = answer_metrics(answered) | {
            "steps": state.sample_steps.sum(),
            "lm_loss": lm_loss.detach(),
            "ponder_loss": ponder.detach(),
            "entropy_loss": -entropy.detach(),
            CONFIDENCE: confidence / taken,
            DELTA: change / taken,
        }
        return carry, total, metrics, {"steps": state.sample_steps}, torch.ones_like(total, dtype=torch.bool)


class RoundsHead(Head):
    """Stochastic rounds (RINS): the token loss after a number of rounds that is drawn for each call.

    Every call starts from fresh latents; the carry it is given is handed back unread.
    """

    def __init__(self, model: RecursiveReasoner, loss_type: str, keep: float) -> None:
        super().__init__(model, loss_type)
        self.keep = keep

    def _random(self) -> int:
        """The number of rounds of a call."""
        return 1 + int((torch.rand(self.model.config.H_cycles - 1) < self.keep).sum())

    def forward(self, return_keys: Sequence[str], *, carry: Carry, batch: Batch) -> Result:
        """One pass over `batch`, its loss and metrics; called as the official heads are."""
        model, size = self.model, len(self._labels(batch))
        rounds = (self.drawn or self._random()) if self.training else model.config.H_cycles
        x = model.embed(batch["inputs"], batch["puzzle_identifiers"])
        program = programs.rins(rounds, adapters=model.config.adapter_rank > 0)
        _, logits, _ = model.act_step(model.initial_latents(size), x, program)
        found = self._score(logits, batch)
        loss = self._total(found)
        metrics = answer_metrics(found) | {"lm_loss": loss.detach()}
        metrics["steps"] = torch.full((), rounds * size, device=loss.device)
        return carry, loss, metrics, {}, torch.ones_like(loss, dtype=torch.bool)
