"""Cases of the optimiser updates for the interpreter gate: tensors after a step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.adam_atan2.api import AdamATan2, sign_sgd_
from tests.gates.interpret_gate import OpCase, Tensors
from tests.ops.support import laid_out

SHAPES = (((97, 24), (1,), (7, 130)), ((3, 5, 7), (0, 4), (300,)), ((511,), (512,), (513,)), ((2, 1, 3),))
LAYOUTS = ("plain", "offset", "strided")
SPARSE = (
    (5, 9, 24, "plain"), (20, 40, 100, "strided"), (1, 17, 1, "offset"), (7, 0, 8, "plain"), (3, 1, 7, "plain"),
    (2, 33, 65, "plain"), (64, 31, 3, "transposed"), (9, 12, 63, "offset"), (100, 7, 64, "plain"),
    (4, 5, 16, "plain"), (1, 1, 1, "plain"), (50, 3, 130, "strided"),
)  # fmt: skip
"""N, B, D and the layout of the gradient."""


def _make_adam(shapes: tuple[tuple[int, ...], ...], layout: str, g: torch.Generator) -> dict[str, Tensor]:
    tensors = {}
    for i, shape in enumerate(shapes):
        tensors[f"p{i}"] = torch.randn(shape, generator=g)
        for step in (1, 2):
            scale = 10.0 ** torch.randint(-6, 3, shape, generator=g)
            tensors[f"g{i}.{step}"] = (laid_out(shape, layout, g).detach() * scale).requires_grad_(False)
    return tensors


def _call_adam(beta1: float, impl: str, t: Tensors) -> tuple[Tensor, ...]:
    params = [torch.nn.Parameter(t[name].clone()) for name in sorted(t) if name.startswith("p")]
    optimizer = AdamATan2(params, lr=1e-2, betas=(beta1, 0.95), weight_decay=0.5, impl=impl)
    for step in (1, 2):
        for i, param in enumerate(params):
            param.grad = t[f"g{i}.{step}"]
        optimizer.step()
    state = [optimizer.state[p][name] for p in params for name in ("exp_avg", "exp_avg_sq")]
    return (*(p.detach() for p in params), *state)


def _make_sparse(rows: int, batch: int, width: int, layout: str, g: torch.Generator) -> dict[str, Tensor]:
    grad = laid_out((batch, width), layout, g).detach()
    grad.mul_(torch.rand(grad.shape, generator=g) > 0.3)
    weights = torch.randn(rows, width, generator=g)
    return {"weights": weights, "grad": grad, "ids": torch.randint(0, rows, (batch,), generator=g)}


def _call_sparse(impl: str, t: Tensors) -> Tensor:
    weights = t["weights"].clone()
    sign_sgd_(weights, t["ids"], t["grad"], lr=0.01, weight_decay=0.1, impl=impl)
    return weights


def case(shapes: tuple[tuple[int, ...], ...], layout: str, beta1: float) -> OpCase:
    """One configuration of AdamATan2; without momentum (beta1 = 0) its angles also pass pi / 4."""
    name = f"{list(map(list, shapes))} {layout} beta1={beta1}"
    return OpCase("adam_atan2", name, partial(_make_adam, shapes, layout), partial(_call_adam, beta1))


def sparse_case(rows: int, batch: int, width: int, layout: str) -> OpCase:
    """One configuration of sign-SGD."""
    name = f"N={rows} B={batch} D={width} {layout}"
    return OpCase("sign_sgd", name, partial(_make_sparse, rows, batch, width, layout), _call_sparse)


def interpret_cases() -> Iterator[OpCase]:
    """Many tensors of odd and empty shapes in one launch; repeated, single and no ids."""
    yield from (case(shapes, layout, beta1) for shapes in SHAPES for layout in LAYOUTS for beta1 in (0.0, 0.9))
    yield from (sparse_case(*row) for row in SPARSE)
