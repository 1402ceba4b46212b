from __future__ import annotations

import numpy as np

from rtm_kernels.agent import arc


def grid(text: str) -> np.ndarray:
    return arc.grid_of(text)


def test_augmentations_begin_with_the_identity_and_invert() -> None:
    ways = arc.augmentations(12, seed=3)
    board = grid("0123/4567/8900")
    assert (ways[0].apply(board) == board).all() and len({w.name("p") for w in ways}) == 12
    assert all((way.invert(way.apply(board)) == board).all() for way in ways)
    assert [w.name("p") for w in arc.augmentations(5, seed=3)] == [w.name("p") for w in ways[:5]]


def test_faults_by_size_and_colour() -> None:
    same = [(grid("12/34"), grid("21/43")), (grid("1"), grid("5"))]
    assert arc.faults(grid("12"), grid("34"), same) == []
    assert arc.faults(grid("12"), grid("345"), same) == ["1 x 2, and by the demonstrations 1 x 3"]
    assert arc.faults(grid("98"), grid("38"), same) == ["colours 9 are in no demonstrated output and not in the input"]
    fixed = [(grid("12/34"), grid("7")), (grid("1"), grid("5"))]
    assert arc.faults(grid("77"), grid("1234"), fixed) == ["1 x 2, and by the demonstrations 1 x 1"]
    free = [(grid("12/34"), grid("7")), (grid("1"), grid("55"))]
    assert arc.faults(grid("777"), grid("1234"), free) == []
    assert arc.faults(grid("9"), grid("1"), []) == []
