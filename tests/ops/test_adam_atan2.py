"""AdamATan2 and sparse sign-SGD: golden trajectories, the optimiser contract, the kernels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtm_kernels.impl import launches
from rtm_kernels.ops.adam_atan2.api import AdamATan2, sign_sgd_
from rtm_kernels.ops.adam_atan2.reference import scalars

IMPLS = ("reference", "triton")


@pytest.fixture(scope="module")
def trajectories(golden: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(golden / "adam_atan2.safetensors")


def golden_run(golden: dict[str, Tensor], row: int, dtype: torch.dtype, impl: str) -> list[float]:
    """The largest distance to the golden parameters after each of the six steps, in units of their float32 spacing."""
    lr, beta1, beta2, weight_decay = golden[f"{row}.hyper"].tolist()
    param = nn.Parameter(golden[f"{row}.p0"].to(dtype, copy=True))
    optimizer = AdamATan2([param], lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, impl=impl)
    errors = []
    for step in range(1, 7):
        param.grad = golden[f"{row}.g{step}"].to(dtype)
        optimizer.step()
        want = golden[f"{row}.p{step}"]
        spacing = torch.nextafter(want.abs(), torch.tensor(torch.inf)) - want.abs()
        errors.append(((param.detach() - want) / spacing).abs().max().item())
    return errors


@pytest.mark.parametrize(("dtype", "impl"), [("float64", "reference"), *(("float32", impl) for impl in IMPLS)])
@pytest.mark.parametrize("row", range(3))
def test_golden_trajectory(trajectories: dict[str, Tensor], row: int, dtype: str, impl: str) -> None:
    """float64 rounds to the stored float32; float32 stays within two roundings a step."""
    for step, error in enumerate(golden_run(trajectories, row, getattr(torch, dtype), impl), start=1):
        assert error <= (0.51 if dtype == "float64" else 2 * step), f"step {step}"


def model_and_optimizer(impl: str, seed: int = 0, **options: Any) -> tuple[nn.Module, AdamATan2]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(7, 33), nn.Linear(33, 5, bias=False))
    return model, AdamATan2(model.parameters(), lr=1e-2, impl=impl, **options)


def steps(model: nn.Module, optimizer: AdamATan2, count: int, seed: int = 1) -> None:
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(4, 7, generator=g)).square().sum().backward()
        optimizer.step()


def test_one_launch_updates_all_parameters_of_a_group_and_says_so_to_autograd() -> None:
    model, optimizer = model_and_optimizer("triton")
    params = list(model.parameters())
    versions = [p._version for p in params]
    launches.clear()
    steps(model, optimizer, 1)
    assert launches == {"adam_atan2": 1}
    assert all(p._version > v for p, v in zip(params, versions, strict=True))


def test_strided_parameters_are_updated_in_place() -> None:
    updated = []
    for impl in IMPLS:
        storage = torch.arange(24.0).reshape(4, 6)
        param = nn.Parameter(storage.t())
        optimizer = AdamATan2([param], lr=0.5, weight_decay=0.0, impl=impl)
        param.grad = torch.ones(6, 4)
        optimizer.step()
        assert param.data_ptr() == storage.data_ptr()
        updated.append(storage)
    torch.testing.assert_close(*updated)
    torch.testing.assert_close(updated[0], torch.arange(24.0).reshape(4, 6) - 0.5 / 0.1 * math.atan(0.1))


@pytest.mark.parametrize("impl", IMPLS)
def test_rates_and_the_flag_to_leave_out_are_read_on_the_device(impl: str) -> None:
    """What a captured step needs: the bits of numbers, and nothing changes in a step whose flag is set."""
    ids, grad, trained = torch.tensor([1, 1, 4]), torch.linspace(-1, 1, 9).reshape(3, 3), []
    for on_device in (False, True):
        (model, optimizer), table = model_and_optimizer(impl), torch.ones(5, 3)
        rate, flag = torch.tensor(0.0, dtype=torch.float64), torch.zeros(())
        optimizer.found_inf = flag if on_device else None
        for i, lr in enumerate((1e-2, 7e-3, 3e-3)):
            rate.fill_(lr)
            optimizer.param_groups[0]["lr"] = given = rate if on_device else lr
            steps(model, optimizer, 1, seed=i)
            sign_sgd_(table, ids, grad, lr=given, weight_decay=0.1, found_inf=optimizer.found_inf, impl=impl)
        state = [t for s in optimizer.state.values() for t in s.values()]
        trained.append([t.clone() for t in (table, *model.parameters(), *state)])
    flag.fill_(1.0)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    sign_sgd_(table, ids, grad * torch.nan, lr=rate, weight_decay=0.1, found_inf=flag, impl=impl)
    for found in (trained[0], [table, *model.parameters(), *state]):
        assert all(map(torch.equal, trained[1], found))


def test_every_angle_of_the_kernel_is_float32_exact() -> None:
    from rtm_kernels.ops.adam_atan2.kernels import adam_atan2

    ratio = torch.cat((torch.tensor([0.0, 1.0, 0.41421356, 2.4142136, 1e-30, 1e30]), torch.logspace(-6, 6, 3000)))
    ratio = torch.cat((ratio, -ratio))
    param, exp_avg, exp_avg_sq = torch.zeros_like(ratio), ratio.clone(), torch.ones_like(ratio)
    step, one = torch.zeros(()), scalars("cpu", 1.0, None)
    adam_atan2([param], [ratio], [exp_avg], [exp_avg_sq], [step], *one, 0.0, 0.0, 0.0)  # m = g, v = g^2
    right = torch.atan2(ratio.double(), (ratio * ratio).sqrt().double())
    torch.testing.assert_close(param.double(), -right, rtol=3e-7, atol=0)
    param.zero_(), exp_avg.copy_(ratio), exp_avg_sq.fill_(1.0), step.zero_()
    adam_atan2([param], [torch.zeros_like(ratio)], [exp_avg], [exp_avg_sq], [step], *one, 0.5, 0.25, 0.0)
    right = 2 * torch.atan2(ratio.double() / 2, torch.full_like(ratio, 0.25).double().sqrt() / 0.75**0.5)
    torch.testing.assert_close(param.double(), -right, rtol=5e-7, atol=0)


def official_sign_sgd(weights: Tensor, ids: Tensor, grad: Tensor, lr: float, weight_decay: float) -> Tensor:
    """One row at a time, gradients of a repeated id summed in batch order."""
    result = weights.clone()
    for row in set(ids.tolist()):
        total = torch.zeros_like(weights[0])
        for place in (ids == row).nonzero().flatten():
            total += grad[place]
        result[row] = weights[row] * (1 - lr * weight_decay) - lr * total.sign()
    return result


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("rows", "batch", "width"), [(9, 20, 70), (1, 7, 3), (40, 5, 24)])
def test_sign_sgd_sums_repeated_ids_in_batch_order(impl: str, rows: int, batch: int, width: int) -> None:
    g = torch.Generator().manual_seed(0)
    weights, grad = torch.randn(rows, width, generator=g), torch.randn(batch, width, generator=g)
    grad[0] = 0
    ids = torch.randint(0, rows, (batch,), generator=g, dtype=torch.int32)
    wanted = official_sign_sgd(weights, ids, grad, 0.01, 0.1)
    launches.clear()
    sign_sgd_(weights, ids, grad, lr=0.01, weight_decay=0.1, impl=impl)
    assert torch.equal(weights, wanted)
    assert launches == ({"sign_sgd": 1} if impl == "triton" else {})


def test_sign_sgd_leaves_rows_that_do_not_exist_alone() -> None:
    weights = torch.ones(3, 4)
    sign_sgd_(weights, torch.tensor([-1, 7, 1]), torch.ones(3, 4), lr=0.5, weight_decay=0.0, impl="triton")
    assert weights.sum(1).tolist() == [4, 2, 4]
