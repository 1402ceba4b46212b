from __future__ import annotations

import math
import warnings
from dataclasses import asdict

import pytest
import torch

from rtm_kernels.engine import Solver, executor
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.ops.launch import entries
from rtm_kernels.recursion.persistent import runner
from rtm_kernels.recursion.persistent.runner import TABLE
from tests.engine.fakes import TASK, ScriptedExecutor, config, model
from tests.recursion.support import Recorder

VARIANTS = {
    "mlp": {},
    "hidden norm": {"norm_axis": "hidden", "arch": "rsm", "layers": {"core": 2}},
    "puzzle prefix": {"puzzle_emb_ndim": 16},
    "attention": {"mixer": "attention", "pos_encodings": "rope"},
    "hrm": {"arch": "hrm", "layers": {"L_level": 1, "H_level": 1}},
}


TOLERANCE = {"native-bfloat16": 0.05, "native-int8": 0.2}


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
    close = TOLERANCE.get(name, 1e-4)
    for latent in reasoner.program.carried:
        torch.testing.assert_close(got[0][latent], expected[latent], rtol=close, atol=close)
        assert torch.equal(latents[latent], reasoner.initial_latents(5)[latent])
    torch.testing.assert_close(got[1], logits, rtol=close, atol=close)
    torch.testing.assert_close(got[2], q, rtol=close, atol=close)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("arch", ["trm", "hrm", "transformer"])
@pytest.mark.parametrize("name", ["native", "persistent"])
def test_what_an_executor_computes_itself_is_what_its_latents_and_logits_say(name: str, arch: str) -> None:
    torch.manual_seed(4)
    layers = {"trm": {"L_level": 1}, "hrm": {"L_level": 1, "H_level": 1}, "transformer": {"H_level": 1}}[arch]
    reasoner = RecursiveReasoner(config(arch=arch, layers=layers, L_cycles=1, halting="q_continue"))
    with torch.no_grad():
        torch.nn.init.normal_(reasoner.q_head.weight)
        reasoner.lm_head.weight[3:] = reasoner.lm_head.weight[3]  # equal logits
    if executor.EXECUTORS[name].why_not(reasoner) is not None:
        pytest.skip("it cannot run here")
    latents = {k: torch.randn(6, 4, v.shape[-1]) for k, v in reasoner.initial_latents(6).items()}
    x = reasoner.embed(torch.randint(1, 9, (6, 4)), torch.zeros(6, dtype=torch.int32))
    x[1, 2, 3], x[2, 0, 0], x[3, 1] = math.nan, math.inf, 0
    for i, latent in enumerate(latents.values()):
        latent[4 + i, 3, 5] = math.nan
    with torch.inference_mode():
        step = executor.executor(name, reasoner).step(latents, x)
        y = step.latents["z_H"]
        seen = [step.logits, step.q, *(step.latents[n] for n in reasoner.program.carried)]
        finite = torch.stack([t.flatten(1).isfinite().all(1) for t in seen]).all(0)
        token_q = torch.nn.functional.linear(y, reasoner.q_head.weight, reasoner.q_head.bias)
        change = relative_change(y, latents["z_H"])
    assert finite.any() and not finite.all()
    assert step.finite is None or torch.equal(step.finite, finite)
    assert step.answers is None or torch.equal(step.answers[finite], step.logits.argmax(-1).int()[finite])
    torch.testing.assert_close(step.change[finite], change[finite], rtol=1e-6, atol=0)
    torch.testing.assert_close(step.token_q[finite], token_q[finite], rtol=1e-5, atol=1e-5)
    assert torch.equal(step.q[finite], step.token_q[finite, 0])
    assert name != "native" or None not in (step.answers, step.finite)


@pytest.mark.parametrize("name", list(executor.EXECUTORS))
def test_batch_invariant_gives_the_same_bits_whoever_is_in_the_batch(name: str) -> None:
    torch.manual_seed(2)
    interpreted = name in ("triton", "persistent") and not torch.cuda.is_available()
    size = {"hidden_size": 32, "L_cycles": 1} if interpreted else {"hidden_size": 64, "L_cycles": 3}
    reasoner = RecursiveReasoner(
        config(**size, layers={"L_level": 1 if interpreted else 2}, halt_max_steps=2 if interpreted else 5)
    )
    torch.nn.init.normal_(reasoner.q_head.weight)
    if executor.EXECUTORS[name].why_not(reasoner) is not None:
        pytest.skip("it cannot run here")
    puzzles = [f"{a}{b}{a}{b}" for a in range(8) for b in range(0, 8, 3)][: 3 if interpreted else None]
    slots = 2 if interpreted else 16

    def bits(batch: list[str]) -> dict[str, tuple[object, ...]]:
        solver = Solver(reasoner, task=TASK, executor=name, batch_size=slots, batch_invariant=True, policy="q=0.9")
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
    executor.warn_once.cache_clear()
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


@pytest.mark.parametrize("mixer", ["mlp", "attention"])
def test_the_graph_replays_the_whole_act_step_in_any_mode_and_splits_what_is_too_large(
    mixer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor.graph, "BUCKETS", (1, 2, 4))
    torch.manual_seed(1)
    reasoner = RecursiveReasoner(config(mixer=mixer, pos_encodings="rope" if mixer == "attention" else "none"))
    reason = executor.EXECUTORS["triton"].why_not(reasoner)
    if reason is not None:
        pytest.skip(reason)
    recorder = Recorder()
    replayed = executor.replayed(reasoner, capture=recorder)
    direct = executor.executor("triton", reasoner)
    for batch, inference in ((2, True), (5, False), (0, False)):
        x = reasoner.embed(torch.randint(1, 9, (batch, 4)), torch.zeros(batch, dtype=torch.int32)).detach()
        latents = {k: torch.randn_like(x) for k in reasoner.program.carried}
        with torch.inference_mode(inference), torch.no_grad():
            expected, got = direct.step(latents, x), replayed.step(latents, x)
        for a, b in zip((*expected[0].values(), *expected[1:3]), (*got[0].values(), *got[1:3]), strict=True):
            assert torch.equal(a, b)
    assert recorder.runs == 3


class Named:
    recorded, check = None, None

    def __init__(self, name: str) -> None:
        self.name, self.sizes = name, list[int]()

    def step(self, latents: object, x: torch.Tensor) -> str:
        self.sizes.append(len(x))
        return self.name


@pytest.fixture
def cuda_model(monkeypatch: pytest.MonkeyPatch) -> RecursiveReasoner:
    """A model that says it is on a Hopper GPU, where every executor but the native one can be built."""
    monkeypatch.setattr(RecursiveReasoner, "device", property(lambda self: torch.device("cuda", 0)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    for name in executor.EXECUTORS:
        reason = "the model is on cuda" if name == "native" else None
        backend = executor.Backend(lambda model, name=name: Named(name), lambda model, reason=reason: reason)
        monkeypatch.setitem(executor.EXECUTORS, name, backend)
    executor.warn_once.cache_clear()
    return RecursiveReasoner(config())


ROW = next(row for row in TABLE if row.family == "hopper" and row.bits == 32)
HERE = {"gpu": "GPU 0", "shape": [4, 16], "batch": 4}


@pytest.mark.parametrize(
    ("measured", "bits", "most"),
    [
        (HERE, 32, 4),
        (HERE | {"batch": 0}, 32, 0),
        (HERE, 16, 0),
        (HERE | {"gpu": "GPU 1"}, 32, 0),
        (HERE | {"shape": [97, 16]}, 32, 0),
        ({"gpu": "GPU 0", "ratio": 1.2}, 32, 0),
        (None, 32, 0),
    ],
)
def test_auto_on_a_gpu_takes_the_persistent_kernel_only_where_it_was_measured(
    cuda_model: RecursiveReasoner, measured: dict[str, object] | None, bits: int, most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = [{"op": "persistent", **asdict(ROW), "bits": bits, "measured": measured}] if measured else []
    monkeypatch.setattr(runner, "entries", lambda: rows)
    auto = executor.executor("auto", cuda_model)
    assert auto.name == ("auto" if most else "graph")
    took = [auto.step({}, torch.zeros(n)) for n in (1, 4, 5, 768)]
    assert took == (["persistent"] * 2 if most else ["graph"] * 2) + ["graph"] * 2
    for size in (1, 64):
        pinned = executor.executor("auto", cuda_model, batch_size=size)
        assert pinned.name == ("persistent" if size <= most else "graph")


def test_no_row_of_the_package_names_a_path_that_was_not_measured() -> None:
    for entry in entries():
        if entry["op"] == "persistent":
            assert {"gpu", "commit", "ratio", "versions"} <= set(entry["measured"])


def test_auto_on_a_gpu_takes_what_is_left_and_says_so(
    cuda_model: RecursiveReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(name: str, reason: str) -> None:
        monkeypatch.setitem(executor.EXECUTORS, name, executor.EXECUTORS[name]._replace(why_not=lambda model: reason))

    lacks("persistent", "it has no MLP mixer")
    assert executor.executor("auto", cuda_model).name == "graph"
    lacks("graph", "no graphs")
    assert executor.executor("auto", cuda_model).name == "triton"
    lacks("triton", "compute capability 7.5 is below 8.0")
    with pytest.warns(RuntimeWarning, match="slower PyTorch executor: compute capability 7.5"):
        assert executor.executor("auto", cuda_model).name == "reference"


def test_on_a_cpu_triton_is_never_taken_unasked() -> None:
    assert executor.executor("auto", RecursiveReasoner(config())).name in ("native", "reference")
    reason = executor.EXECUTORS["graph"].why_not(RecursiveReasoner(config()))
    assert reason == "the model is on cpu, and CUDA graphs need a CUDA device"
