"""AdamATan2 and sparse sign-SGD: golden trajectories, the optimiser contract, determinism, the kernels, errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtm_kernels.errors import BackendUnavailable, InputError
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


@pytest.mark.parametrize("row", range(3))
def test_golden_trajectory_in_float64_rounds_to_the_stored_float32(trajectories: dict[str, Tensor], row: int) -> None:
    assert max(golden_run(trajectories, row, torch.float64, "reference")) <= 0.51


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("row", range(3))
def test_golden_trajectory_in_float32_stays_within_rounding(
    trajectories: dict[str, Tensor], row: int, impl: str
) -> None:
    for step, error in enumerate(golden_run(trajectories, row, torch.float32, impl), start=1):
        assert error <= 2 * step, f"step {step}"


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


@pytest.mark.parametrize("impl", IMPLS)
def test_a_state_dict_resumes_bit_for_bit(impl: str) -> None:
    model, optimizer = model_and_optimizer(impl)
    steps(model, optimizer, 2)
    twin, resumed = model_and_optimizer(impl, seed=5)
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, resumed)):
        steps(m, o, 2, seed=9)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    entry = optimizer.state_dict()["state"][0]
    assert set(entry) == {"step", "exp_avg", "exp_avg_sq"} and entry["step"] == 4


def test_one_launch_updates_all_parameters_of_a_group_and_says_so_to_autograd() -> None:
    model, optimizer = model_and_optimizer("triton")
    params = list(model.parameters())
    versions = [p._version for p in params]
    launches.clear()
    steps(model, optimizer, 1)
    assert launches == {"adam_atan2": 1}
    assert all(p._version > v for p, v in zip(params, versions, strict=True))


def test_kernel_and_reference_agree_over_steps_with_parameters_that_skip_some() -> None:
    trained = []
    for impl in IMPLS:
        model, optimizer = model_and_optimizer(impl, weight_decay=0.5)
        steps(model, optimizer, 2)
        optimizer.zero_grad()
        first = next(model.parameters())
        first.grad = torch.ones_like(first)
        optimizer.step()
        steps(model, optimizer, 1, seed=3)
        assert [optimizer.state[p]["step"].item() for p in model.parameters()] == [4, 3, 3]
        trained.append(list(model.parameters()))
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


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
    plain, tensors = model_and_optimizer(impl), model_and_optimizer(impl)
    for model, optimizer in (plain, tensors):
        table, ids = torch.ones(5, 3), torch.tensor([1, 1, 4])
        rate = torch.tensor(0.0, dtype=torch.float64)
        found_inf = torch.zeros(())
        if optimizer is tensors[1]:
            optimizer.param_groups[0]["lr"], optimizer.found_inf = rate, found_inf
        for i, lr in enumerate((1e-2, 7e-3, 3e-3)):
            rate.fill_(lr)
            if optimizer is plain[1]:
                optimizer.param_groups[0]["lr"] = lr
            else:
                found_inf.fill_(1.0)
                before = [t.clone() for t in (table, *model.parameters(), *flat_state(optimizer))]
                g = torch.full((3, 3), torch.nan)
                for p in model.parameters():
                    p.grad = torch.full_like(p, torch.nan)
                if i:
                    optimizer.step()
                    sign_sgd_(table, ids, g, lr=rate, weight_decay=0.1, found_inf=found_inf, impl=impl)
                    assert all(map(torch.equal, before, (table, *model.parameters(), *flat_state(optimizer))))
                found_inf.fill_(0.0)
            steps(model, optimizer, 1, seed=i)
            grad = torch.linspace(-1, 1, 9).reshape(3, 3)
            sign_sgd_(table, ids, grad, lr=lr if optimizer is plain[1] else rate, weight_decay=0.1,
                      found_inf=None if optimizer is plain[1] else found_inf, impl=impl)  # fmt: skip
        assert [s["step"].item() for s in optimizer.state.values()] == [3.0] * 3
        model.table = table
    assert all(map(torch.equal, plain[0].parameters(), tensors[0].parameters()))
    assert torch.equal(plain[0].table, tensors[0].table)


def flat_state(optimizer: AdamATan2) -> list[Tensor]:
    return [t for state in optimizer.state.values() for t in state.values()]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_update_does_not_depend_on_the_scale_of_the_gradient(scale: float) -> None:
    moved = []
    for factor in (1.0, scale):
        param = nn.Parameter(torch.zeros(50))
        optimizer = AdamATan2([param], lr=1.0, impl="triton")
        param.grad = torch.linspace(-1, 1, 50) * factor
        optimizer.step()
        moved.append(param.detach())
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-5, atol=1e-6)
    assert moved[0].abs().max() <= torch.pi / 2 * 10 * (1 + 1e-6)


def test_every_angle_of_the_kernel_is_float32_exact() -> None:
    from rtm_kernels.ops.adam_atan2.adam import adam_atan2

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


def test_opcheck() -> None:
    g = torch.Generator().manual_seed(0)
    lists = [[torch.rand(n, generator=g) for n in (5, 3)] for _ in range(4)]
    steps, settings = [torch.zeros(()) for _ in range(2)], scalars("cpu", 0.1, None)
    torch.library.opcheck(torch.ops.rtm_kernels.adam_atan2_, (*lists, steps, *settings, 0.9, 0.95, 0.1))
    ids = torch.tensor([2, 0, 2])
    arguments = (torch.rand(4, 6, generator=g), ids, torch.rand(3, 6, generator=g), *settings, 0.1)
    torch.library.opcheck(torch.ops.rtm_kernels.sign_sgd_, arguments)


def _adam(**change: Any) -> AdamATan2:
    return AdamATan2([nn.Parameter(torch.zeros(2, dtype=change.pop("dtype", torch.float32)))], **change)


def _sign(**change: Any) -> None:
    given = {"weights": torch.zeros(4, 3), "ids": torch.zeros(2, dtype=torch.int64), "grad": torch.zeros(2, 3)}
    sign_sgd_(**{**given, "lr": 0.1, "weight_decay": 0.1, **change})


@pytest.mark.parametrize(
    ("call", "change", "message"),
    [
        (_adam, {"lr": -1.0}, "lr=-1.0"),
        (_adam, {"lr": float("nan")}, "lr=nan"),
        (_adam, {"weight_decay": float("inf")}, "weight_decay=inf"),
        (_adam, {"betas": (0.9, 1.0)}, "betas="),
        (_adam, {"dtype": torch.bfloat16}, "params=torch.bfloat16 .* float32 or float64"),
        (_adam, {"impl": "cuda"}, "impl='cuda'"),
        (_sign, {"weights": torch.zeros(3)}, "weights.shape="),
        (_sign, {"weights": torch.zeros(4, 3).half()}, "weights.dtype=torch.float16"),
        (_sign, {"ids": torch.zeros(2)}, "ids="),
        (_sign, {"grad": torch.zeros(3, 3)}, r"grad.shape=\(3, 3\)"),
        (_sign, {"grad": torch.zeros(2, 3).double()}, "grad.dtype=torch.float64"),
        (_sign, {"lr": -0.1}, "lr=-0.1"),
        (_sign, {"impl": "triton", "weights": torch.zeros(3, 4).t()}, "weights.stride"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[..., Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(**change)


def test_sparse_gradients_and_float64_kernels_are_refused() -> None:
    param = nn.Parameter(torch.zeros(3, 2))
    param.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 2), (3, 2))
    with pytest.raises(InputError, match=r"grad\.layout=torch\.sparse_coo"):
        AdamATan2([param]).step()
    with pytest.raises(BackendUnavailable, match="float32"):
        _adam(dtype=torch.float64, impl="triton")
