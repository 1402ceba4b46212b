"""The official loss heads, ACTLossHead of TRM and HRM and LossHead of RSM, around a `RecursiveReasoner`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtm_kernels import program as programs
from rtm_kernels.errors import InputError, one_of, require
from rtm_kernels.model import Batch, Carry, RecursiveReasoner
from rtm_kernels.ops.token_loss.reference import (
    IGNORE_INDEX,
    softmax_cross_entropy,
    stablemax_cross_entropy,
)

LOSSES = {"stablemax_cross_entropy": stablemax_cross_entropy, "softmax_cross_entropy": softmax_cross_entropy}

Result = tuple[Carry, Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]
"""(carry, loss, metrics, detached outputs named by return_keys, whether all samples halted)."""


def official_loss_head(
    model: RecursiveReasoner, loss_type: str = "stablemax_cross_entropy", *, prob_detach_prev_H: float = 0.5
) -> ACTLossHead | LossHead:
    """The loss head that the official training puts around `model`: `ACTLossHead`, or `LossHead` for RSM.

    Both are called `head(return_keys, carry=..., batch=...)` and return (carry, loss, metrics, outputs,
    all_halted) as the official ones do. `loss_type`: stablemax_cross_entropy or softmax_cross_entropy.
    `prob_detach_prev_H` is RSM's: the probability that a training step takes the gradient of the last cycle only.

    Errors: `InputError` for an unknown loss, a probability outside 0 to 1, or a model without a halting head
    that is not an RSM.
    """
    one_of("loss_type", loss_type, LOSSES)
    require(prob_detach_prev_H >= 0, "prob_detach_prev_H", prob_detach_prev_H, "a probability")
    if model.config.arch == "rsm":
        return LossHead(model, loss_type, prob_detach_prev_H)
    if not model.config.has_q_head:
        raise InputError(f"halting={model.config.halting!r} has no halting head, which ACTLossHead trains")
    return ACTLossHead(model, loss_type)


class Score(NamedTuple):
    """What the logits say about a batch: tensors over its samples [B], and the loss."""

    predictions: Tensor
    """[B, seq_len] int64."""
    labelled: Tensor
    """[B] bool, whether the sample has any label."""
    accuracy: Tensor
    """[B] float32, the share of labelled tokens that are right."""
    solved: Tensor
    """[B] bool, whether every labelled token is right."""
    lm_loss: Tensor
    """Sum over the batch of each sample's mean token loss; float64 with stablemax."""


class _Head(nn.Module):
    """What both heads share: the model, the token loss and the correctness of an answer."""

    model: RecursiveReasoner

    def __init__(self, model: RecursiveReasoner, loss_type: str) -> None:
        super().__init__()
        self.model = model
        self.loss_type = loss_type

    def initial_carry(self, batch: Batch) -> Carry:
        """The model's carry in which every sample is halted."""
        return self.model.initial_carry(batch)

    def _score(self, logits: Tensor, data: Batch) -> Score:
        if "labels" not in data:
            raise InputError(f"batch has no 'labels'; it has {sorted(data)}")
        labels = data["labels"]
        counted = labels != IGNORE_INDEX  # [B, seq_len]
        labelled = counted.sum(-1)
        divisor = labelled.clamp_min(1).unsqueeze(-1)
        with torch.no_grad():
            predictions = logits.argmax(-1)
            correct = counted & (predictions == labels)
            accuracy = (correct.to(torch.float32) / divisor).sum(-1)
        token_loss = LOSSES[self.loss_type](logits, labels, ignore_index=IGNORE_INDEX)
        return Score(predictions, labelled > 0, accuracy, correct.sum(-1) == labelled, (token_loss / divisor).sum())


class ACTLossHead(_Head):
    """`loss = lm_loss + (q_halt_loss + q_continue_loss) / 2`, summed over the batch, and its metrics.

    `lm_loss` is the sum of each sample's mean token loss; `q_halt_loss` the binary cross entropy of q_halt against
    "the whole answer is right"; `q_continue_loss` that of q_continue against the model's target, if it has one.
    Metrics are sums over samples that halted and have labels, `count` of them (`models/losses.py` of the TRM
    repository).
    """

    def forward(self, return_keys: Sequence[str], *, carry: Carry, batch: Batch) -> Result:
        """One ACT step of the model, its loss and metrics; see `official_loss_head`."""
        carry, outputs = self.model(carry=carry, batch=batch)
        score = self._score(outputs["logits"], carry.current_data)
        outputs["preds"] = score.predictions
        q_halt, q_continue = outputs["q_halt_logits"], outputs["q_continue_logits"]
        q_loss = F.binary_cross_entropy_with_logits(q_halt, score.solved.to(q_halt.dtype), reduction="sum")
        counted = carry.halted & score.labelled
        metrics = {
            "count": counted.sum(),
            "accuracy": torch.where(counted, score.accuracy, 0).sum(),
            "exact_accuracy": (counted & score.solved).sum(),
            "q_halt_accuracy": (counted & ((q_halt >= 0) == score.solved)).sum(),
            "steps": torch.where(counted, carry.steps, 0).sum(),
            "lm_loss": score.lm_loss.detach(),
            "q_halt_loss": q_loss.detach(),
        }
        if "target_q_continue" in outputs:
            target = outputs["target_q_continue"]
            continue_loss = F.binary_cross_entropy_with_logits(q_continue, target, reduction="sum")
            metrics["q_continue_loss"] = continue_loss.detach()
            q_loss = q_loss + continue_loss
        detached = {key: outputs[key].detach() for key in return_keys if key in outputs}
        return carry, score.lm_loss + 0.5 * q_loss, metrics, detached, carry.halted.all()


class LossHead(_Head):
    """RSM's loss head: the token loss at the final depth, every call from fresh latents, always finished.

    In training the depth is at least two H cycles, and one draw per call decides whether the gradient also chains
    through the outer update before the last cycle (`models/recursive_reasoning/rsm.py`, `prob_detach_prev_H`).
    """

    def __init__(self, model: RecursiveReasoner, loss_type: str, prob_detach_prev_H: float) -> None:
        super().__init__(model, loss_type)
        self.prob_detach_prev_H = prob_detach_prev_H
        self.drawn: bool | None = None

    def draw(self) -> bool:
        """Draw whether calls detach from now on, and return it; without it each call draws its own, as officially."""
        self.drawn = self._random()
        return self.drawn

    def _random(self) -> bool:
        detaches = self.prob_detach_prev_H > 0 and torch.rand(1).item() < self.prob_detach_prev_H
        return bool(detaches)

    def forward(
        self, return_keys: Sequence[str], *, carry: Carry, batch: Batch, override_H_cycles: int | None = None
    ) -> Result:
        """Loss and metrics of `batch`; `carry` is accepted as in the official call and not read."""
        program = self._program(override_H_cycles)
        carry, outputs = self.model(carry=self.model.initial_carry(batch), batch=batch, program=program)
        score = self._score(outputs["logits"], carry.current_data)
        outputs["preds"] = score.predictions
        metrics = {
            "count": score.labelled.sum().to(torch.float32).clamp_min(1.0),
            "accuracy": torch.where(score.labelled, score.accuracy, 0).sum(),
            "exact_accuracy": (score.labelled & score.solved).sum().to(torch.float32),
            "lm_loss": score.lm_loss.detach(),
        }
        detached = {key: outputs[key].detach() for key in return_keys if key in outputs}
        return carry, score.lm_loss, metrics, detached, torch.ones_like(score.lm_loss, dtype=torch.bool)

    def _program(self, override_H_cycles: int | None) -> programs.Program:
        c = self.model.config
        depth = c.H_cycles if override_H_cycles is None else override_H_cycles
        require(depth >= 1, "override_H_cycles", depth, "at least 1")
        detach = self.training and (self._random() if self.drawn is None else self.drawn)
        return programs.rsm(max(2, depth) if self.training else depth, c.L_cycles, chained=not detach)
