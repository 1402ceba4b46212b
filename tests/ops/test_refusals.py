"""What every op says to an argument that does not fit: one line that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.ops import launch
from rtm_kernels.ops.adam_atan2.api import AdamATan2, sign_sgd_
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm
from rtm_kernels.ops.token_loss.api import token_loss

X = torch.ones(2, 5, 16)


def channel(**change: Any) -> object:
    weights = {"gate_up_weight": torch.ones(48, 16), "down_weight": torch.ones(16, 24)}
    return swiglu_norm(**{"x": X, **weights, "injection": (X,), **change})


def mixer(**change: Any) -> object:
    weights = {"gate_up_weight": torch.ones(48, 5), "down_weight": torch.ones(5, 24)}
    return mixer_norm(**{"x": X, **weights, "injection": (X,), **change})


def attention(**change: Any) -> object:
    weights = {"qkv_weight": torch.ones(48, 16), "o_weight": torch.ones(16, 16)}
    return attention_norm(**{"x": X, **weights, "num_heads": 2, **change})


def loss(**change: Any) -> object:
    return token_loss(**{"logits": torch.zeros(2, 5, 7), "labels": torch.zeros(2, 5, dtype=torch.int64), **change})


def adam(dtype: torch.dtype = torch.float32, **change: Any) -> object:
    return AdamATan2([nn.Parameter(torch.zeros(2, dtype=dtype))], **change)


def sign(**change: Any) -> object:
    given = {"weights": torch.zeros(4, 3), "ids": torch.zeros(2, dtype=torch.int64), "grad": torch.zeros(2, 3)}
    return sign_sgd_(**{**given, "lr": 0.1, "weight_decay": 0.1, **change})


ROWS: list[tuple[Callable[..., object], dict[str, Any], str]] = [
    *((op, {"impl": "cuda"}, "impl='cuda'") for op in (channel, mixer, attention, loss, adam, sign)),
    *((op, {"eps": -1.0}, "eps=-1.0") for op in (channel, mixer, attention)),
    *((op, {"x": X.long()}, "x.dtype=torch.int64") for op in (channel, mixer, attention)),
    *((op, {"injection": (X[0],)}, r"injection\[0\].shape=\(5, 16\)") for op in (channel, mixer, attention)),
    *((op, {"injection": (X.half(),)}, r"injection\[0\].dtype=.*float16") for op in (channel, mixer, attention)),
    *((op, {"x": X[0], "injection": ()}, r"x.shape=\(5, 16\)") for op in (mixer, attention)),
    (channel, {"x": torch.tensor(1.0), "injection": ()}, r"x.shape"),
    (channel, {"x": X[..., :15], "injection": ()}, r"gate_up_weight.shape"),
    (channel, {"down_weight": torch.ones(16, 25)}, r"gate_up_weight.shape"),
    (channel, {"down_weight": torch.ones(16)}, r"down_weight.shape"),
    (channel, {"gate_up_weight": torch.ones(48, 16, dtype=torch.int32)}, r"gate_up_weight.dtype"),
    (mixer, {"x": torch.ones(2, 6, 16), "injection": ()}, r"gate_up_weight.shape"),
    (mixer, {"norm_axis": "batch"}, "norm_axis='batch'"),
    (attention, {"num_heads": 3}, "num_heads=3 .* a divisor of D=16"),
    (attention, {"num_heads": 0}, "num_heads=0"),
    (attention, {"qkv_weight": torch.ones(16, 16)}, r"qkv_weight.shape=\(16, 16\) .*\(48, 16\)"),
    (attention, {"o_weight": torch.ones(16, 8)}, r"o_weight.shape=\(16, 8\)"),
    (attention, {"o_weight": torch.ones(16, 16, device="meta")}, r"o_weight.device=.*meta"),
    (attention, {"cos_sin": rope_tables(4, 8, 10.0)}, r"cos.shape=\(4, 8\) .*\(5, 8\)"),
    (attention, {"cos_sin": (torch.ones(5, 1),) * 2, "num_heads": 16}, "head_dim=1 .* even"),
    (attention, {"attention": "paged"}, "attention='paged'"),
    (loss, {"logits": torch.zeros(5, 7)}, r"logits.shape=\(5, 7\)"),
    (loss, {"logits": torch.zeros(2, 5, 0)}, r"logits.shape=\(2, 5, 0\)"),
    (loss, {"logits": torch.zeros(2, 5, 7, dtype=torch.int32)}, "logits.dtype=torch.int32"),
    (loss, {"labels": torch.zeros(2, 4, dtype=torch.int64)}, r"labels.shape=\(2, 4\) .*\(2, 5\)"),
    (loss, {"labels": torch.zeros(2, 5)}, "labels.dtype=torch.float32"),
    (loss, {"loss": "hinge"}, "loss='hinge'"),
    (adam, {"lr": -1.0}, "lr=-1.0"),
    (adam, {"lr": float("nan")}, "lr=nan"),
    (adam, {"weight_decay": float("inf")}, "weight_decay=inf"),
    (adam, {"betas": (0.9, 1.0)}, "betas="),
    (adam, {"dtype": torch.bfloat16}, "params=torch.bfloat16 .* float32 or float64"),
    (sign, {"weights": torch.zeros(3)}, "weights.shape="),
    (sign, {"weights": torch.zeros(4, 3).half()}, "weights.dtype=torch.float16"),
    (sign, {"ids": torch.zeros(2)}, "ids="),
    (sign, {"grad": torch.zeros(3, 3)}, r"grad.shape=\(3, 3\)"),
    (sign, {"grad": torch.zeros(2, 3).double()}, "grad.dtype=torch.float64"),
    (sign, {"lr": -0.1}, "lr=-0.1"),
    (sign, {"impl": "triton", "weights": torch.zeros(3, 4).t()}, "weights.stride"),
]


@pytest.mark.parametrize(("op", "change", "message"), ROWS)
def test_what_does_not_fit_is_named(op: Callable[..., object], change: dict[str, Any], message: str) -> None:
    if change.get("impl") == "triton":
        pytest.importorskip("triton")
    with pytest.raises(InputError, match=message):
        op(**change)


def test_a_dtype_that_a_kernel_does_not_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    with monkeypatch.context() as patch, pytest.raises(BackendUnavailable, match="GPU cannot compute"):
        patch.setattr(launch, "triton_interpreted", lambda: False)
        loss(logits=torch.zeros(2, 5, 7).double(), impl="triton")
    with pytest.raises(BackendUnavailable, match="float32"):
        adam(dtype=torch.float64, impl="triton")


def test_a_sparse_gradient_is_refused() -> None:
    param = nn.Parameter(torch.zeros(3, 2))
    param.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 2), (3, 2))
    with pytest.raises(InputError, match=r"grad\.layout=torch\.sparse_coo"):
        AdamATan2([param]).step()
