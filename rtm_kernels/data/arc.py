"""ARC grids as sequences, the augmentations of the official data, and answers by votes over augmented versions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rtm_kernels.data.task import PAD, Task, Verdict, register
from rtm_kernels.errors import InputError, require
from rtm_kernels.files import read_json

SIDE = 30
EOS = 1
COLOURS = 10
SEPARATOR = "|||"
CHALLENGES, SOLUTIONS = "_challenges.json", "_solutions.json"
"""Ends of the two files that the ARC prize publishes for each part of its data."""
MAX_BYTES = 1 << 30
PASS_AT = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2
"""Answers per test input that an ARC submission holds."""
Example = tuple[np.ndarray, np.ndarray]
Key = tuple[str, bytes]
Puzzles = Mapping[str, Mapping[str, list[Example]]]
"""Name -> `train` and `test` -> pairs of input and output grids."""


def encode_grid(grid: object, row: int = 0, column: int = 0) -> np.ndarray:
    """Tokens uint8 [900] of a grid [h, w] of colours 0..9 put at (row, column): colour + 2, an edge of EOS, else 0."""
    cells = check_grid("grid", grid)
    height, width = cells.shape
    require(0 <= row <= SIDE - height and 0 <= column <= SIDE - width, "offset", (row, column), "the grid has to fit")
    canvas = np.full((SIDE, SIDE), PAD, dtype=np.uint8)
    canvas[row : row + height, column : column + width] = cells + 2
    if row + height < SIDE:
        canvas[row + height, column : column + width] = EOS
    if column + width < SIDE:
        canvas[row : row + height, column + width] = EOS
    return canvas.reshape(-1)


def decode_grid(tokens: np.ndarray) -> np.ndarray:
    """The grid uint8 [h, w] of tokens [900]: the largest rectangle of colours from the top left corner."""
    canvas = np.asarray(tokens).reshape(SIDE, SIDE)
    colour = (canvas >= 2) & (canvas < COLOURS + 2)
    widths = np.minimum.accumulate(np.logical_and.accumulate(colour, axis=1).sum(axis=1))
    height = int((widths * np.arange(1, SIDE + 1)).argmax()) + 1
    return (canvas[:height, : widths[height - 1]] - 2).astype(np.uint8)


def check_grid(name: str, grid: object) -> np.ndarray:
    """`grid` as uint8 [h, w]. Raises `InputError` unless it is a rectangle, 1 to 30 a side, of colours 0 to 9."""
    try:
        array = np.array(grid)
    except ValueError:
        raise InputError(f"{name} is not allowed: its rows differ in length") from None
    shape_fits = array.ndim == 2 and min(array.shape) >= 1 and max(array.shape) <= SIDE
    require(shape_fits, f"{name}.shape", array.shape, f"expected 1 to {SIDE} rows and columns")
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= COLOURS:
        wrong = [v for v in array.ravel().tolist() if type(v) is not int or not 0 <= v < COLOURS]
        require(False, name, wrong[0], "expected integers 0 to 9")
    return array.astype(np.uint8)


def dihedral(grid: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight symmetries of the square, numbered as in the official data."""
    require(0 <= turn < 8, "turn", turn, "expected 0 to 7")
    if turn < 4:
        return np.rot90(grid, turn)
    return (np.fliplr(grid), np.flipud(grid), grid.T, np.fliplr(np.rot90(grid)))[turn - 4]


@dataclass(frozen=True)
class Augmentation:
    """Recolour, then turn: `colours[c]` is the new colour of c (0 stays 0), `turn` one of `dihedral`."""

    turn: int = 0
    colours: tuple[int, ...] = tuple(range(COLOURS))

    @classmethod
    def random(cls, rng: np.random.Generator) -> Augmentation:
        return cls(int(rng.integers(8)), (0, *(1 + rng.permutation(COLOURS - 1)).tolist()))

    @classmethod
    def from_name(cls, name: str) -> tuple[str, Augmentation]:
        """The puzzle's own name and the augmentation that `name`, as in `identifiers.json`, stands for."""
        if SEPARATOR not in name:
            return name, cls()
        parts = name.split(SEPARATOR)
        turned = len(parts) == 3 and parts[1] in {f"t{turn}" for turn in range(8)}
        expected = f"expected NAME{SEPARATOR}t0-7{SEPARATOR}ten digits"
        require(turned and sorted(parts[2]) == list("0123456789"), "identifier", name[:80], expected)
        return parts[0], cls(int(parts[1][1]), tuple(map(int, parts[2])))

    def name(self, puzzle: str) -> str:
        if self == Augmentation():
            return puzzle
        return f"{puzzle}{SEPARATOR}t{self.turn}{SEPARATOR}{''.join(map(str, self.colours))}"

    def apply(self, grid: np.ndarray) -> np.ndarray:
        return dihedral(np.array(self.colours, dtype=np.uint8)[grid], self.turn)

    def invert(self, grid: np.ndarray) -> np.ndarray:
        """The grid that `apply` turned into this one."""
        inverse = (0, 3, 2, 1, 4, 5, 6, 7)[self.turn]
        return np.argsort(self.colours).astype(np.uint8)[dihedral(grid, inverse)]


class Arc(Task):
    """One ARC grid, as text with `/` between rows; without the solution no answer can be verified."""

    name = "arc"
    vocabulary = "|0123456789"
    seq_len = SIDE * SIDE

    def encode(self, text: str) -> np.ndarray:
        rows = text.replace("\n", "/").strip("/").split("/")
        for row in rows:
            digits = row.isascii() and row.isdigit()
            require(digits, "grid row", row[:40], "expected digits 0 to 9, with / between rows")
        return encode_grid([[*map(int, row)] for row in rows])

    def decode(self, tokens: np.ndarray) -> str:
        return "/".join("".join(map(str, row)) for row in decode_grid(tokens).tolist())

    def verify(self, puzzle: str, answer: str) -> Verdict:
        try:
            height, width = decode_grid(self.encode(answer)).shape
        except InputError as error:
            return Verdict(False, f"the answer is not a grid: {error}")
        return Verdict(False, f"a {height} x {width} grid; ARC has no rule that checks an answer")

    def render(self, puzzle: str, answer: str | None = None, emphasis: Any = str) -> str:
        return (answer if answer is not None else puzzle).replace("/", "\n")


def read_arc(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Puzzles of a folder of JSON files, or of a file NAME_challenges.json and NAME_solutions.json beside it.

    Test outputs that no file gives are left out. Raises `InputError` naming the file, puzzle and grid.
    """
    folder = Path(path)
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
    require(bool(files), str(folder), "no .json file", "expected a folder of them, one for each puzzle")
    raw = {file.stem: _load(file) for file in files} if folder.is_dir() else _load(folder)
    beside = folder.with_name(folder.name.replace(CHALLENGES, SOLUTIONS))
    outputs = _load(beside) if folder.name.endswith(CHALLENGES) and beside.is_file() else {}
    puzzles: dict[str, dict[str, list[Example]]] = {}
    for name, puzzle in raw.items():
        try:
            parts = {part: _pairs(puzzle, part, outputs.get(name, [])) for part in ("train", "test")}
        except InputError as error:
            raise InputError(f"{folder}: puzzle {name[:40]!a}: {error}") from None
        puzzles[name] = parts
    return puzzles


def _pairs(puzzle: Any, part: str, outputs: Any) -> list[Example]:
    """The pairs of one part of a puzzle as JSON holds it; `outputs` are those of its test inputs."""
    pairs: Any = puzzle.get(part) if isinstance(puzzle, dict) else None
    require(isinstance(pairs, list), part, type(pairs).__name__, "expected a list of pairs under train and under test")
    own = outputs if part == "test" else []
    fits = isinstance(own, list) and len(own) in (0, len(pairs))
    require(fits, "solutions", type(own).__name__, f"expected a list of {len(pairs)} grids, one for each test input")
    found = []
    for index, (pair, output) in enumerate(zip(pairs, own or [None] * len(pairs), strict=True)):
        place = f"{part}[{index}]"
        given = isinstance(pair, dict) and "input" in pair
        require(given, place, type(pair).__name__, "expected an object with input and output")
        output = pair.get("output") if output is None else output
        if output is not None:
            found.append((check_grid(f"{place}.input", pair["input"]), check_grid(f"{place}.output", output)))
    return found


def _load(path: Path) -> dict[str, Any]:
    content = read_json(path, limit=MAX_BYTES)
    require(isinstance(content, dict), str(path), type(content).__name__, "expected a JSON object")
    return dict(content)


def _key(grid: np.ndarray) -> bytes:
    return bytes(grid.shape) + grid.tobytes()


def _grid(key: bytes) -> np.ndarray:
    return np.frombuffer(key[2:], dtype=np.uint8).reshape(key[0], key[1])


class Tally:
    """Counts the grids uint8 [h, w] that augmented runs of one test input ended in, turned back."""

    def __init__(self) -> None:
        self._found: dict[bytes, tuple[int, float]] = {}

    def add(self, grid: np.ndarray, confidence: float) -> None:
        """One run's answer and its halting probability."""
        count, total = self._found.get(_key(grid), (0, 0.0))
        self._found[_key(grid)] = count + 1, total + confidence

    def ranked(self) -> list[tuple[np.ndarray, int, float]]:
        """(grid, votes, mean halting probability): most votes first, then the higher mean, then the earlier."""
        found = [(_grid(key), count, total / count) for key, (count, total) in self._found.items()]
        return sorted(found, key=lambda answer: answer[1:], reverse=True)


class Votes:
    """Counts predictions per test input; answers rank by how many twins gave them, then by mean halting probability.

    `names[i]` is the name of puzzle identifier i, as `identifiers.json` holds it; identifier 0 is blank. Test inputs
    are told apart by puzzle and grid, both without their augmentation.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._truth: dict[Key, bytes] = {}
        self._tried: set[Key] = set()
        self._answers: dict[Key, Tally] = {}

    def expect(self, identifier: int, tokens: np.ndarray, labels: np.ndarray) -> None:
        """Make a test pair known: tokens and labels [900] of any twin of it."""
        key, augmentation = self._place(identifier, tokens)
        self._truth[key] = _key(augmentation.invert(decode_grid(labels)))
        self._answers.setdefault(key, Tally())

    def add(self, identifier: int, tokens: np.ndarray, answer: np.ndarray | None, confidence: float) -> None:
        """Count the answer [900] to the twin `tokens` [900], with its halting probability; None where it has none."""
        key, augmentation = self._place(identifier, tokens)
        self._tried.add(key)
        tally = self._answers.setdefault(key, Tally())
        if answer is not None:
            tally.add(augmentation.invert(decode_grid(answer)), confidence)

    def _place(self, identifier: int, tokens: np.ndarray) -> tuple[Key, Augmentation]:
        require(0 < identifier < len(self.names), "identifier", identifier, f"1 to {len(self.names) - 1}")
        puzzle, augmentation = Augmentation.from_name(self.names[identifier])
        return (puzzle, _key(augmentation.invert(decode_grid(tokens)))), augmentation

    def pass_at(self, ks: Sequence[int] = PASS_AT, *, tried: bool = False) -> dict[int, float]:
        """For each k the mean over puzzles of the share of test inputs whose solution is among the first k answers;
        with `tried` only over test inputs of which a twin was run."""
        shares: dict[str, list[list[bool]]] = {}
        for key, truth in self._truth.items():
            if tried and key not in self._tried:
                continue
            ranked = [_key(grid) for grid, _, _ in self._answers[key].ranked()]
            place = ranked.index(truth) if truth in ranked else len(ranked)
            shares.setdefault(key[0], []).append([place < min(k, len(ranked)) for k in ks])
        means = [np.mean(tests, axis=0) for tests in shares.values()]
        return dict(zip(ks, np.mean(means, axis=0).tolist() if means else [0.0] * len(ks), strict=True))

    def submission(self) -> dict[str, list[dict[str, list[list[int]]]]]:
        """Per puzzle and test input the best two answers, in the format of the ARC prize; `[[0]]` where none is."""
        found: dict[str, list[dict[str, list[list[int]]]]] = {}
        for key, tally in self._answers.items():
            best: list[list[list[int]]] = [grid.tolist() for grid, _, _ in tally.ranked()[:ATTEMPTS]]
            best += [best[-1] if best else [[0]]] * (ATTEMPTS - len(best))
            found.setdefault(key[0], []).append({f"attempt_{i}": grid for i, grid in enumerate(best, start=1)})
        return found


register(Arc())
