"""Mazes: a square field of walls, a start S and a goal G; the answer marks a shortest path with `o`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from rtm_kernels.data.maze_forms import plain, side_of, texts
from rtm_kernels.data.task import Pair, Puzzle, Task, Twin, Verdict, register, register_family, reported
from rtm_kernels.errors import InputError, RTMError, require

WALL, OPEN, START, GOAL, PATH = 1, 2, 3, 4, 5  # a path stands on those from START on
VOCABULARY = "# SGo"
SIDES = range(5, 65)
"""Sides of mazes to train on. A model's task is told by its sizes, and below these are those of a Sudoku of side 4."""
WALL_SHARE = (0.28, 0.45)
BATCH = 1024
FRUITLESS_ROUNDS = 40
TURNS = (0, 7, 0, 6, 5, 4, 3, 2, 1, 7, 6, 5, 4, 3, 2, 1)
"""Number of a twin -> its symmetry, see `dihedral_indices`."""


def check_side(side: int) -> None:
    """Refuse a side that is none of `SIDES` (`InputError`)."""
    require(side in SIDES, "side", side, f"expected {SIDES[0]} to {SIDES[-1]}")


def distances(free: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Steps from the source cells over free cells, int32 [N, side, side], -1 where no path leads; bool inputs."""
    steps = np.where(sources, 0, -1)
    front, step = sources, 0
    while front.any():
        step += 1
        front = _beside(front) & free & (steps < 0)
        steps[front] = step
    return steps


def _beside(cells: np.ndarray) -> np.ndarray:
    """Cells that touch a cell of bool [N, side, side] by an edge."""
    padded = np.pad(cells, ((0, 0), (1, 1), (1, 1)))
    return padded[:, :-2, 1:-1] | padded[:, 2:, 1:-1] | padded[:, 1:-1, :-2] | padded[:, 1:-1, 2:]


def _neighbours(cells: np.ndarray) -> np.ndarray:
    """How many of the four neighbours are in bool [N, side, side]."""
    padded = np.pad(cells, ((0, 0), (1, 1), (1, 1))).astype(np.int8)
    return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]


def shortest(mazes: np.ndarray) -> np.ndarray:
    """Steps of a shortest path from S to G of token boards [N, side, side], -1 without one; int64 [N]."""
    steps = distances(mazes != WALL, mazes == START)
    return np.where(mazes == GOAL, steps, -1).max(axis=(1, 2))


def path_length(maze: np.ndarray, free: np.ndarray) -> int:
    """Steps from S to G of one maze [side, side] over the free cells, bool [side, side]; -1 where none lead there.

    The field is one integer with a bit for each cell and one more after each row, which is never free.
    """
    side = len(maze)

    def bits(cells: np.ndarray) -> int:
        wider = np.zeros((side, side + 1), dtype=bool)
        wider[:, :side] = cells
        return int.from_bytes(np.packbits(wider, bitorder="little").tobytes(), "little")

    left, front, goal, steps = bits(free), bits(maze == START), bits(maze == GOAL), 0
    while front and not front & goal:
        left &= ~front
        front = (front << 1 | front >> 1 | front << side + 1 | front >> side + 1) & left
        steps += 1
    return steps if front else -1


def generate(
    count: int, *, seed: int, side: int = 30, path_cells: int | None = None, walls: tuple[float, float] = WALL_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """`count` mazes and their solutions, tokens uint8 [count, side * side] each, the same for the same arguments.

    Each cell is a wall with a probability drawn per maze from `walls`; start and goal are far apart: their shortest
    path has at least `path_cells` cells, both ends included. The default is 110 at side 30, as in Maze-Hard, in
    proportion to the area below, and to side^1.13 above. `solve` chooses among equally short paths.
    Raises `RTMError` when such mazes are too rare to be found.
    """
    require(2 <= side <= 64, "side", side, "expected 2 to 64")
    require(0 <= walls[0] <= walls[1] < 1, "walls", walls, "expected least <= most share, from 0 to below 1")
    least = path_cells if path_cells is not None else round(110 * min((side / 30) ** 2, (side / 30) ** 1.13))
    require(2 <= least <= side * side, "path_cells", least, f"expected 2 to {side * side}")
    rng = np.random.default_rng(seed)
    puzzles, missing, fruitless = [np.zeros((0, side, side), dtype=np.uint8)], count, 0
    while missing > 0:
        density = rng.uniform(*walls, (BATCH, 1, 1))
        found = _place_ends(rng.random((BATCH, side, side)) >= density, least - 1, rng)[:missing]
        puzzles.append(found)
        missing -= len(found)
        fruitless = 0 if len(found) else fruitless + 1
        if fruitless == FRUITLESS_ROUNDS:
            raise RTMError(f"no maze of side {side} with a path of {least} cells in {fruitless * BATCH} fields")
    mazes = np.concatenate(puzzles)
    return mazes.reshape(count, -1), solve(mazes).reshape(count, -1)


def _place_ends(free: np.ndarray, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Mazes of those fields where some cell is `steps` or more away from the cell farthest from a random one."""
    end = _random_cell(free, rng)
    end, _ = _farthest(free, end)
    far_enough = _farthest(free, end)[1] >= steps
    free, start = free[far_enough], end[far_enough]
    goal = _random_cell(distances(free, start) >= steps, rng)
    swap = (rng.random(len(free)) < 0.5)[:, None, None]
    mazes = np.where(free, OPEN, WALL).astype(np.uint8)
    mazes[np.where(swap, goal, start)] = START
    mazes[np.where(swap, start, goal)] = GOAL
    return mazes


def _random_cell(cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the cells in bool [N, side, side] at random, as bool of the same shape; none where there is none."""
    flat = cells.reshape(len(cells), cells.shape[1] * cells.shape[2])
    chosen = np.where(flat, rng.random(flat.shape), -1).argmax(axis=1)
    return (np.arange(flat.shape[1]) == chosen[:, None]).reshape(cells.shape) & cells


def _farthest(free: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A cell farthest from the source cell of each field, bool [N, side, side], and its distance [N]."""
    side = free.shape[1]
    bits = np.uint64(1) << np.arange(side, dtype=np.uint64)
    left, front = free @ bits, sources @ bits  # rows as bits, [N, side]
    last, steps, step = front.copy(), np.zeros(len(free), dtype=np.int64), 0
    live = np.arange(len(free))
    while live.size:
        last[live], steps[live] = front, step
        open_rows = left[live] & ~front
        left[live] = open_rows
        grown = front << np.uint64(1) | front >> np.uint64(1)
        grown[:, 1:] |= front[:, :-1]
        grown[:, :-1] |= front[:, 1:]
        front = grown & open_rows
        moved = front.any(axis=1)
        live, front, step = live[moved], front[moved], step + 1
    cells = (last[:, :, None] & bits) != 0
    first = cells.reshape(len(cells), side * side).argmax(axis=1)
    return (np.arange(side * side) == first[:, None]).reshape(cells.shape) & cells, steps


def solve(mazes: np.ndarray) -> np.ndarray:
    """The mazes [N, side, side] with one shortest path marked, as the labels of Maze-Hard choose it.

    The path is walked from S. Each step goes to the first of the cells below, left, right and above that is nearer
    to G. Errors: `InputError` where no path leads to G.
    """
    side = mazes.shape[1]
    away = np.pad(distances(mazes != WALL, mazes == GOAL), ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    away, answers = away.reshape(len(mazes), (side + 2) ** 2), np.pad(mazes, ((0, 0), (1, 1), (1, 1)))
    flat = answers.reshape(away.shape)
    rows, cells = np.nonzero(flat == START)
    left = away[rows, cells]
    require(bool((left > 0).all()), f"mazes[{(left > 0).argmin()}]", "unsolvable", "expected a path from S to G")
    ahead = np.array([side + 2, -1, 1, -side - 2])  # below, left, right, above
    while (going := left > 1).any():
        rows, cells, left = rows[going], cells[going], left[going] - 1
        nearer = away[rows[:, None], cells[:, None] + ahead] == left[:, None]
        cells = cells + ahead[nearer.argmax(axis=1)]
        flat[rows, cells] = PATH
    return answers[:, 1:-1, 1:-1].copy()


class Maze(Task):
    """Mazes of one side length as tokens: 0 padding, then `#`, open, `S`, `G`, `o`, as in the official data.

    Those of side 30, as in Maze-Hard, are the task `maze`; those of another side S are `mazeS`, such as maze9.
    """

    vocabulary = VOCABULARY
    one_solution = False
    twins_in_turn = True

    def __init__(self, side: int = 30) -> None:
        self.side = side
        self.seq_len = side * side
        self.name = "maze" if side == 30 else f"maze{side}"
        self.sizes = f"{self.name} has {self.seq_len} cells"

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a maze or of an answer; a dot is an open cell, line ends are left out."""
        tokens = super().encode(text.replace("\n", "").replace(".", " "))
        for name, token in (("S", START), ("G", GOAL)):
            found = int((tokens == token).sum())
            require(found == 1, f"number of {name}", found, "a maze has one start S and one goal G")
        return tokens

    def verify(self, puzzle: str, answer: str) -> Verdict:
        maze = self._field(self.encode(puzzle))[0]
        try:
            marked = self._field(self.encode(answer))[0]
        except InputError as error:
            return Verdict(False, f"the answer cannot be read: {error}")
        path = marked == PATH
        changed = np.argwhere(np.where(path, maze != OPEN, marked != maze))
        if len(changed):
            row, column = (changed[0] + 1).tolist()
            return Verdict(False, f"the cell in row {row}, column {column} does not keep the maze")
        length = path_length(maze, marked >= START)
        if length < 0:
            return Verdict(False, "the marked cells do not lead from S to G")
        best, stray = path_length(maze, maze != WALL), int(path.sum()) + 1 - length
        if length > best:
            return Verdict(False, f"a path of {length} steps; a shortest one has {best}")
        if stray:
            return Verdict(False, f"a shortest path, but {stray} more cells are marked")
        return Verdict(True)

    def path_steps(self, puzzle: str, answer: str | None) -> tuple[int | None, int | None]:
        """(steps from S to G along the marked cells of `answer`, steps of a shortest path), None where none leads.

        An answer that does not keep the maze, or cannot be read, has no path. `verify` asks for a shortest one.
        """
        maze = self._field(self.encode(puzzle))[0]
        length, best = -1, path_length(maze, maze != WALL)
        with suppress(InputError):
            marked = self._field(self.encode(answer or ""))[0]
            if np.where(marked == PATH, maze == OPEN, marked == maze).all():
                length = path_length(maze, marked >= START)
        return length if length > 0 else None, best if best > 0 else None

    def verify_tokens(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """`verify` over tokens [N, side * side], as bool [N].

        On a shortest path every marked cell has two neighbours on the path, and S and G have one; with that shape and
        as many marked cells as a shortest path has, there is room neither for a detour nor for a stray cell.
        """
        mazes, answers = self._field(inputs), self._field(answers)
        marked, on_path = answers == PATH, answers >= START
        kept = np.where(marked, mazes == OPEN, answers == mazes).all(axis=(1, 2))
        wanted = np.where(marked, 2, 1)
        found = kept & np.where(on_path, _neighbours(on_path) == wanted, True).all(axis=(1, 2))
        found[found] = shortest(mazes[found]) == marked[found].sum(axis=(1, 2)) + 1
        return found

    def parse(self, source: str | Iterable[str], errors: str = "raise") -> Iterator[Puzzle]:
        """Mazes: tables and JSON (`text.records`), one maze per line, or grids of one line per row."""
        return reported((self._checked(*found) for found in texts(source)), errors)

    def of_side(self, side: int) -> Maze | None:
        """The task of a side that this one reads, None for others."""
        return self if side == self.side else None

    def _checked(self, number: int, text: str, solution: str, fault: str = "") -> Puzzle:
        try:
            if fault:
                raise InputError(fault)
            text = plain(text)
            task = self.of_side(side_of(text))
            if task is None:
                found = f"puzzle length={len(text.replace(chr(10), ''))} is not allowed"
                raise InputError(f"{found}: {self.sizes}, and not a blank line between its rows")
            tokens = task.encode(text)
            require(not (tokens == PATH).any(), "maze", "o", "a puzzle holds no path")
            if not solution:
                maze = task._field(tokens)[0]
                require(path_length(maze, maze != WALL) > 0, "maze", "S and G", "a way leads from S to G")
            elif reason := task.verify(text, solution).reason:
                raise InputError(f"solution is not allowed: {reason}")
        except InputError as error:
            return Puzzle("", line=number, error=f"line {number}: {error}")
        return Puzzle(self.decode(tokens), solution or None, number)

    def render(self, puzzle: str, answer: str | None = None, emphasis: Callable[[str], str] = str) -> str:
        cells = [a if a == p else emphasis(a) for p, a in zip(puzzle, answer or puzzle, strict=True)]
        return "\n".join("".join(cells[start : start + self.side]) for start in range(0, self.seq_len, self.side))

    def augment(self, inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Pair:
        """Each maze turned and mirrored by one of the eight symmetries of the square, and solved again.

        A turned label would be a shortest path, but not the one that `solve` chooses.
        """
        turned = np.take_along_axis(inputs, dihedral_indices(self.side)[rng.integers(0, 8, len(inputs))], axis=1)
        return turned, solve(self._field(turned)).reshape(turned.shape).astype(labels.dtype)

    def keys(self, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        turns = dihedral_indices(self.side)
        return np.array([min(maze[turn].tobytes() for turn in turns) for maze in inputs], dtype=object)

    def twin(
        self, tokens: np.ndarray, rng: np.random.Generator, number: int, answers: Sequence[np.ndarray] = ()
    ) -> Twin:
        """Left and right exchanged; then without the cells that none of `answers` marks; then turned and mirrored.

        `solve` chooses another path in the first only where both lead to G as soon, and in the second nowhere, if its
        path is left there. The next six are the other symmetries of the square, then come the symmetries of the second.
        """
        number %= len(TURNS)
        index, kept = dihedral_indices(self.side)[TURNS[number]], np.ones(len(tokens), dtype=bool)
        if number == 2 or number > 8:
            kept = np.any([tokens > OPEN, *(answer == PATH for answer in answers)], axis=0)
        back = np.argsort(index)
        return np.where(kept, tokens, WALL).astype(tokens.dtype)[index], lambda a: np.where(kept, a[back], tokens)

    def _field(self, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(tokens).reshape(-1, self.side, self.side)


def dihedral_indices(side: int) -> np.ndarray:
    """Source cell of every cell under the eight symmetries of the square, [8, side * side].

    The first is the square itself, the last has left and right exchanged.
    """
    cells = np.arange(side * side).reshape(side, side)
    turned = [np.rot90(view, k) for view in (cells, cells.T) for k in range(4)]
    return np.stack(turned).reshape(8, -1)


register(Maze())
register_family(f"maze{SIDES[0]} to maze{SIDES[-1]}", (Maze(side) for side in SIDES if side != 30))
