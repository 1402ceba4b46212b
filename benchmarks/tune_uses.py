"""What launch rows are tuned for: every op forward and backward at the published sizes, each with its check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.gate import BAND, refusal, within_budget
from benchmarks.problem import Problem, make
from benchmarks.providers import PERSISTENT, TRITON, Provider, half_layer, run_of
from rtm_kernels.ops.adam_atan2 import reference as optimisers
from rtm_kernels.ops.adam_atan2.op import adam_atan2_op, sign_sgd_op
from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.reference import initial_state
from rtm_kernels.ops.token_loss.api import token_loss

Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Work:
    """A call whose launches are tuned, and why what it computes now must not be timed (None: it may)."""

    run: Callable[[], Outputs]
    refusal: Callable[[], str | None]


@dataclass(frozen=True)
class Use:
    """A named piece of work; it is built when its turn comes."""

    name: str
    build: Callable[[], Work]


def layer(case: Case, provider: Provider) -> Work:
    """The forward pass of a latent task."""
    problem = make(case, copies=1)
    run = run_of(provider, problem)
    return Work(lambda: run(problem.inputs[0]), lambda: refusal(provider, problem))


def gradient(case: Case) -> Work:
    """Forward and backward of a half layer: gradients of its input and weights under a fixed upstream gradient."""
    problem = make(case, copies=1)
    samples = sorted({0, case.batch - 1})

    def refused() -> str | None:
        few = problem.take(samples)
        truth = _gradients(few.double(), "reference")()
        base, got = _gradients(few, "reference")(), _gradients(few, "triton")()
        finite = all(t.isfinite().all() for t in run())
        return within_budget(got, base, truth, band=BAND) if finite else "values that are not finite"

    run = _gradients(problem, "triton")
    return Work(run, refused)


def _gradients(problem: Problem, impl: str) -> Callable[[], Outputs]:
    call, weights = half_layer(problem, impl)
    inputs = {name: t.detach().requires_grad_() for name, t in problem.inputs[0].items()}
    generator = torch.Generator().manual_seed(1)
    shape = inputs["h"].shape
    upstream = torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs["h"])
    return lambda: torch.autograd.grad(call(inputs), [*inputs.values(), *weights], upstream)


def loss(batch: int, length: int, vocabulary: int, device: str, dtype: torch.dtype) -> Work:
    """The token loss with its gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, length, vocabulary, generator=generator).to(device, dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (batch, length), generator=generator).to(device)

    def run(impl: str = "triton", logits: Tensor = logits) -> Outputs:
        found = token_loss(logits, labels, impl=impl).loss
        return found.detach(), *torch.autograd.grad(found.sum(), logits)

    def refused() -> str | None:
        truth = run("reference", logits.detach().double().requires_grad_())
        return within_budget(run(), run("reference"), truth, band=BAND)

    return Work(run, refused)


def halting(batch: int, length: int, width: int, policy: str, device: str, dtype: torch.dtype) -> Work:
    """One halting step from a fresh state."""
    token = policy == "cumulative_token"
    generator = torch.Generator().manual_seed(0)
    y, weight = (torch.randn(*n, width, generator=generator).to(device, dtype) for n in ((batch, length), (2,)))
    options = {"policy": policy, "max_steps": 16, "weight": weight, "pool": "token" if token else "first"}
    if policy == "settle":
        options = {"policy": policy, "max_steps": 16, "previous": y + 0.01}

    def run(impl: str = "triton", y: Tensor = y) -> Outputs:
        wide = {k: v.to(y.dtype) if isinstance(v, Tensor) else v for k, v in options.items()}
        state = initial_state(batch, length if token else 1, y.device)
        found = halting_step_(state, y, impl=impl, **wide)
        read = (found.logits, state.accumulated, state.weight, found.order.float(), found.still_active.float())
        return [t for t in read if t.numel()]

    return Work(run, lambda: within_budget(run(), run("reference"), run("reference", y.double()), band=8 * BAND))


def adam(sizes: Sequence[tuple[int, ...]], device: str) -> Work:
    """One AdamATan2 update of float32 parameters."""
    generator = torch.Generator().manual_seed(0)
    lists = [[torch.rand(size, generator=generator).to(device) for size in sizes] for _ in range(4)]

    steps, settings = [torch.full((), 2.0, device=device) for _ in sizes], (0.9, 0.95, 0.1)
    scalars = optimisers.scalars(device, 1e-4, None)

    def run() -> Outputs:
        adam_atan2_op(*lists, steps, *scalars, *settings)
        return lists[0]

    def refused() -> str | None:
        exact = [[t.double() for t in tensors] for tensors in lists]
        base = [[t.clone() for t in tensors] for tensors in lists]
        for copies in (exact, base):
            optimisers.adam_atan2_(*copies, [step.clone() for step in steps], *scalars, *settings)
        return within_budget(run(), base[0], exact[0], band=BAND)

    return Work(run, refused)


def sign_sgd(rows: int, batch: int, width: int, device: str) -> Work:
    """One sign-SGD update of a sparse embedding."""
    generator = torch.Generator().manual_seed(0)
    weights, grad = (torch.randn(n, width, generator=generator).to(device) for n in (rows, batch))
    ids = torch.randint(0, rows, (batch,), generator=generator, dtype=torch.int32).to(device)
    scalars = optimisers.scalars(device, 1e-2, None)

    def run() -> Outputs:
        sign_sgd_op(weights, ids, grad, *scalars, 0.1)
        return (weights,)

    def refused() -> str | None:
        exact, base = weights.double(), weights.clone()
        for copy in (exact, base):
            optimisers.sign_sgd_(copy, ids, grad.to(copy.dtype), *scalars, 0.1)
        return within_budget(run(), [base], [exact], band=BAND)

    return Work(run, refused)


def half_layers(model: str, batch: int, device: str, dtype: str, tasks: Sequence[str]) -> list[Use]:
    """Forward, and forward with backward, of the half layers of a model."""
    found = []
    for task in tasks:
        case = Case(model, task, batch, dtype, device)
        found += [
            Use(case.name, partial(layer, case, TRITON)),
            Use(f"{case.name}-gradient", partial(gradient, case)),
        ]
    return found


def uses(device: str = "cuda") -> list[Use]:
    """Everything that is tuned on a GPU, what most of the time is spent in first."""
    dtype, half = "bfloat16", torch.bfloat16
    latency = Case("sudoku", "block", 1, dtype, device)
    return [
        *half_layers("sudoku", 768, device, dtype, ("mixer", "channel")),
        *half_layers("arc1", 64, device, dtype, ("mixer", "channel")),
        Use(latency.name, partial(layer, latency, PERSISTENT)),
        Use("token_loss", partial(loss, 768, 81, 11, device, half)),
        Use("adam_atan2", partial(adam, ((1024, 97), (97, 512), (3072, 512), (512, 1536)) * 2, device)),
        Use("sign_sgd", partial(sign_sgd, 100_000, 768, 512, device)),
        *(
            Use(f"halting-{policy}", partial(halting, 768, 97, 512, policy, device, half))
            for policy in ("q", "cumulative_token", "settle")
        ),
        *half_layers("small", 768, device, dtype, ("mixer", "channel")),
    ]
