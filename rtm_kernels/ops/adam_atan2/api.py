"""AdamATan2, and sign-SGD of embedding rows: the public functions of the op."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from rtm_kernels.errors import BackendUnavailable, one_of, require
from rtm_kernels.impl import IMPLS
from rtm_kernels.ops.adam_atan2 import reference
from rtm_kernels.ops.launch import choose


def sign_sgd_(
    weights: Tensor, ids: Tensor, grad: Tensor, *, lr: float | Tensor, weight_decay: float,
    found_inf: Tensor | None = None, impl: str = "auto",
) -> None:  # fmt: skip
    """Sign-SGD on the rows of an embedding that `ids` names, in place: `w <- w (1 - lr wd) - lr sign(g)`.

    weights [N, D] float32 or float64, ids [B] integer in 0..N-1, grad [B, D] of the same dtype. Gradients of a
    repeated id are summed in batch order before the sign, so equal inputs give equal bits. The kernel leaves ids
    out of range alone, because refusing them would make the host wait; the reference raises `IndexError`.
    A CUDA graph can capture it: `lr` may be a tensor on the device, which a schedule fills in place and which is not
    checked, and nothing changes where the element of `found_inf` is not 0.

    Errors: `InputError` for shapes or dtypes that do not fit, `BackendUnavailable` for a named `impl` that cannot run.
    Source: models/sparse_embedding.py of the TRM repository.
    """
    require(weights.ndim == 2, "weights.shape", tuple(weights.shape), "[N, D]")
    _require_master("weights.dtype", weights)
    integer = not ids.dtype.is_floating_point and ids.dtype is not torch.bool
    require(ids.ndim == 1 and integer, "ids", f"{ids.dtype}{list(ids.shape)}", "a vector of integers")
    wanted = (len(ids), weights.shape[1])
    require(tuple(grad.shape) == wanted, "grad.shape", tuple(grad.shape), f"{wanted}, one row per id")
    require(grad.dtype == weights.dtype, "grad.dtype", grad.dtype, f"the dtype of weights, {weights.dtype}")
    require(ids.device == weights.device == grad.device, "ids.device", ids.device, f"as weights, {weights.device}")
    _require_rates(0.0 if isinstance(lr, Tensor) else lr, weight_decay)
    scalars = reference.scalars(weights.device, lr, found_inf)
    if choose(impl, weights.device, weights.dtype) == "triton":
        require(weights.is_contiguous(), "weights.stride()", weights.stride(), "contiguous with impl='triton'")
        sign_sgd_op(weights, ids, grad, *scalars, weight_decay)
    else:
        reference.sign_sgd_(weights, ids, grad, *scalars, weight_decay)


class AdamATan2(Optimizer):
    """`p <- p (1 - lr wd) - lr/bc1 * atan2(m, sqrt(v / bc2))`: Adam without epsilon, invariant to the gradient's scale.

    Parameters are float32 or float64 master weights. The state holds `step`, `exp_avg` and `exp_avg_sq`, as Adam's, all
    on the parameter's device. With Triton all parameters of a group and device are updated in one launch.

    A CUDA graph can capture it, with the bits of the same steps without one: `lr` may be a tensor on the device, which
    a schedule fills in place, and where the element of `found_inf` is not 0, an attribute that PyTorch's fused
    optimisers have too, nothing changes.

    Errors: `InputError` for a hyper-parameter out of range, a parameter of another dtype, or a sparse gradient.
    Source: arXiv 2407.05872, section 4; the update equals the CUDA kernel of the package adam-atan2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        *,
        impl: str = "auto",
    ) -> None:
        _require_rates(float(lr), weight_decay)
        for beta in betas:
            require(0 <= beta < 1, "betas", betas, "two numbers from 0 to below 1")
        # `capturable` lets `load_state_dict` put steps on the device
        settings = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay, "capturable": True}
        super().__init__(params, settings)
        self.impl = impl
        self.found_inf: Tensor | None = None
        for group in self.param_groups:
            for param in group["params"]:
                _require_master("params", param)
                _choose_adam(impl, param)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for (device, chosen), rows in self._buckets(group["params"]).items():
                columns = [list(column) for column in zip(*rows, strict=True)]
                scalars = reference.scalars(device, group["lr"], self.found_inf)
                update: Callable[..., None] = adam_atan2_op if chosen == "triton" else reference.adam_atan2_
                update(*columns, *scalars, *group["betas"], group["weight_decay"])
        return loss

    def _buckets(self, params: list[Tensor]) -> dict[tuple[torch.device, str], list[tuple[Tensor, ...]]]:
        """param, grad, exp_avg, exp_avg_sq and step of all with a gradient, by device and implementation."""
        buckets: dict[tuple[torch.device, str], list[tuple[Tensor, ...]]] = defaultdict(list)
        for param in params:
            if param.grad is None:
                continue
            require(not param.grad.is_sparse, "grad.layout", param.grad.layout, "dense; `sign_sgd_` updates embeddings")
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros((), device=param.device)
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
            bucket = (param.device, _choose_adam(self.impl, param))
            buckets[bucket].append((param, param.grad, state["exp_avg"], state["exp_avg_sq"], state["step"]))
        return buckets


def _choose_adam(impl: str, param: Tensor) -> str:
    """`reference` or `triton`; the kernel is float32 only, so `auto` takes the reference for float64."""
    if param.dtype == torch.float64:
        one_of("impl", impl, IMPLS)
        if impl == "triton":
            raise BackendUnavailable("impl='triton' cannot run: the kernel of AdamATan2 updates float32 parameters")
        return "reference"
    return choose(impl, param.device, param.dtype)


def _require_master(name: str, tensor: Tensor) -> None:
    dtype = tensor.dtype
    require(dtype in (torch.float32, torch.float64), name, dtype, "master weights in float32 or float64")


def _require_rates(lr: float, weight_decay: float) -> None:
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        require(0 <= value < math.inf, name, value, "a finite number of at least 0")


@torch.library.custom_op("rtm_kernels::adam_atan2_", mutates_args=("params", "exp_avgs", "exp_avg_sqs", "steps"))
def adam_atan2_op(
    params: Sequence[Tensor], grads: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor], lr: Tensor, found_inf: Tensor, beta1: float, beta2: float, weight_decay: float,
) -> None:  # fmt: skip
    """`reference.adam_atan2_` in one launch."""
    from rtm_kernels.ops.adam_atan2.kernels import adam_atan2

    with torch.cuda.device_of(params[0]):
        adam_atan2(params, grads, exp_avgs, exp_avg_sqs, steps, lr, found_inf, beta1, beta2, weight_decay)


@torch.library.custom_op("rtm_kernels::sign_sgd_", mutates_args=("weights",))
def sign_sgd_op(
    weights: Tensor, ids: Tensor, grad: Tensor, lr: Tensor, found_inf: Tensor, weight_decay: float
) -> None:  # fmt: skip
    """`reference.sign_sgd_` in one launch after a sort of the ids."""
    from rtm_kernels.ops.adam_atan2.kernels import sign_sgd

    with torch.cuda.device_of(weights):
        sign_sgd(weights, ids, grad, lr, found_inf, weight_decay)


for registered in (adam_atan2_op, sign_sgd_op):
    registered.register_fake(lambda *_: None)
