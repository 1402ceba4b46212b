"""Batches: the official sampling, exact resuming, augmentation; and examples in order."""

from __future__ import annotations

import numpy as np
import pytest

from rtm_kernels.data.dataset import Examples, Metadata, PuzzleDataset
from rtm_kernels.data.loader import Arrays, TrainLoader, read_examples
from rtm_kernels.data.sudoku import Sudoku, generate, verify
from rtm_kernels.errors import InputError

TASK = Sudoku(4)
PUZZLES, SOLUTIONS = generate(60, seed=1, size=4)


def in_memory(examples: Examples, vocab_size: int, num_puzzle_identifiers: int = 1) -> PuzzleDataset:
    return PuzzleDataset(Metadata.of(examples, vocab_size, num_puzzle_identifiers), {"all": examples})


DATASET = in_memory(Examples.of_single(PUZZLES + 1, SOLUTIONS + 1, puzzles_per_group=3), 6)


def numbered(sizes: list[int], puzzles_per_group: int = 2) -> PuzzleDataset:
    """Puzzle p has sizes[p] examples; every token of example e is e + 1."""
    ends = np.cumsum([0, *sizes])
    tokens = (1 + np.arange(ends[-1]))[:, None].repeat(4, axis=1)
    groups = np.arange(0, len(sizes) + 1, puzzles_per_group)
    examples = Examples(tokens, tokens, np.arange(len(sizes)), ends, groups)
    return in_memory(examples, int(ends[-1]) + 1, num_puzzle_identifiers=len(sizes))


def same(first: Arrays, second: Arrays) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_the_sampling_is_the_official_one() -> None:
    """One Philox stream per pass: a permutation of the groups, then one puzzle per group, drawn one after the other."""
    loader = TrainLoader(DATASET, 8, seed=5)
    for passed in (1, 2):
        rng = np.random.Generator(np.random.Philox(seed=5 + passed))
        rows = [int(rng.integers(3 * group, 3 * group + 3)) for group in rng.permutation(20)]
        found = np.concatenate([loader.next_batch()["inputs"] for _ in range(2)])  # the rest of 20 is dropped
        assert np.array_equal(found, DATASET.sets["all"].inputs[rows[:16]]) and found.dtype == np.int32


def test_puzzles_of_many_examples_fill_batches() -> None:
    sizes = [3, 3, 2, 2, 5, 5, 1, 1]
    ends = np.cumsum([0, *sizes])
    seen: set[int] = set()
    loader = TrainLoader(numbered(sizes), 4, seed=2)
    for _ in range(60):
        batch = loader.next_batch()
        examples, owners = batch["inputs"][:, 0] - 1, batch["puzzle_identifiers"]
        assert len(examples) == 4 and len(set(examples.tolist())) == 4
        assert np.array_equal(np.searchsorted(ends, examples, side="right") - 1, owners)
        assert len({int(owner) // 2 for owner in owners}) == len(set(owners.tolist()))  # one puzzle per group
        seen |= set(examples.tolist())
    assert seen == set(range(ends[-1]))


def test_resuming_at_any_batch_is_exact() -> None:
    for dataset, augment in ((DATASET, TASK.augment), (numbered([3, 1, 2, 2, 5, 4, 1, 6]), None)):
        first = TrainLoader(dataset, 5, seed=3, augment=augment)
        states, whole = [], []
        for _ in range(12):
            states.append(first.state_dict())
            whole.append(first.next_batch())
        for cut, state in enumerate(states):
            second = TrainLoader(dataset, 5, seed=3, augment=augment)
            second.load_state_dict(state)
            assert all(same(second.next_batch(), batch) for batch in whole[cut:])


def test_augmentation_streams_fresh_twins_and_ignored_labels_become_minus_100() -> None:
    loader = TrainLoader(DATASET, 20, seed=1, augment=TASK.augment)
    first, second = loader.next_batch(), loader.next_batch()
    for batch in (first, second):
        assert verify(batch["inputs"] - 1, batch["labels"] - 1).all()
    plain = TrainLoader(DATASET, 20, seed=1).next_batch()
    assert not same(first, plain)
    assert np.array_equal((first["inputs"] > 1).sum(axis=1), (plain["inputs"] > 1).sum(axis=1))
    labels = np.where(PUZZLES > 0, 0, SOLUTIONS + 1)
    arrays, _ = read_examples(in_memory(Examples.of_single(PUZZLES + 1, labels), 6))
    assert np.array_equal(arrays["labels"] == -100, PUZZLES > 0)


@pytest.mark.parametrize("limit", [None, 5, 99])
def test_examples_are_read_in_order_up_to_a_limit(limit: int | None) -> None:
    arrays, names = read_examples(numbered([3, 1, 2, 2, 5, 4]), limit)
    assert arrays["inputs"][:, 0].tolist() == list(range(1, 18))[:limit] == arrays["labels"][:, 0].tolist()
    assert arrays["puzzle_identifiers"].tolist() == np.repeat(range(6), [3, 1, 2, 2, 5, 4]).tolist()[:limit]
    assert names == ["all"] * len(arrays["inputs"])


@pytest.mark.parametrize(
    ("arguments", "state", "message"),
    [({"batch_size": 0}, {}, "batch_size=0"), ({"batch_size": 21}, {}, "a pass gives 20 examples"),
     ({"seed": -1}, {}, "seed=-1"), ({}, {"seed": 3}, r"state\['seed'\]=3 is not allowed: this loader has 0"),
     ({}, {"batch": -1}, r"state\['batch'\]=-1")],
)  # fmt: skip
def test_wrong_settings(arguments: dict, state: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loader = TrainLoader(DATASET, **{"batch_size": 4, "seed": 0, **arguments})
        loader.load_state_dict({**loader.state_dict(), **state})
        loader.next_batch()
