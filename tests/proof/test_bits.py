"""Bits: the same in every run, whatever else is in the batch, and with a NaN beside them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels import program as programs
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.ops.halting.api import halting_step_
from rtm_kernels.ops.halting.reference import initial_state
from rtm_kernels.ops.mixer_norm.api import mixer_norm
from rtm_kernels.ops.swiglu_norm.api import swiglu_norm
from rtm_kernels.ops.token_loss.api import token_loss
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.persistent.executor import run_act_step
from rtm_kernels.recursion.persistent.pack import PackedWeights
from tests.gates.interpret_gate import OpCase, run
from tests.ops.support import swiglu_weights
from tests.proof import rerun
from tests.proof.cases import small_cases
from tests.proof.launching import ROOT, bits
from tests.proof.tiles import tiles
from tests.recursion.support import small_stacks

pytest.importorskip("triton")

BATCHES = (1, 2, 3, 7, 8, 63, 64, 65, 255, 257, 300)
MOST = max(BATCHES)
LENGTH, WIDTH, INNER = 3, 16, 24
RERUNS = 25


def digest(case: OpCase) -> str:
    """A hash of every output and gradient of a case."""
    tensors = case.make(torch.Generator().manual_seed(4))
    outputs, gradients = run(case, "triton", tensors, torch.float32)
    return hashlib.sha256(b"".join(map(bits, (*outputs, *gradients.values())))).hexdigest()


@pytest.mark.proof("rerun")
@pytest.mark.parametrize("op", sorted({case.op for case in small_cases()}))
def test_the_same_bits_in_every_run(op: str, cells: Callable[[int], None]) -> None:
    case = next(case for case in small_cases() if case.op == op)
    assert len({digest(case) for _ in range(RERUNS)}) == 1
    cells(RERUNS)


FRESH = """
import os
os.environ["TRITON_INTERPRET"] = "1"
from tests.interpreter import take_loop_bounds
take_loop_bounds()
import torch
from tests.proof.cases import small_cases
from tests.proof.test_bits import digest
torch.set_num_threads({threads})
print(*(digest(case) for case in small_cases() if case.op != "persistent"))
"""


@pytest.mark.proof("rerun")
def test_the_same_bits_in_every_process_and_with_any_number_of_threads(cells: Callable[[int], None]) -> None:
    results = []
    for threads in (1, 2):
        command = [sys.executable, "-c", FRESH.format(threads=threads)]
        results.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
    assert results[0] == results[1] and len(results[0]) > 15
    cells(2 * len(results[0]))


@pytest.mark.proof("rerun")
def test_training_steps_leave_the_same_bits_in_every_run_of_10_processes(cells: Callable[[int], None]) -> None:
    """250 runs of the PyTorch path and 80 of the interpreted kernels, each two steps with both optimisers.

    Every process hashes strings in one of five ways, and has one thread or two.
    """
    found: dict[str, set[str]] = {}
    runs: Counter[str] = Counter()
    ways: set[tuple[str, str]] = set()
    for seed in range(5):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-m", "tests.proof.rerun", "1", "2"]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        for line in result.stdout.splitlines():
            way, threads, impl, count, *digests = line.split()
            # eager products on a CPU may follow the number of threads; the kernels do not
            found.setdefault(impl if impl == "triton" else f"{impl} {threads}", set()).update(digests)
            runs[impl] += int(count)
            ways.add((way, threads))
    assert runs == {"reference": 250, "triton": 80} and len(ways) == 10
    assert {name: len(digests) for name, digests in found.items()} == {"reference 1": 1, "reference 2": 1, "triton": 1}
    cells(runs.total())


def test_a_training_step_that_differs_is_found() -> None:
    assert rerun.training_step("reference") == rerun.training_step("reference")
    assert rerun.training_step("reference") != rerun.training_step("reference", rate=1.1e-3)


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
    state, weight = initial_state(len(x)), torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    step = halting_step_(state, x, policy="q_continue", pool="mean", weight=weight, max_steps=4, impl=impl)
    return step.logits, state.active, state.steps


def act_step_op(x: Tensor, impl: str) -> tuple[Tensor, ...]:
    program = programs.trm(1, 1)
    weights = PackedWeights(small_stacks(program.stacks, LENGTH, WIDTH, (8, INNER), "hidden"))
    head = HaltingHead("q", 3, torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1)))
    latents = {"z_H": x.flip(1), "z_L": x.flip(2)}
    values, state, logits = run_act_step(program, latents, x, weights, head, act_steps=1)
    return *values.values(), state.steps, state.active, logits


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


@pytest.mark.proof("batch")
def test_a_run_of_16_steps_halts_alike_in_any_batch(cells: Callable[[int], None]) -> None:
    program = programs.transformer()
    weights = PackedWeights(small_stacks(program.stacks, LENGTH, WIDTH, (8, INNER), "hidden"))
    head = HaltingHead("q", 16, torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(5)))

    def run_op(x: Tensor, impl: str) -> tuple[Tensor, ...]:
        values, state, logits = run_act_step(program, {"z_H": x.flip(1)}, x, weights, head, act_steps=16)
        return *values.values(), state.steps, state.active, logits

    steps = run_op(samples(8, seed=8), "triton")[-3].flatten()
    assert int(steps.max()) == 16 and int(steps.min()) < 16
    assert differing(run_op, "triton", BATCHES[:5]) == []
    cells(16 * 5)


@pytest.mark.proof("batch")
def test_eager_products_do_depend_on_the_batch() -> None:
    """The negative control: were it to pass, the tests above would show nothing."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)) / 512**0.5
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    whole = F.linear(x, weight)
    assert any(not torch.equal(F.linear(x[i : i + 1], weight)[0], whole[i]) for i in range(64))


@pytest.mark.proof("batch")
def test_the_harness_finds_an_op_that_depends_on_its_batch() -> None:
    def normalised(x: Tensor, impl: str) -> tuple[Tensor, ...]:
        return (x / x.std(),)

    assert differing(normalised, "triton", BATCHES) == list(BATCHES)[1:]


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


@pytest.mark.gpu
@pytest.mark.proof("batch")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("axis", ["sequence", "hidden"])
def test_a_sample_has_the_same_bits_in_any_batch_on_the_gpu(
    axis: str, dtype: torch.dtype, device: torch.device, cells: Callable[[int], None]
) -> None:
    g = torch.Generator(device).manual_seed(0)
    x = torch.randn(MOST, 97, 512, generator=g, device=device, dtype=dtype)
    mixer = [torch.randn(s, generator=g, device=device) * 0.05 for s in ((1024, 97), (97, 512))]
    channel = [torch.randn(s, generator=g, device=device) * 0.05 for s in ((3072, 512), (512, 1536))]

    def block(h: Tensor) -> Tensor:
        return swiglu_norm(mixer_norm(h, *mixer, norm_axis=axis, impl="triton"), *channel, impl="triton")

    whole = block(x)
    for _ in range(250):
        assert torch.equal(block(x), whole)
    for batch in BATCHES:
        order = torch.randperm(MOST, device=device)[:batch]
        assert torch.equal(block(x[order]), whole[order])
    cells(250 + len(BATCHES))
