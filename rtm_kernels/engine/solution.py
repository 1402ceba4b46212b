"""What the solver returns for one puzzle."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

STATUSES = ("verified", "unverified", "non_finite", "invalid", "cancelled")
"""`verified`: the rules of the task hold; `unverified`: an answer that breaks them or cannot be checked;
`non_finite`: the sample's latents or logits held NaN or infinity; `invalid`: the puzzle could not be read;
`cancelled`: taken back before it finished."""

REASONS = ("verified", "q", "settle", "cumulative", "max_steps")
"""Why a sample that has an answer stopped: the signal of the halting policy, or its cap."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """One puzzle's outcome. `answer` is text in the task's own format, None unless the status has an answer.

    `steps` counts ACT steps, `seconds` the time from entering the batch to leaving it. `halt_probability` is the
    head's p at the step that gave the answer, None for a model without a head. `reason` says why an answer
    stopped (`REASONS`), `error` what is wrong with an invalid puzzle. `answer_step` is the step whose answer this
    is: the last one, or for an unconfirmed answer at the cap the one that the head was most sure of.
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
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; `error` only where there is one."""
        values = asdict(self)
        if self.error is None:
            del values["error"]
        return values
