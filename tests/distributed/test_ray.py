"""A real local Ray with two workers: the same answers as one process, also when a worker is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtm_kernels.engine import Solver
from rtm_kernels.errors import InputError
from rtm_kernels.model import RecursiveReasoner

ray = pytest.importorskip("ray", reason="no ray here: Ray Data and Ray Serve stay unproven (make test-ray installs it)")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

OPTIONS = {"policy": "q=0.5", "max_steps": 48, "rollouts": 1, "executor": "reference"}
FIELDS = ("answer", "status", "steps", "halt_probability", "reason", "error")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             _node_ip_address="127.0.0.1", runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def texts(puzzles: list[tuple[str, str]]) -> list[str]:
    return [*(p for p, _ in puzzles), "not a puzzle"]


@pytest.fixture(scope="module")
def expected(model_folder: str, texts: list[str]) -> dict[str, tuple[Any, ...]]:
    """Puzzle -> what one process says of it."""
    solver = Solver(RecursiveReasoner.from_pretrained(model_folder), batch_invariant=True, batch_size=64, **OPTIONS)
    found = solver.solve(texts)
    assert len({s.steps for s in found}) > 3
    return {t: tuple(getattr(s, name) for name in FIELDS) for t, s in zip(texts, found, strict=True)}


def outcome(row: dict[str, Any]) -> tuple[Any, ...]:
    values = {name: row.get(name) for name in FIELDS}
    return tuple(None if value != value else value for value in values.values())


def workers(title: str) -> set[int]:
    """Processes of that title that descend from this one."""

    def parent(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return 0

    def mine(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parent(pid)
        return pid == os.getpid()

    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if title in name and mine(int(entry.name)):
                found.add(int(entry.name))
    return found


def kill_one(title: str) -> int:
    victim = min(workers(title))
    os.kill(victim, signal.SIGKILL)
    return victim


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("killed", [False, True])
def test_a_dataset_is_solved_as_in_one_process(model_folder: str, texts, expected, killed: bool) -> None:
    from rtm_kernels.distributed.dataset import solve_dataset

    repeats = 8 if killed else 1
    rows = [{"puzzle": text, "row": i} for i, text in enumerate(texts * repeats)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows) // 8)
    solved = solve_dataset(dataset, model_folder, workers=2, batch_size=8, **OPTIONS)
    found: dict[int, dict[str, Any]] = {}
    for row in solved.iter_rows():
        if killed and not found:
            kill_one("MapWorker")
        assert row["row"] not in found
        found[row["row"]] = row
    assert sorted(found) == list(range(len(rows)))
    for row in found.values():
        got, want = outcome(row), expected[row["puzzle"]]
        if want[1] == "invalid":
            assert got[1] == "invalid" and "illegal character" in got[5]
        else:
            assert got == want


@pytest.mark.usefixtures("cluster")
def test_bad_datasets_are_named(model_folder: str) -> None:
    from rtm_kernels.distributed.dataset import solve_dataset

    with pytest.raises(InputError, match="column='quiz' is not allowed: the dataset has puzzle"):
        solve_dataset(ray.data.from_items([{"puzzle": "1"}]), model_folder, column="quiz")
    with pytest.raises(InputError, match="workers=0"):
        solve_dataset(ray.data.from_items([{"puzzle": "1"}]), model_folder, workers=0)


def post(address: str, body: bytes) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(address, data=body, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.usefixtures("cluster")
def test_a_deployment_of_two_replicas_outlives_one(model_folder: str, texts, expected) -> None:
    from ray import serve

    from rtm_kernels.distributed.deployment import application, solve_all

    address = "http://127.0.0.1:8719/solve"
    serve.start(http_options={"host": "127.0.0.1", "port": 8719})
    try:
        made = application(model_folder, replicas=2, num_cpus=0.5, **OPTIONS)
        handle = serve.run(made, name="rtm", route_prefix="/solve")
        assert len(workers("ServeReplica:rtm:solver")) == 2
        assert [outcome(s) for s in solve_all(handle, texts[:-1])] == [expected[t] for t in texts[:-1]]
        status, body = post(address, json.dumps({"puzzles": [texts[0], "x"], "max_steps": 2}).encode())
        assert status == 200 and [s["status"] for s in body["solutions"]] == ["unverified", "invalid"]
        for wrong, message in (
            (b"{", "not JSON"), (b'{"puzzles": [5]}', "expected strings"), (b'{"puzzles": []}', "from 1 to 64"),
            (b'{"puzzles": ["1"], "max_steps": true}', "max_steps=True"), (b'{"puzzles": ["1"], "x": 1}', "expected"),
            (b'{"puzzles": ["1"], "max_steps": 0}', "max_steps=0"), (b"[" * 100_000, "not JSON"),
            (b" " * (1 << 20) + b"{}", "at most 1048576"),
        ):  # fmt: skip
            status, body = post(address, wrong)
            assert status == 400 and message in body["error"], (wrong[:40], body)

        many, results = texts[:-1] * 12, []
        thread = threading.Thread(target=lambda: results.extend(solve_all(handle, many)))
        thread.start()
        time.sleep(0.5)
        assert thread.is_alive()
        victim = kill_one("ServeReplica:rtm:solver")
        thread.join(120)
        assert [outcome(s) for s in results] == [expected[t] for t in many]
        deadline = time.monotonic() + 60
        while len(workers("ServeReplica:rtm:solver") - {victim}) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert len(workers("ServeReplica:rtm:solver") - {victim}) == 2
    finally:
        serve.shutdown()


def test_the_block_of_the_readme(cluster: None, puzzles: list[tuple[str, str]], tmp_path: Path) -> None:
    """As it stands there, but for the folder of its file (workers have their own) and an end of its deployment."""
    from ray import serve

    texts = [text for text, _ in puzzles[:3]]
    (tmp_path / "puzzles.csv").write_text("\n".join(["puzzle", *texts]))
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "import ray" in block]
    names: dict[str, Any] = {"puzzles": texts}
    try:
        exec(compile(code.replace("puzzles.csv", str(tmp_path / "puzzles.csv")), "README.md", "exec"), names)
    finally:
        serve.shutdown()
    expected = [
        s.answer for s in Solver(RecursiveReasoner.from_pretrained("sudoku"), batch_invariant=True).solve(texts)
    ]
    assert [s["answer"] for s in names["solutions"]] == expected
    rows = {row["puzzle"]: row["answer"] for row in names["solved"].take_all()}
    assert [rows[text] for text in texts] == expected
