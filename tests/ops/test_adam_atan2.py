"""AdamATan2 and sparse sign-SGD: golden trajectories, the optimiser contract, determinism, and the kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.ops.adam_atan2 import reference
from rtm_kernels.ops.adam_atan2.api import AdamATan2, SparseSignSGD, sign_sgd_

CHECKOUT = Path(__file__).parents[2]
GOLDEN = [CHECKOUT / "tests/golden/adam_atan2.safetensors", CHECKOUT.parent / "shared/golden/adam_atan2.safetensors"]


@pytest.fixture(scope="module")
def golden():
    from safetensors.torch import load_file

    found = [path for path in GOLDEN if path.is_file()]
    if not found:
        pytest.skip("no golden file in tests/golden or ../shared/golden")
    return load_file(found[0])


def golden_run(golden, row, dtype, impl="auto"):
    """The largest distance to the golden parameters after each of the six steps, in units of their float32 spacing."""
    lr, beta1, beta2, weight_decay = golden[f"{row}.hyper"].tolist()
    param = torch.nn.Parameter(golden[f"{row}.p0"].to(dtype))
    optimizer = AdamATan2([param], lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, impl=impl)
    errors = []
    for step in range(1, 7):
        param.grad = golden[f"{row}.g{step}"].to(dtype)
        optimizer.step()
        want = golden[f"{row}.p{step}"]
        spacing = torch.nextafter(want.abs(), torch.tensor(torch.inf)) - want.abs()
        errors.append(((param.detach() - want) / spacing.clamp_min(1e-30)).abs().max().item())
    return errors


@pytest.mark.parametrize("row", range(3))
def test_golden_trajectory_in_float64_rounds_to_the_stored_float32(golden, row):
    assert max(golden_run(golden, row, torch.float64)) <= 0.51


@pytest.mark.parametrize("row", range(3))
def test_golden_trajectory_in_float32_stays_within_rounding_of_each_step(golden, row):
    for step, error in enumerate(golden_run(golden, row, torch.float32), start=1):
        assert error <= 2 * step, f"step {step}"
