"""Symmetric layers in C++: values and gradients of the reference, for every instruction set, and bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.data.sudoku import Sudoku
from rtm_kernels.engine import executor as executors
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion import native, symmetric
from rtm_kernels.train.symmetry import Symmetry

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"{native.why_not()}")

BOARD = ModelConfig(
    vocab_size=11, seq_len=81, hidden_size=29, num_heads=1, expansion=1.0, layers={"L_level": 2}, H_cycles=2, L_cycles=2
)
"""Two channels are left over beside three copies of the digits, and hidden units of both mixes."""
FOUR = dataclasses.replace(BOARD, vocab_size=6, seq_len=16, hidden_size=16)
ISAS = native.isas() if native.why_not() is None else ()
CASES: dict[str, tuple[ModelConfig, str]] = {
    **{
        arch: (dataclasses.replace(BOARD, arch=arch, layers=layers), "")
        for arch, layers in {
            "trm": {"L_level": 2}, "hrm": {"H_level": 1, "L_level": 2}, "trm_hier6": {"L_level": 2},
            "trm_singlez": {"L_level": 2}, "rsm": {"core": 1}, "rtm": {"core": 2}, "transformer": {"H_level": 2},
        }.items()
    },
    **{
        f"side {n}": (dataclasses.replace(BOARD, vocab_size=n + 2, seq_len=n**2, hidden_size=n + 1, H_cycles=1), "")
        for n in (4, 16, 25)
    },
    **{f"{isa} {config.seq_len}": (config, isa) for isa in ISAS for config in (BOARD, FOUR)},
}  # fmt: skip
"""Every program, every side, and two sides for each instruction set: a model and the set it runs, or the fastest."""


def board(config: ModelConfig = BOARD) -> tuple[RecursiveReasoner, Symmetry]:
    torch.manual_seed(0)
    model = RecursiveReasoner(config).train()
    torch.nn.init.normal_(model.q_head.weight)
    symmetry = Symmetry(model, Sudoku(round(config.seq_len**0.5)))
    symmetry.fresh_(model)
    return model, symmetry


def gradients(model: RecursiveReasoner, symmetry: Symmetry, run: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Latents after an ACT step and the gradients of a loss of them and of the logits, means over their orbits."""
    generator = torch.Generator().manual_seed(1)
    cells = model.config.seq_len
    tokens = torch.randint(0, model.config.vocab_size, (3, cells), generator=generator)
    latents = {n: torch.randn(3, cells, model.config.hidden_size, generator=generator) for n in model.program.carried}
    weights = torch.randn(3, cells, model.config.hidden_size, generator=generator)
    model.run = run
    model.zero_grad()
    values, logits, _ = model.act_step(latents, model.embed(tokens, torch.zeros(3, dtype=torch.int32)))
    (logits.square().mean() + sum((v * weights).mean() for v in values.values())).backward()  # type: ignore[union-attr]
    symmetry.gradients_(model)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in values.items()}, found


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        error = torch.linalg.vector_norm(found[name] - value)
        assert error <= 1e-3 * torch.linalg.vector_norm(value) + 1e-7, (name, error)


@pytest.mark.parametrize(("config", "isa"), CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_the_reference(
    config: ModelConfig, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, symmetry = board(config)
    assert symmetric.why_not(model) is None
    expected, run = gradients(model, symmetry, None), symmetric.TrainingRun(model)
    if isa:
        monkeypatch.setattr(native, "isas", lambda precision="float32": (isa,))
    found = gradients(model, symmetry, run)
    assert not isa or [program.isa for program in run._programs.values()] == [isa]
    assert_near(found[0], expected[0])
    assert_near(found[1], expected[1])
    assert any("mlp_t" in name for name in found[1])


def with_threads(count: int, f: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return f()
    finally:
        torch.set_num_threads(before)


def test_bits_depend_on_neither_batch_nor_threads() -> None:
    model, symmetry = board()
    run = symmetric.TrainingRun(model)
    one = with_threads(1, lambda: gradients(model, symmetry, run))
    two = with_threads(3, lambda: gradients(model, symmetry, run))
    for found, expected in zip(two, one, strict=True):
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
    x = torch.randn(5, 81, 29, generator=torch.Generator().manual_seed(2))
    latents = {name: torch.flip(x, (0,)) for name in model.program.carried}
    whole = symmetric.inference(model).run(latents, x)
    alone = symmetric.inference(model).run({name: v[3:4] for name, v in latents.items()}, x[3:4])
    assert all(torch.equal(whole[name][3:4], value) for name, value in alone.items())
    assert all(torch.equal(v, torch.flip(x, (0,))) for v in latents.values()), "what is given stays"


def test_a_stage_of_other_cycles_and_new_weights_are_seen() -> None:
    model, symmetry = board()
    run = symmetric.TrainingRun(model)
    before, _ = gradients(model, symmetry, run)
    with torch.no_grad():
        for _, weight in symmetry._of(model):
            weight.mul_(1.5)
    model.set_depth(dataclasses.replace(model.config, H_cycles=3))
    found, expected = gradients(model, symmetry, run), gradients(model, symmetry, None)
    assert_near(found[0], expected[0])
    assert not torch.allclose(found[0]["z_H"], before["z_H"], atol=0.1)


def test_auto_takes_it_for_the_bundled_model() -> None:
    model = RecursiveReasoner.from_pretrained("sudoku")
    assert symmetric.why_not(model) is None
    assert executors.executor("auto", model).name == "symmetric"
    assert executors.executor("auto", RecursiveReasoner(model.config)).name == "native"


@pytest.mark.parametrize("part", ["mlp_t.gate_up_proj", "mlp_t.down_proj", "mlp.gate_up_proj", "mlp.down_proj"])
@pytest.mark.parametrize("config", [BOARD, FOUR], ids=["9", "4"])
def test_one_entry_off_its_orbit_is_noticed(part: str, config: ModelConfig) -> None:
    model, _ = board(config)
    name = f"L_level.layers.1.{part}.weight"
    weight = model.get_parameter(name)
    for place in [(0, 0), (0, 1), (1, 1), (len(weight) // 2, 3)]:
        before = weight[place].item()
        with torch.no_grad():
            weight[place] += 0.01 * weight.abs().max()
        assert symmetric.why_not(model) == f"{name} does not commute with the symmetries of Sudoku", place
        with torch.no_grad():
            weight[place] = before
    assert symmetric.why_not(model) is None


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"forward_dtype": "bfloat16"}, "the model computes in torch.bfloat16"),
    ({"norm_axis": "hidden"}, "normalise over the sequence"),
    ({"mixer": "attention", "pos_encodings": "rope", "hidden_size": 28}, "runs MLP mixers"),
    ({"puzzle_emb_len": 2}, "without a prefix"),
    ({"seq_len": 80}, "boards of side 4, 9, 16, 25"),
    ({"hidden_size": 5}, "a channel for each digit"),
    ({"arch": "rtm", "layers": {"core": 1}, "state_ema": 0.5}, "keeps 0.5 of its latent"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_why_not_names_what_does_not_fit(change: dict[str, Any], reason: str) -> None:
    model = RecursiveReasoner(dataclasses.replace(BOARD, **change))
    assert reason in str(symmetric.why_not(model))
    chained = RecursiveReasoner(dataclasses.replace(BOARD, arch="rsm", layers={"core": 1}))
    chained.program = dataclasses.replace(chained.program, steps=chained.program.steps[::-1])
    assert symmetric.why_not(chained) == "its steps with gradient come last"


def test_a_copy_of_the_model_runs_its_own_weights() -> None:
    import copy

    model, symmetry = board()
    model.run = symmetric.TrainingRun(model)
    other = copy.deepcopy(model)
    assert other.run is not model.run
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    assert_near(gradients(other, symmetry, other.run)[0], gradients(other, symmetry, None)[0])
