"""README, docs, cards: their Python runs as it stands there, each command line, link and figure is right.

The Ray block of docs/distributed.md runs in `tests/distributed/test_ray.py`, that of docs/sharing.md in
`tests/test_hub.py`, the curl line in `tests/serve`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

from rtm_kernels.cli.main import app
from rtm_kernels.config import ModelConfig
from rtm_kernels.data import task as tasks
from rtm_kernels.engine import Solver
from rtm_kernels.interop import to_official
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.pretrained import MODELS, known_models
from rtm_kernels.trace import read_trace, record
from rtm_kernels.train.recipe import PRESETS
from tests.interop import official_structure

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CARDS = sorted((ROOT / "rtm_kernels").rglob("README.md"))
LINKED = [*PAGES, *CARDS, *(ROOT / name for name in ("DESIGN.md", "SECURITY.md", "CHANGELOG.md"))]
BLOCKS = [code for page in PAGES for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)]


def block(part: str) -> str:
    """The one Python block of the pages with that text in it."""
    (found,) = [code for code in BLOCKS if part in code]
    return found


def run(part: str, **names: Any) -> dict[str, Any]:
    exec(compile(block(part), part, "exec"), names)
    return names


def test_every_block_is_run_by_a_test() -> None:
    parts = ("block = FusedTRMBlock", "accelerate(official_model)", "from_official(", "solution.steps",
             "program import", "LatinSquare", "import ray", "push_to_hub(")  # fmt: skip
    assert sorted(map(block, parts)) == sorted(BLOCKS)


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text("utf-8").splitlines()) <= 110
    assert len((ROOT / "DESIGN.md").read_text("utf-8").splitlines()) <= 120


def test_one_layer() -> None:
    torch.manual_seed(0)
    found = run("block = FusedTRMBlock")
    assert found["out"].shape == (8, 97, 512) and bool(found["out"].isfinite().all())
    assert found["out"].requires_grad


def test_an_official_model_in_place() -> None:
    model = official_structure.models()["trm_mlp"]
    keys = list(model.state_dict())
    run("accelerate(official_model)", official_model=model)
    assert list(model.state_dict()) == keys


def test_a_whole_model_and_its_solver() -> None:
    torch.manual_seed(0)
    small = RecursiveReasoner(ModelConfig(vocab_size=11, seq_len=81, hidden_size=16, num_heads=1))
    _, config, state = to_official(small)
    found = run("from_official(", config=config, state_dict=state)
    (solution,) = found["solutions"]
    assert solution.status == "verified"


def test_the_solver_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("solution.steps")["solution"].status == "verified"
    assert capsys.readouterr().out.startswith("verified 1 ")


def test_a_program_of_ones_own() -> None:
    program = run("program import")["program"]
    assert (program.name, program.output, len(program)) == ("mine", "y", 3)


def test_the_latin_square(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = block("class LatinSquare")
    assert len(code.splitlines()) < 30
    monkeypatch.setattr(tasks, "_TASKS", {k: v for k, v in tasks._TASKS.items() if k != "latin4"})
    exec(compile(code, "docs/tasks.md", "exec"), {})
    task = tasks.get_task("latin4")
    puzzle, answer = "1...2...3...4...", "1234234134124123"
    assert task.verify(puzzle, answer).verified
    assert task.verify(puzzle, "2" + answer[1:]).reason == "a given cell was changed"
    assert "repeats a digit" in task.verify(puzzle, answer[:-1] + "4").reason
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=task.vocab_size, seq_len=16, hidden_size=16, num_heads=1, H_cycles=1, L_cycles=1,
                         layers={"L_level": 1}, halt_max_steps=2)  # fmt: skip
    solver = Solver(RecursiveReasoner(config), task="latin4", batch_size=2, executor="reference")
    (solution,) = solver.solve([puzzle])
    assert (solution.status, solution.task) == ("unverified", "latin4")
    record(solver, [puzzle], tmp_path / "t.jsonl", model_name="random")
    assert read_trace(tmp_path / "t.jsonl").header["task"] == "latin4"


def commands() -> list[tuple[str, list[str]]]:
    """Every `rtm` line of the pages, as page and arguments."""
    found = []
    for page in [*PAGES, *CARDS]:
        for line in page.read_text("utf-8").splitlines():
            code = [line.strip()] if line.startswith("    ") else re.findall(r"`(rtm \w+ [^`]+)`", line)
            for text in code:
                start = re.match(r"(\.venv/bin/|.*\| )?rtm\b|torchrun .*? -m rtm_kernels\.cli\.main\b", text)
                if start is not None:
                    found.append((page.name, shlex.split(text[start.end() :].partition("  ")[0])))
    return found


def examples(command: Any, name: str = "rtm") -> list[tuple[str, list[str]]]:
    """Every example that a command's help shows, with those of the commands below it."""
    lines = [line.strip() for line in (command.help or "").splitlines()]
    found = [(name, shlex.split(line.partition("rtm ")[2])) for line in lines if re.match(r"(torchrun .*)?rtm ", line)]
    for below in getattr(command, "commands", {}).values():
        found += examples(below, f"{name} {below.name}")
    return found


def test_every_command_has_examples() -> None:
    named = {name for name, _ in examples(typer.main.get_command(app))}
    assert {f"rtm {name}" for name in typer.main.get_command(app).commands} <= named | {"rtm data", "rtm trace"}


@pytest.mark.parametrize(
    ("page", "arguments"), commands() + examples(typer.main.get_command(app)), ids=lambda value: " ".join(value)[:60]
)
def test_every_command_line_exists(page: str, arguments: list[str]) -> None:
    """Names and options are parsed, nothing is run."""
    command: Any = typer.main.get_command(app)
    arguments = [word for word in arguments if word != "..."]
    while hasattr(command, "commands") and arguments:
        _, command, arguments = command.resolve_command(typer.Context(command), arguments)
        assert command is not None
    if "--help" not in arguments:
        command.make_context(command.name, arguments)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = "\n".join(page.read_text("utf-8") for page in LINKED)
    named = re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.M)
    assert len(named) > 5 and set(named) <= targets


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_resolves(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_named_test_exists() -> None:
    for page in LINKED:
        for name in re.findall(r"`(tests/[\w/.*]+)`", page.read_text("utf-8")):
            assert list(ROOT.glob(name)), f"{page.name} names {name}"


def test_the_entry_for_mcp_clients_is_json_and_starts_the_server() -> None:
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "serving.md").read_text("utf-8"), re.S)
    entry = json.loads(text)["mcpServers"]["rtm"]
    assert entry["command"] == "rtm"
    test_every_command_line_exists("serving.md", entry["args"])


ROW = re.compile(
    r"\| [^|]+ \| (?P<n>[\d,]+) \| ((?P<runs>\d+) \| (?P<each>\d+) \| )?(?P<verified>[\d.]+) % \| "
    r"((?P<equal>[\d.]+) % \| )?(?P<mean>[\d.]+) \| ((?P<most>\d+) \| )?`(?P<file>(eval|guesses)_\w+\.json)` \|"
)


def card(name: str) -> str:
    return (MODELS / name / "README.md").read_text(encoding="utf-8")


def measured(name: str) -> list[tuple[re.Match[str], dict[str, Any]]]:
    """The rows of a card, each with the evaluation that it names."""
    rows = list(ROW.finditer(card(name)))
    folders = re.compile(r"`profiles/([\w-]+)(?:/(?:eval|guesses)_\*\.json)?`")  # each is that of the rows after it
    assert len(rows) > 4
    paths = [ROOT / "profiles" / folders.findall(card(name)[: row.start()])[-1] / row["file"] for row in rows]
    found = [json.loads(path.read_text()) for path in paths]
    assert all(evaluation["model"] == name for evaluation in found)
    return list(zip(rows, found, strict=True))


@pytest.mark.parametrize("name", known_models())
def test_the_card_states_what_was_measured(name: str) -> None:
    for row, found in measured(name):
        guesses = row["file"].startswith("guesses")
        assert found["policy"] == "verified" and found["complete"]
        assert found["rollouts"] == int(row["runs"] or (4 if guesses else 1))
        most = found["max_total_steps"] if guesses else max(map(int, found["depth_histogram"]))
        assert most <= found["rollouts"] * int(row["each"] or 16) and row["most"] in (None, str(most))
        assert f"{found['n']:,}" == row["n"]
        assert f"{100 * found['verified']:.{len(row['verified'].partition('.')[2])}f}" == row["verified"]
        assert "." in row["verified"]
        assert row["equal"] in (None, f"{100 * found['exact_accuracy']:.1f}")
        assert f"{found['mean_total_steps' if guesses else 'mean_steps']:.1f}" == row["mean"]


@pytest.mark.parametrize("name", known_models())
def test_the_card_states_how_it_learned(name: str) -> None:
    named = re.search(r"`profiles/([\w-]+/train_\w+\.json)`", card(name))
    assert named
    found = json.loads((ROOT / "profiles" / named[1]).read_text())
    assert found["weights_sha256"] == hashlib.sha256((MODELS / name / "model.safetensors").read_bytes()).hexdigest()
    assert len(found["curve"]) > 2
    recipes = [PRESETS[preset] for preset in re.findall(r"rtm train ([\w-]+)", found["command"])]
    assert found["steps"] == sum(stage.steps for recipe in recipes for stage in recipe.stages)
    model = RecursiveReasoner.from_pretrained(name)
    assert f"{found['distinct']:,} distinct" in card(name)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card(name)
