"""Bits: the same in every run, whatever else is in the batch, and with a NaN beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.ops.adam_atan2.api import AdamATan2, sign_sgd_
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.policy import HaltingPolicy
from rtm_kernels.ops.halting.reference import Outputs, SlotStates
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm
from rtm_kernels.ops.token_loss.api import token_loss
from rtm_kernels.recursion.persistent.runner import PersistentExecutor
from tests.cases import small_cases
from tests.cases.case import Case, run
from tests.ops.support import swiglu_weights
from tests.proof.launching import bits, process
from tests.proof.tiles import tiles
from tests.recursion.support import small_stacks

pytest.importorskip("triton")

BATCHES = (1, 2, 3, 7, 8, 63, 64, 65, 255, 257, 300)
MOST = max(BATCHES)
LENGTH, WIDTH, INNER = 3, 16, 24
RERUNS = 25


def digest(case: Case) -> str:
    """A hash of every output and gradient of a case."""
    tensors = case.make(torch.Generator().manual_seed(4))
    outputs, gradients = run(case, "triton", tensors)
    return hashlib.sha256(b"".join(map(bits, (*outputs, *gradients.values())))).hexdigest()


@pytest.mark.proof("rerun")
@pytest.mark.parametrize("op", sorted({case.op for case in small_cases()}))
def test_the_same_bits_in_every_run(op: str, cells: Callable[[int], None]) -> None:
    case = next(case for case in small_cases() if case.op == op)
    assert len({digest(case) for _ in range(RERUNS)}) == 1
    cells(RERUNS)


FRESH = """
import sys
from tests.interpreter import take_loop_bounds
take_loop_bounds()
import torch
from tests.cases import small_cases
from tests.proof.test_bits import digest, training_step
torch.set_num_threads(int(sys.argv[1]))
print(*{training_step("triton") for _ in range(20)}, *map(digest, small_cases()))
print(*{training_step("reference") for _ in range(63)})
"""
PROCESSES = 4


@pytest.mark.proof("rerun")
def test_the_same_bits_in_every_process_with_any_number_of_threads_and_hash_seed(cells: Callable[[int], None]) -> None:
    """All small cases, 20 training steps of the kernels and 63 of PyTorch in each process."""
    found: dict[str, set[str]] = {}
    for number in range(PROCESSES):
        threads = number % 2 + 1
        kernels, eager = process("-c", FRESH, str(threads), PYTHONHASHSEED=str(number // 2)).splitlines()
        found.setdefault("kernels", set()).add(kernels)
        found.setdefault(f"eager, {threads} threads", set()).add(eager)  # its products may follow the threads
    assert [len(lines) for lines in found.values()] == [1, 1, 1]
    assert kernels.count(" ") == len(small_cases()) and " " not in eager
    cells(PROCESSES * (20 + 63 + len(small_cases())))


def test_the_hash_of_a_training_step_sees_a_small_change() -> None:
    assert training_step("reference") != training_step("reference", rate=1.1e-3)


def training_step(impl: str, rate: float = 1e-3) -> str:
    """A hash of the loss, every gradient and parameter of a layer with both mixers over two updates."""
    g, inner, vocabulary = torch.Generator().manual_seed(0), 24, 7
    sizes = ((2 * inner, 5), (5, inner), (3 * WIDTH, WIDTH), (WIDTH, WIDTH), (2 * inner, WIDTH), (WIDTH, inner),
             (vocabulary, WIDTH))  # fmt: skip
    weights = [(torch.randn(n, generator=g) / n[1] ** 0.5).requires_grad_() for n in sizes]
    table, tokens = torch.randn(4, WIDTH, generator=g), torch.randn(3, 5, WIDTH, generator=g)
    labels = torch.randint(0, vocabulary, (3, 5), generator=g)
    ids = torch.tensor([1, 3, 1])  # a duplicate, whose gradients are summed
    tables = rope_tables(5, WIDTH // 2, 10000.0)
    optimiser = AdamATan2(weights, lr=rate, weight_decay=0.1, impl=impl)
    found = hashlib.sha256()
    for _ in range(2):
        rows = table[ids].requires_grad_()
        x = tokens + rows[:, None]
        y = mixer_norm(tokens, *weights[:2], injection=(x,), impl=impl)
        y = attention_norm(y, *weights[2:4], num_heads=2, cos_sin=tables, impl=impl)
        y = swiglu_norm(y, *weights[4:6], injection=(x, tokens), impl=impl)
        loss = token_loss(F.linear(y, weights[6]), labels, impl=impl).loss.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        sign_sgd_(table, ids, rows.grad, lr=1e-2, weight_decay=0.1, impl=impl)
        for tensor in (loss, rows.grad, *(w.grad for w in weights), *weights, table):
            found.update(bits(tensor))
    return found.hexdigest()


Op = Callable[[Tensor, str], tuple[Tensor, ...]]
"""From x [B, L, D] and an implementation to tensors whose first axis is the batch."""


def _weights(size: int) -> tuple[Tensor, Tensor]:
    found = swiglu_weights(size, INNER, torch.Generator().manual_seed(0))
    return found["gate_up_weight"].detach(), found["down_weight"].detach()


def _with_gradient(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """y and the gradient of x under an upstream gradient that is a function of the sample alone."""

    def call(x: Tensor) -> tuple[Tensor, ...]:
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf)
        return y.detach(), *torch.autograd.grad(
            y, leaf, torch.cos(3 * x[:, : y.shape[1]]) if y.dim() == 3 else x[..., 0]
        )

    return call


def swiglu_op(x: Tensor, impl: str) -> tuple[Tensor, ...]:
    return _with_gradient(lambda h: swiglu_norm(h, *_weights(WIDTH), injection=(x,), impl=impl))(x)


def mixer_op(x: Tensor, impl: str) -> tuple[Tensor, ...]:
    return _with_gradient(lambda h: mixer_norm(h, *_weights(LENGTH), norm_axis="hidden", impl=impl))(x)


def attention_op(x: Tensor, impl: str) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    weights = (torch.randn(n * WIDTH, WIDTH, generator=g) / WIDTH**0.5 for n in (3, 1))
    tables, (qkv, out) = rope_tables(LENGTH, WIDTH // 2, 10000.0), weights
    return _with_gradient(lambda h: attention_norm(h, qkv, out, num_heads=2, cos_sin=tables, impl=impl))(x)


def loss_op(x: Tensor, impl: str) -> tuple[Tensor, ...]:
    labels = (x[..., 0] * 7).long() % WIDTH
    return _with_gradient(lambda h: token_loss(3 * h, labels, impl=impl).loss)(x)


def halting_op(x: Tensor, impl: str) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    states = SlotStates(HaltingPolicy(("cumulative_token", "settle", "q")), len(x), LENGTH, device=x.device)
    states.rows.copy_(states.fresh.expand(len(x), -1))
    at, head = states.first(len(x)), (torch.randn(2, WIDTH, generator=g).to(x), torch.zeros(2).to(x))
    halting_step_(at, states.policy, Outputs(x[..., :7], x[:, 0, :2], x, x.flip(1), (x,), head), impl=impl)
    return at.rows, at.residual, at.token_accumulated


def act_step_op(x: Tensor, impl: str) -> tuple[Tensor, ...]:
    program = programs.trm(1, 1)
    stacks = small_stacks(program.stacks, LENGTH, WIDTH, (8, INNER), "hidden")
    head = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1)), torch.zeros(2)
    values, q, change = PersistentExecutor(program, stacks, head=head).run({"z_H": x.flip(1), "z_L": x.flip(2)}, x)
    return *values.values(), q, change


OPS: dict[str, Op] = {
    "swiglu_norm": swiglu_op, "mixer_norm": mixer_op, "attention_norm": attention_op, "token_loss": loss_op,
    "halting": halting_op, "persistent ACT step": act_step_op,
}  # fmt: skip


def samples(count: int, seed: int) -> Tensor:
    return torch.randn(count, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


def differing(op: Op, impl: str, batches: tuple[int, ...]) -> list[int]:
    """Batch sizes at which some of the needles, at random places among strangers, has other bits than alone."""
    needles = samples(3, seed=0)
    alone = [op(needle[None], impl) for needle in needles]
    found = []
    for batch in batches:
        g = torch.Generator().manual_seed(batch)
        places = torch.randperm(batch, generator=g)[: len(needles)]
        x = samples(batch, seed=batch)
        x[places] = needles[: len(places)]
        together = op(x, impl)
        same = [
            bits(mine[place]) == bits(its[0])
            for place, one in zip(places.tolist(), alone, strict=False)
            for mine, its in zip(together, one, strict=True)
        ]
        found += [] if all(same) else [batch]
    return found


@pytest.mark.proof("batch")
@pytest.mark.parametrize("name", OPS)
def test_a_sample_has_the_same_bits_in_any_batch(name: str, cells: Callable[[int], None]) -> None:
    with tiles(64):
        assert differing(OPS[name], "triton", BATCHES) == []
    cells(len(BATCHES))


BUCKET = """
import torch
from rtm_kernels.ops.swiglu_norm.api import swiglu_norm
from tests.compiled.launching import installed
from tests.ops.support import swiglu_weights
g = torch.Generator().manual_seed(0)
weights = [w.detach() for w in swiglu_weights(136, 48, g).values()]
x = torch.randn(7, 16, 136, generator=g).bfloat16()
with installed(90) as executor:
    alone, *others = (swiglu_norm(x[6 - n :], *weights, impl="triton")[n] for n in (0, 1, 6))
    assert executor.launches == {"gate_up_kernel": 3, "gemm_kernel": 3}, executor.launches
    print(all(torch.equal(alone, other) for other in others))
"""


@pytest.mark.proof("batch")
def test_a_sample_has_the_same_bits_in_any_batch_of_a_bucket_as_compiled_for_hopper() -> None:
    assert process("-c", BUCKET, interpret=False).split() == ["True"]


@pytest.mark.proof("batch")
def test_a_run_of_16_steps_has_the_same_latents_and_halting_logits_in_any_batch(cells: Callable[[int], None]) -> None:
    program = programs.transformer()
    stacks = small_stacks(program.stacks, LENGTH, WIDTH, (8, INNER), "hidden")
    head = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(5)), torch.zeros(2)
    executor = PersistentExecutor(program, stacks, head=head)

    def run_op(x: Tensor, impl: str) -> tuple[Tensor, ...]:
        latents, logits = {"z_H": x.flip(1)}, []
        for _ in range(16):
            latents, q, _ = executor.run(latents, x)
            logits.append(q[:, 0])
        return *latents.values(), torch.stack(logits, 1)

    assert 0 < int((run_op(samples(8, seed=8), "triton")[-1][..., 0] > 0).any(1).sum()) <= 8
    assert differing(run_op, "triton", BATCHES[:5]) == []
    cells(16 * 5)


@pytest.mark.proof("batch")
def test_eager_products_do_depend_on_the_batch() -> None:
    """The negative control: were it to pass, the tests above would show nothing."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)) / 512**0.5
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    whole = F.linear(x, weight)
    assert any(not torch.equal(F.linear(x[i : i + 1], weight)[0], whole[i]) for i in range(64))


@pytest.mark.proof("isolation")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", OPS)
def test_a_sample_that_is_not_finite_changes_no_bit_of_another(
    name: str, value: float, cells: Callable[[int], None]
) -> None:
    x, bad = samples(20, seed=0), 7
    poisoned = x.clone()
    poisoned[bad, 1, 2] = value
    others = torch.arange(20) != bad
    with tiles(64):
        clean, dirty = OPS[name](x, "triton"), OPS[name](poisoned, "triton")
    for before, after in zip(clean, dirty, strict=True):
        assert bits(before[others]) == bits(after[others])
    assert any(after[bad].is_floating_point() and not after[bad].isfinite().all() for after in dirty)
    cells(19)
