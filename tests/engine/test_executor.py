from __future__ import annotations

import warnings

import pytest
import torch

from rtm_kernels.engine import Solver, executor
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.model import RecursiveReasoner
from tests.engine.fakes import TASK, ScriptedExecutor, config, model

VARIANTS = {
    "mlp": {},
    "hidden norm": {"norm_axis": "hidden", "arch": "rsm", "layers": {"core": 2}},
    "puzzle prefix": {"puzzle_emb_ndim": 16},
    "attention": {"mixer": "attention", "pos_encodings": "rope"},
    "hrm": {"arch": "hrm", "layers": {"L_level": 1, "H_level": 1}},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("name", list(executor.EXECUTORS))
def test_every_executor_takes_the_step_of_the_model(name: str, variant: str) -> None:
    torch.manual_seed(1)
    reasoner = RecursiveReasoner(config(L_cycles=2, **VARIANTS[variant]))
    reason = executor.EXECUTORS[name].why_not(reasoner)
    if reason is not None:
        pytest.skip(reason)
    latents = {k: v.clone() for k, v in reasoner.initial_latents(5).items()}
    x = reasoner.embed(torch.randint(1, 9, (5, 4)), torch.zeros(5, dtype=torch.int32))
    with torch.inference_mode():
        expected, logits, q = reasoner.act_step(latents, x)
        got = executor.executor(name, reasoner).step(latents, x)
    for latent in reasoner.program.carried:
        torch.testing.assert_close(got[0][latent], expected[latent], rtol=1e-4, atol=1e-4)
        assert torch.equal(latents[latent], reasoner.initial_latents(5)[latent])
    torch.testing.assert_close(got[1], logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[2], q, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(executor.EXECUTORS))
def test_batch_invariant_gives_the_same_bits_whoever_is_in_the_batch(name: str) -> None:
    torch.manual_seed(2)
    reasoner = RecursiveReasoner(config(hidden_size=64, L_cycles=3, layers={"L_level": 2}, halt_max_steps=5))
    torch.nn.init.normal_(reasoner.q_head.weight)
    if executor.EXECUTORS[name].why_not(reasoner) is not None:
        pytest.skip("it cannot run here")
    puzzles = [f"{a}{b}{a}{b}" for a in range(8) for b in range(0, 8, 3)]

    def bits(batch: list[str]) -> dict[str, tuple[object, ...]]:
        solver = Solver(reasoner, task=TASK, executor=name, batch_size=16, batch_invariant=True, policy="q=0.9")
        return {s.input: (s.answer, s.steps, s.halt_probability, s.residual) for s in solver.solve(batch)}

    together = bits(puzzles)
    assert bits(puzzles[::-1]) == together
    for puzzle in puzzles[::7]:
        assert bits([puzzle]) == {puzzle: together[puzzle]}


def test_a_named_executor_that_cannot_run_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = executor.Backend(ScriptedExecutor, lambda model: "it is not built")
    monkeypatch.setitem(executor.EXECUTORS, "absent", absent)
    with pytest.raises(BackendUnavailable, match="executor='absent' cannot run: it is not built"):
        Solver(model(), task=TASK, executor="absent")
    with pytest.raises(InputError, match="executor='magic'"):
        Solver(model(), task=TASK, executor="magic")


def test_auto_without_the_extension_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor.native, "why_not", lambda: "the extension is not compiled")
    executor._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="slower PyTorch executor: the extension is not compiled"):
        assert Solver(model(), task=TASK).executor.name == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Solver(model(), task=TASK)
        Solver(model(), task=TASK, executor="reference")
    with pytest.raises(BackendUnavailable, match="executor='native' cannot run: the extension is not compiled"):
        Solver(model(), task=TASK, executor="native")


def test_native_refuses_a_model_that_it_does_not_compute() -> None:
    reason = executor.EXECUTORS["native"].why_not(RecursiveReasoner(config(forward_dtype="bfloat16")))
    assert reason is not None and "bfloat16" in reason
