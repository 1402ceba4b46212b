"""Batches: the official sampling, exact resuming, ranks, augmentation and padding."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from rtm_kernels.data.dataset import Examples, Metadata, PuzzleDataset
from rtm_kernels.data.loader import Batch, TestLoader, TrainLoader
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


def forever(loader: TrainLoader):
    while True:
        yield from loader


def same(first: Batch, second: Batch) -> bool:
    return all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays)


def test_the_sampling_is_the_official_one() -> None:
    """One Philox stream per pass: a permutation of the groups, then one puzzle per group, drawn one after the other."""
    seed = 5
    for epochs in (1, 3):
        loader = TrainLoader(DATASET, 8, seed=seed, epochs_per_pass=epochs)
        for passed in (1, 2):
            rng = np.random.Generator(np.random.Philox(seed=seed + passed))
            order = np.concatenate([rng.permutation(20) for _ in range(epochs)])
            rows = [int(rng.integers(3 * group, 3 * group + 3)) for group in order]
            batches = list(loader)
            assert len(batches) == 20 * epochs // 8  # the rest is dropped
            found = np.concatenate([b.arrays["inputs"] for b in batches])
            assert np.array_equal(found, DATASET.sets["all"].inputs[rows[: len(found)]])
            assert all(b.size == 8 and b.set_name == "all" and b.arrays["inputs"].dtype == np.int32 for b in batches)


def test_puzzles_of_many_examples_fill_batches() -> None:
    sizes = [3, 3, 2, 2, 5, 5, 1, 1]
    dataset = numbered(sizes)
    ends = np.cumsum([0, *sizes])
    seen: set[int] = set()
    for batch in islice(forever(TrainLoader(dataset, 4, seed=2)), 60):
        examples, owners = batch.arrays["inputs"][:, 0] - 1, batch.arrays["puzzle_identifiers"]
        assert len(examples) == 4 and len(set(examples.tolist())) == 4
        assert np.array_equal(np.searchsorted(ends, examples, side="right") - 1, owners)
        assert len({int(owner) // 2 for owner in owners}) == len(set(owners.tolist()))  # one puzzle per group
        seen |= set(examples.tolist())
    assert seen == set(range(ends[-1]))


def test_resuming_at_any_batch_is_exact() -> None:
    for dataset, augment in ((DATASET, TASK.augment), (numbered([3, 1, 2, 2, 5, 4, 1, 6]), None)):
        whole = list(islice(forever(TrainLoader(dataset, 5, seed=3, augment=augment)), 12))
        for cut in range(12):
            first = TrainLoader(dataset, 5, seed=3, augment=augment)
            stream = forever(first)
            for _ in range(cut):
                next(stream)
            state = first.state_dict()
            second = TrainLoader(dataset, 5, seed=3, augment=augment)
            second.load_state_dict(state)
            rest = list(islice(forever(second), 12 - cut))
            assert all(same(a, b) for a, b in zip(rest, whole[cut:], strict=True))


def test_a_position_belongs_to_its_settings() -> None:
    state = TrainLoader(DATASET, 5, seed=3).state_dict()
    with pytest.raises(InputError, match=r"state\['seed'\]=3 is not allowed: this loader has 4"):
        TrainLoader(DATASET, 5, seed=4).load_state_dict(state)
    with pytest.raises(InputError, match=r"state\['batch'\]=-1"):
        TrainLoader(DATASET, 5, seed=3).load_state_dict({**state, "batch": -1})


def test_ranks_share_a_batch() -> None:
    for dataset in (DATASET, numbered([3, 1, 2, 2, 5, 4, 1, 6])):
        single = list(TrainLoader(dataset, 6, seed=1))
        ranks = [list(TrainLoader(dataset, 6, seed=1, rank=r, world_size=3)) for r in range(3)]
        for whole, *parts in zip(single, *ranks, strict=True):
            for name, array in whole.arrays.items():
                assert np.array_equal(np.concatenate([p.arrays[name] for p in parts]), array)


def test_augmentation_streams_fresh_twins_and_ignored_labels_become_minus_100() -> None:
    loader = TrainLoader(DATASET, 20, seed=1, augment=TASK.augment)
    first, second = next(iter(loader)), next(iter(loader))
    for batch in (first, second):
        assert verify(batch.arrays["inputs"] - 1, batch.arrays["labels"] - 1).all()
    plain = next(iter(TrainLoader(DATASET, 20, seed=1)))
    assert not same(first, plain)
    assert np.array_equal((first.arrays["inputs"] > 1).sum(axis=1), (plain.arrays["inputs"] > 1).sum(axis=1))
    labels = np.where(PUZZLES > 0, 0, SOLUTIONS + 1)
    (batch, *_) = TestLoader(in_memory(Examples.of_single(PUZZLES + 1, labels), 6), 60)
    assert np.array_equal(batch.arrays["labels"] == -100, PUZZLES > 0)


def test_testing_covers_everything_once_and_pads() -> None:
    dataset = numbered([3, 1, 2, 2, 5, 4])
    for world in (1, 2):
        loaders = [list(TestLoader(dataset, 6, rank=r, world_size=world)) for r in range(world)]
        assert [batch.size for batch in loaders[0]] == [6, 6, 5]
        merged = [np.concatenate([b.arrays[n] for b in parts]) for parts in zip(*loaders, strict=True)
                  for n in ("inputs", "labels", "puzzle_identifiers")]  # fmt: skip
        inputs, labels, owners = (np.concatenate(merged[i::3]) for i in range(3))
        assert inputs[:17, 0].tolist() == list(range(1, 18)) == labels[:17, 0].tolist()
        assert owners[:17].tolist() == np.repeat(range(6), [3, 1, 2, 2, 5, 4]).tolist()
        assert (inputs[17:] == 0).all() and (labels[17:] == -100).all() and (owners[17:] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"batch_size": 0}, "batch_size=0"), ({"batch_size": 5, "world_size": 2}, "multiple of world_size=2"),
     ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank=2"), ({"batch_size": 21}, "a pass gives 20 examples"),
     ({"batch_size": 4, "seed": -1}, "seed=-1"), ({"batch_size": 4, "epochs_per_pass": 0}, "epochs_per_pass=0")],
)  # fmt: skip
def test_wrong_settings(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        next(iter(TrainLoader(DATASET, **{"seed": 0, **arguments})))
