"""The optimiser updates: AdamATan2 over many tensors, sign-SGD over rows of a table."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rtm_kernels.ops.adam_atan2.api import AdamATan2, sign_sgd_
from rtm_kernels.ops.adam_atan2.kernels import TABLE, adam_atan2, sign_sgd
from rtm_kernels.ops.adam_atan2.reference import scalars
from tests.cases.case import SIZES, Case, Op, Tensors, Tuned, meta
from tests.ops.support import LAYOUTS, laid_out

Shapes = tuple[tuple[int, ...], ...]
SHAPES: tuple[Shapes, ...] = (
    ((97, 24), (1,), (7, 130)), ((3, 5, 7), (0, 4), (300,)), ((511,), (512,), (513,)), ((2, 1, 3),),
)  # fmt: skip
SPARSE = (  # N, B, D and the layout of the gradient
    (5, 9, 24, "plain"), (20, 40, 100, "strided"), (1, 17, 1, "offset"), (7, 0, 8, "plain"), (3, 1, 7, "plain"),
    (2, 33, 65, "plain"), (64, 31, 3, "transposed"), (9, 12, 63, "offset"), (100, 7, 64, "plain"),
    (4, 5, 16, "plain"), (1, 1, 1, "plain"), (50, 3, 130, "strided"),
)  # fmt: skip
OFFICIAL = ((1024, 97), (97, 512), (3072, 512), (512, 1536)) * 2


def _make_adam(shapes: Shapes, layout: str, g: torch.Generator) -> dict[str, Tensor]:
    tensors = {}
    for i, shape in enumerate(shapes):
        tensors[f"p{i}"] = torch.randn(shape, generator=g)
        for step in (1, 2):
            scale = 10.0 ** torch.randint(-6, 3, shape, generator=g)
            tensors[f"g{i}.{step}"] = (laid_out(shape, layout, g).detach() * scale).requires_grad_(False)
    return tensors


def _optimiser(beta1: float, impl: str, t: Tensors) -> tuple[AdamATan2, list[torch.nn.Parameter]]:
    params = [torch.nn.Parameter(t[name].clone()) for name in sorted(t) if name.startswith("p")]
    return AdamATan2(params, lr=1e-2, betas=(beta1, 0.95), weight_decay=0.5, impl=impl), params


def _two_steps(beta1: float, impl: str, t: Tensors) -> tuple[Tensor, ...]:
    optimizer, params = _optimiser(beta1, impl, t)
    for step in (1, 2):
        for i, param in enumerate(params):
            param.grad = t[f"g{i}.{step}"]
        optimizer.step()
    state = [optimizer.state[p][name] for p in params for name in ("exp_avg", "exp_avg_sq")]
    return (*(p.detach() for p in params), *state)


def _one_step(t: Tensors) -> Callable[[], list[Tensor]]:
    optimizer, params = _optimiser(0.9, "triton", t)
    for i, param in enumerate(params):
        param.grad = t[f"g{i}.1"]
    return lambda: [p.detach() for p in params if optimizer.step() is None]


def adam(shapes: Shapes, layout: str, beta1: float) -> Case:
    """Two steps of AdamATan2; without momentum (beta1 = 0) its angles also pass pi / 4."""
    name = f"{list(map(list, shapes))} {layout} beta1={beta1}"
    return Case("adam_atan2", name, partial(_make_adam, shapes, layout), partial(_two_steps, beta1), start=_one_step)


def _make_sparse(rows: int, batch: int, width: int, layout: str, g: torch.Generator) -> dict[str, Tensor]:
    grad = laid_out((batch, width), layout, g).detach()
    grad.mul_(torch.rand(grad.shape, generator=g) > 0.3)
    weights = torch.randn(rows, width, generator=g)
    return {"weights": weights, "grad": grad, "ids": torch.randint(0, rows, (batch,), generator=g)}


def _call_sparse(impl: str, t: Tensors) -> Tensor:
    weights = t["weights"].clone()
    sign_sgd_(weights, t["ids"], t["grad"], lr=0.01, weight_decay=0.1, impl=impl)
    return weights


def _sparse_in_place(t: Tensors) -> Callable[[], Tensor]:
    def step() -> Tensor:
        sign_sgd_(t["weights"], t["ids"], t["grad"], lr=0.01, weight_decay=0.1, impl="triton")
        return t["weights"]

    return step


def sparse(rows: int, batch: int, width: int, layout: str) -> Case:
    """One step of sign-SGD for B ids of a table [N, D]."""
    name = f"N={rows} B={batch} D={width} {layout}"
    make = partial(_make_sparse, rows, batch, width, layout)
    return Case("sign_sgd", name, make, _call_sparse, start=_sparse_in_place)


def launch_adam() -> None:
    """One step on meta tensors."""
    tensors, steps = [meta(3072, 512), meta(11, 512)], [meta(), meta()]
    adam_atan2(tensors, tensors, tensors, tensors, steps, *scalars("meta", 1e-4, None), 0.9, 0.95, 0.1)


def launch_sparse(batch: int, rows: int, width: int, ids: torch.dtype = torch.int64) -> None:
    """One step of sign-SGD on meta tensors."""
    sign_sgd(meta(rows, width), meta(batch, dtype=ids), meta(batch, width), *scalars("meta", 1e-2, None), 0.1)


def draw_adam(rng: random.Random) -> tuple[Case, torch.dtype]:
    shapes = tuple((rng.choice(SIZES), rng.choice(SIZES)) for _ in range(rng.randint(1, 4)))
    return adam(shapes, rng.choice(("plain", "offset")), rng.choice((0.0, 0.9))), torch.float32


def draw_sparse(rng: random.Random) -> tuple[Case, torch.dtype]:
    layout = rng.choice([name for name in LAYOUTS if name != "expanded"])
    return sparse(rng.choice(SIZES), rng.choice(SIZES[:12]), rng.choice(SIZES), layout), torch.float32


OP = Op(
    gate=[
        *(adam(s, lay, beta1) for s in SHAPES for lay in ("plain", "offset", "strided") for beta1 in (0.0, 0.9)),
        *(sparse(*row) for row in SPARSE),
    ],
    small=[
        adam(SHAPES[0], "plain", 0.9), adam(((511,), (513,)), "offset", 0.0),
        sparse(5, 9, 70, "plain"), sparse(3, 12, 24, "strided"),
    ],
    drawn=[draw_adam, draw_sparse],
    launched={
        "adam_atan2 float32": launch_adam,
        "sign_sgd float32": lambda: launch_sparse(768, 1000, 512, torch.int32),
    },
    by_batch={"sign_sgd": lambda b: launch_sparse(b, 1000, 512)},
    tuned=[
        Tuned("adam_atan2", lambda b: adam(OFFICIAL, "plain", 0.9), 1, torch.float32),
        Tuned("sign_sgd", lambda b: sparse(100_000, b, 512, "plain"), 768, torch.float32),
    ],
    tables={"adam_atan2": TABLE},
)  # fmt: skip
