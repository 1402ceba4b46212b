"""The persistent kernel, interpreted with a grid of one, against the reference after every prefix of every program."""

from __future__ import annotations

import pytest
import torch

from rtm_kernels import program as programs
from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.impl import launches
from rtm_kernels.ops.launch import LaunchRow
from rtm_kernels.program import INPUT, Program, Step
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.persistent.executor import PersistentExecutor, run, why_not
from rtm_kernels.recursion.persistent.launch import KERNEL
from rtm_kernels.recursion.persistent.pack import PackedWeights
from rtm_kernels.recursion.persistent.runner import PersistentRecursion
from tests.recursion.support import ODD, assert_within_budget, bits, random_state, small_stacks

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted; test_persistent_gpu runs on the GPU")

PROGRAMS = [
    (programs.trm(1, 2), "sequence", 2),
    (programs.trm_singlez(1, 2), "sequence", 1),
    (programs.trm_hier6(1, 2), "sequence", 1),
    (programs.hrm(1, 2), "sequence", 1),
    (programs.rsm(2, 1), "hidden", 1),
    (programs.rins(2), "sequence", 1),
    (programs.rtm(2), "hidden", 1),
    (programs.transformer(), "sequence", 1),
    (ODD, "hidden", 1),
]
"""Program, norm axis of its blocks, layers of its stacks."""

SMALL_TILES = LaunchRow(
    KERNEL, "interpreter", 0, 16,
    {"BLOCK_L": 16, "MIX_D": 16, "MIX_I": 16, "UP_M": 16, "UP_I": 16, "UP_K": 16,
     "DOWN_M": 16, "DOWN_D": 16, "DOWN_K": 16, "NORM_R": 2}, 4, 1,
)  # fmt: skip


@pytest.mark.parametrize(("program", "norm_axis", "layers"), PROGRAMS, ids=lambda p: getattr(p, "name", str(p)))
def test_every_prefix_equals_the_reference(program: Program, norm_axis: str, layers: int) -> None:
    stacks = small_stacks(program.stacks, 9, 24, norm_axis=norm_axis, layers=layers)
    latents, x = random_state(program, 1, 9, 24)
    weights = PackedWeights(stacks)
    step_by_step = dict(latents)
    for n in range(len(program) + 1):
        before = launches[KERNEL]
        got = run(program[:n], latents, x, weights)
        assert launches[KERNEL] - before == (n > 0), "one launch for the whole program"
        assert_within_budget(got, program[:n], latents, x, stacks)
        assert bits(got) == bits(step_by_step), f"{n} steps in one launch differ from {n} launches of one step"
        if n < len(program):
            step_by_step = run(program[n : n + 1], step_by_step, x, weights)


@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
@pytest.mark.parametrize(
    ("batch", "length", "width", "inner"),
    [(3, 7, 17, (5, 33)), (1, 1, 16, (8, 8)), (2, 12, 32, (16, 64)), (1, 13, 40, (70, 100))],
)
def test_sizes(batch: int, length: int, width: int, inner: tuple[int, int], norm_axis: str) -> None:
    program = programs.trm(1, 1)
    stacks = small_stacks(program.stacks, length, width, inner, norm_axis)
    latents, x = random_state(program, batch, length, width)
    assert_within_budget(run(program, latents, x, stacks), program, latents, x, stacks)


@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
def test_the_official_sequence_length(norm_axis: str) -> None:
    program = programs.transformer()
    stacks = small_stacks(program.stacks, 97, 48, (96, 80), norm_axis)
    latents, x = random_state(program, 2, 97, 48)
    assert_within_budget(run(program, latents, x, stacks), program, latents, x, stacks)


@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
def test_many_tiles_per_phase(norm_axis: str) -> None:
    program = programs.trm(1, 1)
    stacks = small_stacks(program.stacks, 9, 40, (35, 50), norm_axis)
    latents, x = random_state(program, 2, 9, 40)
    recursion = PersistentRecursion(program, PackedWeights(stacks), 2, row=SMALL_TILES)
    recursion.load(latents, x)
    recursion.step()
    assert_within_budget(recursion.values(latents), program, latents, x, stacks)


def test_running_twice_gives_the_same_bits() -> None:
    program = programs.trm(1, 2)
    stacks = small_stacks(program.stacks, 9, 24)
    latents, x = random_state(program, 2, 9, 24)
    recursion = PersistentRecursion(program, PackedWeights(stacks), 2)
    results = []
    for _ in range(2):
        recursion.load(latents, x)
        recursion.step()
        results.append(bits(recursion.values(latents)))
    assert results[0] == results[1]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    program = programs.trm(1, 1)
    weights = PackedWeights(small_stacks(program.stacks, 9, 24, norm_axis="hidden"))
    latents, x = random_state(program, 5, 9, 24)
    together = run(program, latents, x, weights)
    order = [4, 1]
    chosen = run(program, {n: t[order] for n, t in latents.items()}, x[order], weights)
    for position, sample in enumerate(order):
        alone = run(program, {n: t[[sample]] for n, t in latents.items()}, x[[sample]], weights)
        here = {name: t[[sample]] for name, t in together.items()}
        assert bits(alone) == bits(here) == bits({name: t[[position]] for name, t in chosen.items()})


@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
def test_what_is_in_the_scratch_buffers_does_not_matter(norm_axis: str) -> None:
    program = programs.trm_hier6(1, 1)
    weights = PackedWeights(small_stacks(program.stacks, 9, 24, norm_axis=norm_axis))
    latents, x = random_state(program, 2, 9, 24)
    clean = run(program, latents, x, weights)
    recursion = PersistentRecursion(program, weights, 2)
    for buffer in recursion.scratch:
        buffer.fill_(torch.nan)
    recursion.load(latents, x)
    recursion.step()
    assert bits(recursion.values(latents)) == bits(clean)


def test_a_poisoned_neighbour_changes_nothing() -> None:
    program = programs.trm(1, 1)
    weights = PackedWeights(small_stacks(program.stacks, 9, 24, norm_axis="hidden"))
    latents, x = random_state(program, 3, 9, 24)
    clean = run(program, latents, x, weights)
    x[1, 4, 5] = torch.nan
    latents["z_H"][1, 0, 0] = torch.inf
    poisoned = run(program, latents, x, weights)
    assert not poisoned["z_H"][1].isfinite().any()
    for sample in (0, 2):
        assert bits({n: t[sample] for n, t in poisoned.items()}) == bits({n: t[sample] for n, t in clean.items()})


def test_nothing_given_is_modified_and_strangers_pass_through() -> None:
    program = programs.rtm(1)
    stacks = small_stacks(program.stacks, 9, 24)
    latents, x = random_state(program, 1, 9, 24)
    latents["stranger"] = torch.full((2,), 3.0)
    before = bits({**latents, INPUT: x})
    got = run(program, latents, x, stacks)
    assert bits({**latents, INPUT: x}) == before
    assert torch.equal(got["stranger"], latents["stranger"])
    assert set(got) == set(reference.run(program, latents, x, stacks))


def test_empty_batch() -> None:
    program = programs.trm(1, 1)
    got = run(program, *random_state(program, 0, 9, 24), small_stacks(program.stacks, 9, 24))
    assert {name: tuple(t.shape) for name, t in got.items()} == {"z_L": (0, 9, 24), "z_H": (0, 9, 24)}


def test_updated_weights_take_effect_and_results_are_not_overwritten() -> None:
    program = programs.rtm(1)
    stacks = small_stacks(program.stacks, 9, 24)
    latents, x = random_state(program, 1, 9, 24)
    executor = PersistentExecutor(program, stacks)
    first = executor.run(latents, x)
    kept = bits(first)
    address = executor.weights.data.data_ptr()
    for parameter in stacks["core"].parameters():
        parameter.mul_(-0.5)
    executor.update(stacks)
    second = executor.run(latents, x)
    assert executor.weights.data.data_ptr() == address
    assert bits(first) == kept != bits(second)
    assert_within_budget(second, program, latents, x, stacks)


def test_layers_may_be_given_as_a_list() -> None:
    program = programs.rtm(1)
    stack = small_stacks(program.stacks, 9, 24, layers=2)["core"]
    latents, x = random_state(program, 1, 9, 24)
    from_list = run(program, latents, x, {"core": list(stack.layers)})
    assert bits(from_list) == bits(run(program, latents, x, {"core": stack}))


class TestRefusals:
    program = programs.trm(1, 1)

    def test_attention(self) -> None:
        stacks = {"L_level": Stack([FusedTRMBlock(24, mixer="attention", num_heads=2)])}
        reason = why_not(self.program, stacks, torch.device("cpu"), torch.float32, 9)
        assert reason is not None and "layer 0 of stack 'L_level' has no MLP mixer" in reason
        with pytest.raises(BackendUnavailable, match="no MLP mixer"):
            run(self.program, *random_state(self.program, 1, 9, 24), stacks)

    def test_what_can_run_has_no_reason(self) -> None:
        stacks = small_stacks(self.program.stacks, 9, 24)
        assert why_not(self.program, stacks, torch.device("cpu"), torch.float32, 9) is None

    def test_bfloat16_in_the_interpreter(self) -> None:
        weights = PackedWeights(small_stacks(self.program.stacks, 9, 24), torch.bfloat16)
        with pytest.raises(BackendUnavailable, match=r"interpreter cannot compute torch\.bfloat16"):
            PersistentRecursion(self.program, weights, 1)

    def test_float64(self) -> None:
        reason = why_not(self.program, small_stacks(self.program.stacks, 9, 24), torch.device("cpu"), torch.float64, 9)
        assert reason == "the persistent kernel does not compute torch.float64"

    def test_a_sequence_beyond_the_table(self) -> None:
        stacks = small_stacks(self.program.stacks, 9, 24)
        reason = why_not(self.program, stacks, torch.device("cpu"), torch.float32, 129)
        assert reason is not None and "size 129" in reason

    def test_too_many_terms(self) -> None:
        program = Program("p", (Step("z", ("z",) * 9),), output="z")
        with pytest.raises(BackendUnavailable, match="sums 9 latents"):
            run(program, *random_state(program, 1, 9, 24), small_stacks(program.stacks, 9, 24))

    def test_a_missing_latent(self) -> None:
        latents, x = random_state(self.program, 1, 9, 24)
        del latents["z_H"]
        with pytest.raises(InputError, match="z_H is read and not given"):
            run(self.program, latents, x, small_stacks(self.program.stacks, 9, 24))

    def test_a_missing_stack(self) -> None:
        with pytest.raises(InputError, match="the program applies L_level"):
            run(self.program, *random_state(self.program, 1, 9, 24), {})

    def test_a_latent_of_another_shape(self) -> None:
        latents, x = random_state(self.program, 2, 9, 24)
        latents["z_H"] = latents["z_H"][:1]
        with pytest.raises(InputError, match=r"z_H=\(1, 9, 24\) is not allowed: \[B, L, D\] = \(2, 9, 24\)"):
            run(self.program, latents, x, small_stacks(self.program.stacks, 9, 24))

    def test_a_gradient(self) -> None:
        latents, x = random_state(self.program, 1, 9, 24)
        with pytest.raises(InputError, match="has no backward"):
            run(self.program, latents, x.requires_grad_(), small_stacks(self.program.stacks, 9, 24))

    def test_layers_of_different_shapes(self) -> None:
        low, high = small_stacks(("A",), 9, 24), small_stacks(("B",), 9, 24, (20, 48))
        with pytest.raises(InputError, match=r"stacks\['B'\]\[0\] has a weight \(96, 24\).*\(80, 24\)"):
            PackedWeights({**low, **high})

    def test_layers_of_different_norms(self) -> None:
        low, high = small_stacks(("A",), 9, 24), small_stacks(("B",), 9, 24, norm_axis="hidden")
        with pytest.raises(InputError, match="the same for all layers"):
            PackedWeights({**low, **high})
