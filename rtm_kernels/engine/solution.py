"""What the solver returns for one puzzle."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

STATUSES = ("verified", "unverified", "non_finite", "invalid")
"""`verified`: the rules of the task hold; `unverified`: an answer that breaks them or cannot be checked;
`non_finite`: the sample's latents or logits held NaN or infinity; `invalid`: the puzzle could not be read."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """One puzzle's outcome. `answer` is text in the task's own format, None unless the status has an answer.

    `steps` counts ACT steps, `seconds` the time from entering the batch to leaving it. `halt_probability` is the
    head's p at the step that gave the answer, None for a model without a head. `reason` says why it stopped: a
    signal of the halting policy, `max_steps`, `non_finite`, or `deadline`. `answer_step` is the step whose answer
    this is: the last one, or when no signal ended the sample the one that the head was most sure of. `residual` is
    |dy| / |y| of the last step: a trajectory that has not settled warns. With several rollouts `rollout` numbers
    the one chosen, and `total_steps` counts the steps of all. `error` says what is wrong with an invalid puzzle.
    """

    task: str
    input: str
    answer: str | None = None
    status: str
    steps: int = 0
    halt_probability: float | None = None
    seconds: float = 0.0
    reason: str | None = None
    answer_step: int = 0
    residual: float | None = None
    rollout: int = 0
    total_steps: int = 0
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; `error` only where there is one."""
        values = asdict(self)
        if self.error is None:
            del values["error"]
        return values
