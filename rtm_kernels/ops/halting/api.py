"""Halting after an ACT step, in place and with no wait for the device: the public function of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from rtm_kernels.errors import require
from rtm_kernels.ops.halting import reference
from rtm_kernels.ops.halting.policy import HaltingPolicy
from rtm_kernels.ops.halting.reference import Outputs, SlotState
from rtm_kernels.ops.launch import choose
from rtm_kernels.ranges import ranged


@ranged("halting_step")
def halting_step_(
    state: SlotState,
    policy: HaltingPolicy,
    seen: Outputs | None,
    confirmed: Tensor | None = None,
    *,
    sums: bool = False,
    impl: str = "auto",
) -> None:
    """Advance the state of n samples in place by the ACT step `seen`, and write to `reason` which of them leave.

    Under `verified` this takes two calls. The first, with `seen`, says in `asks` whose answer the verifier has to look
    at. The second, with None and `confirmed` [n] bool, decides. `sums`: add up p also where no signal reads the sum.
    A row depends on its own sample alone. The formulas are those of `reference.observe` and `reference.decide`. The
    kernel is one launch with the bits of the reference, but for the rounding of `residual` and of the sums of tokens,
    which it computes from the latents in float32.

    Errors: `InputError` naming the argument; `BackendUnavailable` for a named `impl` that cannot run here.
    """
    rows, verifies = state.rows, "verified" in policy.on
    _must(rows.dim() == 2 and rows.is_contiguous(), "state.rows", rows, "a contiguous [n, W]")
    _must(verifies or confirmed is None, "confirmed", confirmed, "None without `verified` in the policy")
    require((seen is None) == (confirmed is not None), "seen", "None" if seen is None else "given",
            "given without confirmed, and None with it")  # fmt: skip
    if confirmed is not None:
        fits = confirmed.shape == rows.shape[:1] and confirmed.dtype == torch.bool
        _must(fits, "confirmed", confirmed, f"bool [{len(rows)}]")
    if seen is not None:
        _check(state, policy, seen)
    dtype = torch.float32 if seen is None else seen.output.dtype
    if choose(impl, rows.device, dtype) == "triton":
        from rtm_kernels.ops.halting.kernel import halting_step

        with torch.cuda.device_of(rows):
            return halting_step(state, policy, seen, confirmed, sums)
    with torch.no_grad():
        if seen is not None:
            reference.observe(state, policy, seen, sums)
        if confirmed is not None or not verifies:
            reference.decide(state, policy, confirmed)


def _check(state: SlotState, policy: HaltingPolicy, seen: Outputs) -> None:
    """The shapes of `seen`."""
    (n, seq_len), positions, y = state.answers.shape, state.token_halted.shape[1], seen.output
    _must(
        seen.logits.dim() == 3 and seen.logits.shape[:2] == (n, seq_len), "logits", seen.logits, f"[{n}, {seq_len}, V]"
    )
    _must(y.dim() == 3 and len(y) == n, "output", y, f"[{n}, L, D]")
    for latent in seen.others if seen.previous is None else (seen.previous, *seen.others):
        _must(latent.shape == y.shape, "previous, others", latent, "the shape of output")
    _must(seen.q is None or seen.q.shape[:1] == (n,), "q", seen.q, f"[{n}, K]")
    _must(seen.answers is None or seen.answers.shape == (n, seq_len), "answers", seen.answers, f"[{n}, {seq_len}]")
    _must(seen.finite is None or seen.finite.shape == (n,), "finite", seen.finite, f"[{n}]")
    _must(seen.change is None or seen.change.shape == (n,), "change", seen.change, f"[{n}]")
    if "cumulative_token" in policy.on:
        require(seen.head is not None, "head", "None", "the halting head, which cumulative_token reads")
        _must(positions == y.shape[1], "output", y, f"[{n}, {positions}, D], as the state was made for")


def _must(fits: bool, name: str, value: Tensor | None, allowed: str) -> None:
    """`require`, with the text of a tensor written only for the error."""
    if not fits:
        require(False, name, "None" if value is None else f"{value.dtype}{list(value.shape)}", allowed)
