"""What a puzzle task is: a vocabulary, a length, and a verdict on answers. Subclass `Task` and `register` it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rtm_kernels.data.text import decoded, named, numbered_lines
from rtm_kernels.errors import InputError, one_of, printable, require

PAD = 0
Groups = tuple[tuple[int, ...], ...]
Pair = tuple[np.ndarray, np.ndarray]
Twin = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]
"""Tokens of a twin of a puzzle, and what turns an answer to it into one to the puzzle; both [seq_len]."""


@dataclass(frozen=True)
class Generators:
    """Generators of the symmetries that all puzzles of a task share, as permutations: each row one generator.

    positions: [G, seq_len], which position each one comes from. groups: [G, U], the same for the groups of positions
    that the rules speak of (rows, columns, boxes). values: [G, V], for the values that a position may take, whose
    tokens are `first_value`, `first_value + 1`, ...; every other token stays.
    """

    positions: np.ndarray
    groups: np.ndarray
    values: np.ndarray
    first_value: int

    def tokens(self, vocab_size: int) -> np.ndarray:
        """The permutations of tokens, [G, vocab_size]."""
        count, values = self.values.shape
        tokens = np.tile(np.arange(vocab_size), (count, 1))
        tokens[:, self.first_value : self.first_value + values] = self.first_value + self.values
        return tokens


@dataclass(frozen=True, slots=True)
class Verdict:
    """`verified`: the rules of the task hold. `reason`: the first rule that does not, or why nothing can be said."""

    verified: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Puzzle:
    """One puzzle as read: its text, the line where it starts; solution, rating and origin where the file gives them.

    `error` says what is wrong with an unusable puzzle, where the reader reports errors instead of raising.
    """

    text: str
    solution: str | None = None
    line: int | None = None
    rating: float | None = None
    error: str | None = None
    origin: str | None = None


class Task(ABC):
    """A puzzle as a sequence of `seq_len` tokens: character `vocabulary[i]` is token i + 1, and 0 is padding.

    A subclass sets `name`, `vocabulary` and `seq_len` and writes `verify`; everything else has a default that fits
    puzzles of one character per cell and one line per puzzle.
    """

    name: str
    vocabulary: str
    seq_len: int
    open_token: int = PAD
    """The token of a position that is to be answered, where any answer may stand as given (a blank); PAD: none is."""

    groups: Groups = ()
    """Groups of positions (rows, columns, boxes) in each of which every answer stands once, where the rules of the task
    have such: each of as many positions as there are answers, which are the last tokens of the vocabulary. Each
    position is in as many groups."""

    one_solution: bool = True
    """Whether a puzzle has one solution; else a valid answer may differ from the label, and both are measured."""

    twins_in_turn: bool = False
    """Whether twins are solved one after the other, in an order of their own; else all together."""

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary) + 1

    @abstractmethod
    def verify(self, puzzle: str, answer: str) -> Verdict:
        """Whether `answer` solves `puzzle` by the rules of the task; both as text."""

    def encode(self, text: str) -> np.ndarray:
        """Tokens of one puzzle, uint8 [seq_len]. Raises `InputError` for a wrong length or an unknown character."""
        require(len(text) == self.seq_len, "puzzle length", len(text), f"{self.name} has {self.seq_len} cells")
        index = {character: token for token, character in enumerate(self.vocabulary, start=1)}
        if unknown := set(text) - index.keys():
            column = next(column for column, character in enumerate(text) if character in unknown)
            raise InputError(f"column {column + 1}: {text[column]!a} is not one of {self.vocabulary!a}")
        return np.frombuffer(bytearray(map(index.__getitem__, text)), dtype=np.uint8)

    def decode(self, tokens: np.ndarray) -> str:
        """Text of tokens [seq_len]; padding, and any id outside the vocabulary, reads as `?`."""
        known, size = f"?{self.vocabulary}", self.vocab_size
        return "".join([known[t] if 0 <= t < size else "?" for t in np.asarray(tokens).tolist()])

    def verify_tokens(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """`verify` over tokens [N, seq_len], as bool [N]."""
        pairs = zip(inputs, answers, strict=True)
        return np.array([self.verify(self.decode(x), self.decode(y)).verified for x, y in pairs], dtype=bool)

    def parse(self, source: str | Iterable[str], errors: str = "raise") -> Iterator[Puzzle]:
        """Puzzles of a text or of lines, one per line.

        A puzzle with a fault is raised as `InputError`, or with `errors="report"` comes with its `error`. Input without
        any puzzle is always an `InputError`.
        """
        lines = ((number, line.rstrip("\r\n")) for number, line in numbered_lines(source))
        return reported((self._read(number, text) for number, text in lines if text), errors)

    def _read(self, number: int, text: str) -> Puzzle:
        try:
            self.encode(text)
            return Puzzle(text, line=number)
        except InputError as error:
            return Puzzle("", line=number, error=f"line {number}: {error}")

    def read(self, path: str | os.PathLike[str], errors: str = "raise") -> Iterator[Puzzle]:
        """Puzzles of a file as `parse` gives them, its name in front of every error."""
        with named(path), decoded(open(path, "rb")) as file:
            for puzzle in self.parse(file, errors):
                fault = f"{printable(os.fspath(path))[:200]}: {puzzle.error}"
                yield replace(puzzle, error=fault) if puzzle.error else puzzle

    def sized(self, text: str) -> Task:
        """The task of the size of the puzzle `text`, for a model that solves every size; else this one."""
        reader = self.reader()
        return self if reader is self else reader.sized(text)

    def reader(self) -> Task:
        """What reads puzzles of every size, for such a model; this task where nothing does."""
        return _READERS.get(type(self), self)

    def render(self, puzzle: str, answer: str | None = None, emphasis: Callable[[str], str] = str) -> str:
        """The puzzle, or its answer, for a person; `emphasis` is applied to each character the answer filled in."""
        if answer is None:
            return puzzle
        return "".join(a if a == p else emphasis(a) for p, a in zip(puzzle, answer, strict=True))

    def augment(self, inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        """A random symmetric twin of each pair of token rows [N, seq_len]; without symmetries, the pair itself."""
        return inputs, labels

    def keys(self, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """One key per pair of token rows [N, seq_len], equal for symmetric twins; here for equal puzzles only."""
        return np.array([row.tobytes() for row in inputs], dtype=object)

    def generators(self) -> Generators | None:
        """Generators of the symmetries of the task; None without."""
        return None

    def twin(
        self, tokens: np.ndarray, rng: np.random.Generator, number: int, answers: Sequence[np.ndarray] = ()
    ) -> Twin | None:
        """Twin `number` >= 1 of the puzzle `tokens`, with an answer that is one to the puzzle as well; None without.

        A random symmetric one; with `twins_in_turn` it may depend on its number and on the `answers` of earlier runs.
        """
        return None


def reported(puzzles: Iterable[Puzzle], errors: str) -> Iterator[Puzzle]:
    """The puzzles that a reader found; the first with an `error` is raised, unless `errors` is `report`.

    Errors: `InputError`, also where there is no puzzle at all.
    """
    one_of("errors", errors, ("raise", "report"))
    found = False
    for puzzle in puzzles:
        found = True
        if puzzle.error and errors == "raise":
            raise InputError(puzzle.error)
        yield puzzle
    if not found:
        raise InputError("no puzzle found: the input is empty")


_TASKS: dict[str, Task] = {}
_READERS: dict[type[Task], Task] = {}
"""Kind of task -> what reads its puzzles of every size."""
_FAMILIES: dict[str, dict[str, Task]] = {}
"""What names the tasks of a family in messages -> its tasks by their names."""


def register(task: Task) -> Task:
    """Make `task` known by its name. Raises `InputError` when the name is taken by another kind of task."""
    known = _TASKS.get(task.name)
    require(known is None or type(known) is type(task), "task name", task.name, "it is already registered")
    _TASKS[task.name] = task
    return task


def register_family(label: str, tasks: Iterable[Task]) -> None:
    """Make many tasks known that lists name by `label` only. A registered one of the same sizes goes before them."""
    _FAMILIES[label] = {task.name: task for task in tasks}


def register_reader(kind: type[Task], reader: Task) -> None:
    """Make `reader` what reads puzzles of every size of that kind of task."""
    _READERS[kind] = reader


def get_task(name: str) -> Task:
    """The task called `name`, registered or of a family. Raises `InputError` listing the known names."""
    for tasks in (_TASKS, *_FAMILIES.values()):
        if name in tasks:
            return tasks[name]
    raise InputError(f"task={name!r} is not allowed: expected one of {', '.join((*task_names(), *_FAMILIES))}")


def has_task(name: str) -> bool:
    """Whether `get_task` knows the name."""
    return any(name in tasks for tasks in (_TASKS, *_FAMILIES.values()))


def find_tasks(seq_len: int, vocab_size: int) -> list[Task]:
    """The tasks of these sizes, by name: the registered ones, or, where there are none, those of families."""
    for tasks in (_TASKS, *_FAMILIES.values()):
        found = [tasks[name] for name in sorted(tasks)]
        fitting = [task for task in found if (task.seq_len, task.vocab_size) == (seq_len, vocab_size)]
        if fitting:
            return fitting
    return []


def task_names() -> tuple[str, ...]:
    """Names of the registered tasks, without those of families."""
    return tuple(sorted(_TASKS))
