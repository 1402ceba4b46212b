"""What is recorded is what the engine did, and a replay repeats it bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rtm_kernels.engine import EXECUTORS, Solver
from rtm_kernels.errors import InputError
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.reference import relative_change
from rtm_kernels.trace import read_trace, record, replay
from tests.engine import fakes
from tests.small_models import ARCHS, make
from tests.trace.support import PUZZLES, edited, lines, tiny_model, tiny_solver, written


def test_the_records_are_what_the_model_computes(recorded: Path) -> None:
    """Against the model's own executor, one puzzle at a time: answers, logits, changes and their sums."""
    trace, model = read_trace(recorded), tiny_model()
    task = tiny_solver().task
    for puzzle, traced in zip(PUZZLES, trace.puzzles, strict=True):
        tokens = task.encode(puzzle.text).astype(np.int32)
        executor = EXECUTORS["reference"].build(model)
        with torch.inference_mode():
            x = model.embed(torch.from_numpy(tokens)[None], torch.zeros(1, dtype=torch.int32))
            latents, before, total = model.initial_latents(1), tokens, 0.0
            for step in traced.steps:
                after, logits, q, *_ = executor.step(latents, x)
                answer = logits.argmax(-1)[0].numpy()
                assert step["answer"] == task.decode(answer)
                assert step["changed"] == np.flatnonzero(answer != before).tolist()
                assert step["q"] == pytest.approx(q[0].tolist(), rel=1e-4, abs=1e-5)
                p = 1 / (1 + np.exp(-step["q"][0]))
                total += p
                assert step["p_halt"] == pytest.approx(p) and step["accumulated_p"] == pytest.approx(total)
                for name, value in step["delta"].items():
                    assert value == pytest.approx(relative_change(after[name], latents[name]).item(), rel=1e-3)
                assert set(step["delta"]) == {"z_H", "z_L"}
                assert step["verified"] is task.verify(puzzle.text, step["answer"]).verified
                latents, before = after, answer
    assert [step["active"] for step in trace.puzzles[0].steps] == [2] * 5
    assert [step["active"] for step in trace.puzzles[2].steps] == [1] * 5


@pytest.mark.parametrize(
    ("executor", "policy"),
    [*((name, "verified") for name in EXECUTORS), ("reference", "fixed"), ("reference", "q=0.4+settle=2")],
)
def test_a_replay_is_identical(tmp_path: Path, executor: str, policy: str) -> None:
    model = tiny_model()
    why = EXECUTORS[executor].why_not(model)
    if why is not None:
        pytest.skip(f"{executor}: {why}; its replay stays unproven here")
    path = tmp_path / "t.jsonl"
    fewer = {} if executor == "reference" else {"max_steps": 2}
    record(tiny_solver(model, executor=executor, policy=policy, **fewer), PUZZLES[:2], path, model_name="tiny")
    assert replay(read_trace(path), tiny_model()) is None


@pytest.mark.parametrize("arch", list(ARCHS))
def test_every_architecture_records_and_replays(tmp_path: Path, arch: str) -> None:
    class Six(fakes.Reverse):
        name, vocabulary, seq_len = "six", "012345", 6

    solver = Solver(
        make(arch), task=Six(), policy="fixed", max_steps=3, batch_size=2, executor="reference", batch_invariant=True
    )
    paths = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    for path in paths:
        record(solver, ["012345", "543210", "000111"], path, model_name="six")
        assert [len(traced.steps) for traced in read_trace(path).puzzles] == [3, 3, 3]
    first, again = ([{**json.loads(line), "seconds": 0} for line in lines(path)] for path in paths)
    assert first == again


@pytest.mark.parametrize("field", ["answer", "q", "p_halt", "accumulated_p", "delta", "changed", "active", "fault"])
def test_a_tampered_step_is_found_and_named(recorded: Path, tmp_path: Path, field: str) -> None:
    text = lines(recorded)
    number = next(i for i, line in enumerate(text) if json.loads(line).get("step") == 3)
    step = json.loads(text[number])
    if field == "q":
        step["q"][1] = float(np.nextafter(np.float32(step["q"][1]), np.float32(9)))
    elif field == "delta":
        step["delta"]["z_L"] = float(np.nextafter(step["delta"]["z_L"], 9))
    elif field in ("p_halt", "accumulated_p"):
        step[field] = float(np.nextafter(step[field], 0))
    else:
        step[field] = {"answer": "1" * 16, "changed": [0, 1, 2, 3], "active": 1, "fault": "none"}[field]
    found = replay(read_trace(written(tmp_path, edited(text, number, **step))), tiny_model())
    assert found is not None and f"line {number + 1}: puzzle {step['puzzle']}, step 3, {field}: recorded" in found


def test_a_step_removed_from_the_end_is_found(recorded: Path, tmp_path: Path) -> None:
    text = lines(recorded)
    number = max(i for i, line in enumerate(text) if json.loads(line)["kind"] == "step")
    last = edited(text, -1, steps=json.loads(text[-1])["steps"] - 1)[-1]
    found = replay(read_trace(written(tmp_path, [*text[:number], last])), tiny_model())
    assert found is not None and f"line {number + 1}: puzzle 2, step 5, kind: recorded 'end', replayed 'step'" in found


def test_another_model_or_input_is_bad_input(recorded: Path, tmp_path: Path) -> None:
    model = tiny_model()
    other = RecursiveReasoner(replace(model.config, rms_norm_eps=1e-3)).eval()
    other.load_state_dict(model.state_dict())
    moved = read_trace(written(tmp_path, edited(lines(recorded), 1, input="." * 16)))
    nameless = read_trace(recorded)
    nameless.header["model"] = "someone/something"
    for trace, played, message in (
        (read_trace(recorded), tiny_model(seed=1), r"weights_sha256 of the model is .* recorded with"),
        (read_trace(recorded), other, "config_sha256 of the model is"),
        (moved, model, "puzzle 0: sha256 of its input"),
        (nameless, None, "neither bundled nor a folder here"),
    ):
        with pytest.raises(InputError, match=message):
            replay(trace, played)


def test_weights_hash_is_that_of_the_saved_file(recorded: Path, model_folder: Path) -> None:
    manifest = json.loads((model_folder / "manifest.json").read_text())["sha256"]
    header = read_trace(recorded).header
    assert header["weights_sha256"] == manifest["model.safetensors"]
    assert header["config_sha256"] == manifest["config.json"]


def test_numbers_that_json_lacks_are_recorded(tmp_path: Path) -> None:
    model = fakes.model()
    solver = Solver(model, task=fakes.TASK, executor="reference", batch_size=2, batch_invariant=True)
    solver.executor = fakes.ScriptedExecutor(model)
    path = tmp_path / "t.jsonl"
    solutions = record(solver, ["3017", "1000"], path, model_name="scripted")
    assert [s.status for s in solutions] == ["non_finite", "verified"]
    trace = read_trace(path)
    assert trace.puzzles[0].steps[1]["finite"] is False
    assert "nan" in trace.puzzles[0].steps[1]["delta"].values()
    assert trace.puzzles[0].end["status"] == "non_finite" and trace.puzzles[0].end["answer"] is None


def test_a_failed_recording_leaves_nothing(tmp_path: Path) -> None:
    for options, puzzles, message in (
        ({}, ["12"], "none of 1 puzzles can be read"),
        ({"rollouts": 2}, PUZZLES, "rollouts=2"),
        ({"batch_size": 257}, PUZZLES, "batch_size=257"),
    ):
        with pytest.raises(InputError, match=message):
            record(tiny_solver(**options), puzzles, tmp_path / "t.jsonl", model_name="tiny")
    assert list(tmp_path.iterdir()) == []
