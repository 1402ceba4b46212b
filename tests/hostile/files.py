"""Files that are attacked: saved models, data sets, puzzle files."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rtm_kernels.cli.source import read_all
from rtm_kernels.data import get_task
from rtm_kernels.data.arc import read_arc
from rtm_kernels.data.dataset import Examples, PuzzleDataset, write_dataset
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.pretrained import CONFIG, MANIFEST, WEIGHTS
from tests.hostile.mutations import damage_bytes, damage_json, damage_text
from tests.hostile.targets import PUZZLE, Attack, Target, clear, taken_or_refused
from tests.oracle import saved

NUMBERS = (256, 1 << 13, 1 << 14, 1 << 20)
"""The largest that a config allows here and there."""


def parts_of(weights: bytes) -> tuple[Any, bytes]:
    """The header of a safetensors file, parsed, and the rest."""
    size = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + size]), weights[8 + size :]


def with_header(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + rest


def model_files(root: Path) -> Target:
    """Damaged models, mostly with digests that fit the damage: loaded whole, or refused in one line."""
    folder = saved("sudoku4", root)
    good = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS, MANIFEST)}
    config, (header, rest) = json.loads(good[CONFIG]), parts_of(good[WEIGHTS])

    def damaged(rng: random.Random) -> dict[str, bytes]:
        match rng.randrange(6):
            case 0:
                return {CONFIG: damage_bytes(good[CONFIG], rng)}
            case 1:
                return {CONFIG: json.dumps(damage_json(config, rng)).encode()}
            case 2:
                name = rng.choice([name for name, value in config.items() if isinstance(value, int)])
                return {CONFIG: json.dumps({**config, name: rng.choice(NUMBERS)}).encode()}
            case 3:
                return {WEIGHTS: with_header(damage_json(header, rng), rest)}
            case 4:
                return {WEIGHTS: damage_bytes(good[WEIGHTS], rng)}
            case _:
                return {MANIFEST: damage_bytes(good[MANIFEST], rng)}

    def make(rng: random.Random) -> Attack:
        files = good | damaged(rng)
        if rng.random() < 0.9:
            digests = {name: hashlib.sha256(files[name]).hexdigest() for name in (CONFIG, WEIGHTS)}
            if files[MANIFEST] == good[MANIFEST]:
                files[MANIFEST] = json.dumps({"sha256": digests}).encode()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        changed = [name for name in files if files[name] != good[name]]
        tried = " ".join(f"{name} {files[name][:300]!r}" for name in changed)
        return lambda: taken_or_refused(lambda: RecursiveReasoner.from_pretrained(folder, impl="reference"), tried)

    return make


def data_sets(folder: Path) -> Target:
    """Damaged data sets, ARC files and puzzle files: read whole, or refused in one line."""
    rows = np.arange(4 * 16, dtype=np.uint8).reshape(4, 16) % 6
    write_dataset(folder / "set", {"test": Examples.of_single(rows, rows)}, 6)
    good = {path: path.read_bytes() for path in sorted((folder / "set").rglob("*")) if path.is_file()}
    arc, solutions = folder / "arc_challenges.json", folder / "arc_solutions.json"
    pair = {"input": [[1, 2], [3, 4]], "output": [[4, 3], [2, 1]]}
    challenges = {"a": {"train": [pair], "test": [{"input": [[1]]}]}, "b": {"train": [pair], "test": [pair]}}
    outputs = {"a": [[[1]]]}
    table = f"puzzle,solution,rating\n{PUZZLE},,3\n{PUZZLE},{'1' * 81},x\n\n# comment\n{PUZZLE}\n"

    def split(rng: random.Random) -> tuple[Callable[[], object], str]:
        path = rng.choice(list(good))
        content = good[path]
        if path.suffix == ".json" and rng.random() < 0.5:
            content = json.dumps(damage_json(json.loads(content), rng)).encode()
        else:
            content = damage_bytes(content, rng)
        for name, whole in good.items():
            name.write_bytes(content if name == path else whole)

        def read() -> None:
            found = PuzzleDataset.open(folder / "set", "test")
            found.check_tokens()
            found.identifiers()

        return read, f"{path.name} {content[:300]!r}"

    def tasks(rng: random.Random) -> tuple[Callable[[], object], str]:
        first, second = damage_json(challenges, rng), damage_json(outputs, rng) if rng.random() < 0.5 else outputs
        texts = [damage_text(json.dumps(v), rng) if rng.random() < 0.2 else json.dumps(v) for v in (first, second)]
        for path, text in zip((arc, solutions), texts, strict=True):
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return lambda: read_arc(arc), f"arc {texts!r:.400}"

    def puzzles(rng: random.Random) -> tuple[Callable[[], object], str]:
        text = damage_bytes(table.encode(), rng)
        (folder / "puzzles.csv").write_bytes(text)
        name = rng.choice(("sudoku", "maze", "arc"))

        def read() -> None:
            for puzzle in read_all([str(folder / "puzzles.csv")], get_task(name), None):
                if puzzle.error:
                    clear(puzzle.error, repr(text[:300]))

        return read, f"{name} {text[:300]!r}"

    def make(rng: random.Random) -> Attack:
        read, tried = rng.choice((split, split, tasks, puzzles))(rng)
        return lambda: taken_or_refused(read, tried)

    return make
