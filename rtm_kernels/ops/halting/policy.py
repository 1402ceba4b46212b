"""Halting policies as data: when a sample leaves the batch at inference."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields

from rtm_kernels.config import HALTING, is_int
from rtm_kernels.errors import InputError, require

SIGNALS = ("verified", *(name for name in HALTING if name != "fixed"))
"""What can end a sample: the policies of `ModelConfig.halting`, and an answer that the verifier confirmed."""

HEADED = frozenset(SIGNALS) - {"verified", "settle"}
"""Signals that read the halting head."""

NUMBERS: dict[str, tuple[tuple[str, Callable[[str], float]], ...]] = {
    "q": (("q_threshold", float),),
    "q_continue": (("q_threshold", float),),
    "settle": (("settle_steps", int), ("settle_tolerance", float)),
}
"""Signal -> the fields that its text may set, in order, with a slash between two."""

MAX_STEPS = 20_000
"""Upper bound of `max_steps`."""


@dataclass(frozen=True)
class HaltingPolicy:
    """A sample leaves after the first step >= `min_steps` at which any signal of `on` holds, or at `max_steps`.

    With p = sigmoid(q_halt), or sigmoid(q_halt - q_continue) for a model of `halting="q_continue"`:

    - `verified`: the task's verifier confirms the answer. Alone, the head and settling never end a sample.
    - `q`: p > `q_threshold` (0.5 is the official q_halt > 0).
    - `q_continue`: the same under the name that it has for a model of `halting="q_continue"`, and for no other.
    - `settle`: the answer has stayed the same for `settle_steps` steps and, when `settle_tolerance` > 0, the
      output latent moves by less than that: |dy| / |y| < settle_tolerance.
    - `cumulative`: the sum of p over the steps so far is >= 1, per sequence.
    - `cumulative_token`: the head reads every position of the output latent, and each position has its own sum of p.
      A token keeps the value decoded in the first step >= `min_steps` at which its sum is >= 1. The sample leaves when
      all positions have halted, those of the puzzle prefix included.

    An empty `on` is the official fixed-step protocol. As text: signals joined by `+`, each with an optional
    number, e.g. `verified`, `q=0.9`, `q+settle=3`, `settle=3/0.001` (steps and tolerance); `fixed` is the empty policy.

    Errors: `InputError` naming the field, its value and what is allowed.
    """

    on: tuple[str, ...] = ("verified",)
    min_steps: int = 1
    max_steps: int = 16
    q_threshold: float = 0.5
    settle_steps: int = 3
    settle_tolerance: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "on", tuple(self.on))
        for signal in self.on:
            require(signal in SIGNALS, "policy", signal, "expected " + ", ".join(SIGNALS) + " or fixed")
        require(is_int(self.max_steps) and 1 <= self.max_steps <= MAX_STEPS, "max_steps", self.max_steps,
                f"an integer from 1 to {MAX_STEPS}")  # fmt: skip
        require(is_int(self.min_steps) and 1 <= self.min_steps <= self.max_steps, "min_steps", self.min_steps,
                f"an integer from 1 to max_steps={self.max_steps}")  # fmt: skip
        require(0 < self.q_threshold < 1, "q_threshold", self.q_threshold, "a probability between 0 and 1")
        require(is_int(self.settle_steps) and self.settle_steps >= 1, "settle_steps", self.settle_steps,
                "an integer of at least 1")  # fmt: skip
        require(0 <= self.settle_tolerance < 1, "settle_tolerance", self.settle_tolerance, "from 0 to below 1")

    @classmethod
    def parse(cls, text: str, *, min_steps: int = 1, max_steps: int = 16) -> HaltingPolicy:
        """The policy that `text` describes, e.g. `verified`, `fixed`, `q=0.9+settle=3`."""
        options: dict[str, float] = {}
        signals = []
        for part in [] if text == "fixed" else text.split("+"):
            match = re.fullmatch(r"([a-z_]+)(?:=([0-9.]+(?:/[0-9.e-]+)?))?", part)
            name, numbers = match.groups() if match else (part, None)
            require(name in SIGNALS, "policy", text, "expected fixed, or " + ", ".join(SIGNALS) + " joined by '+'")
            signals.append(name)
            given = [] if numbers is None else numbers.split("/")
            known = NUMBERS.get(name, ())
            require(len(given) <= len(known), "policy", text, f"{name} takes {('no', 'one', 'two')[len(known)]} number"
                    + "s" * (len(known) == 2))  # fmt: skip
            for number, (field, convert) in zip(given, known, strict=False):
                try:
                    options[field] = convert(number)
                except ValueError:
                    raise InputError(
                        f"policy={text!r} is not allowed: {number} is not a number that {name} takes"
                    ) from None
        return cls(tuple(signals), min_steps=min_steps, max_steps=max_steps, **options)  # type: ignore[arg-type]

    def __str__(self) -> str:
        defaults = {f.name: f.default for f in fields(self)}
        parts = []
        for signal in self.on:
            names = [field for field, _ in NUMBERS.get(signal, ())]
            while names and getattr(self, names[-1]) == defaults[names[-1]]:
                names.pop()
            numbers = "/".join(f"{getattr(self, name):g}" for name in names)
            parts.append(f"{signal}={numbers}" if numbers else signal)
        return "+".join(parts) or "fixed"
