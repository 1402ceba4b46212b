"""Memory that nobody has written never matters: not in outputs, not in scratch, not beyond a mask."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.cases import name_of, small_cases
from tests.cases.case import Case, run
from tests.proof.launching import ROOT, bits, every_launch, jit_functions, kernel_files, kernel_names
from tests.proof.tiles import tiles

pytest.importorskip("triton")
pytestmark = pytest.mark.proof("poison")


@contextmanager
def filled(on: bool) -> Iterator[None]:
    """Whether PyTorch fills new memory with NaN and the largest integers."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = on
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("case", small_cases(), ids=name_of)
def test_uninitialised_memory_is_never_read_and_always_written(case: Case) -> None:
    tensors = case.make(torch.Generator().manual_seed(3))
    results = []
    for on in (True, False):
        with tiles(32), filled(on):
            outputs, gradients = run(case, "triton", tensors)
        results.append([*map(bits, outputs), *map(bits, gradients.values())])
        for tensor in (*outputs, *gradients.values()):
            assert not tensor.is_floating_point() or not tensor.isnan().any()
    assert results[0] == results[1]


def test_the_cases_launch_every_kernel(cells: Callable[[int], None]) -> None:
    with tiles(32), every_launch(lambda launch: launch.run()) as seen:
        for case in small_cases():
            run(case, "triton", case.make(torch.Generator().manual_seed(3)))
    assert set(seen) == kernel_names()
    cells(len(kernel_names()))


def masked_loads_without_other(tree: ast.AST) -> Iterator[ast.Call]:
    """`tl.load` calls with a mask (the second argument) but no value for what is masked."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
            names = {keyword.arg for keyword in node.keywords}
            if ("mask" in names or len(node.args) > 1) and "other" not in names and len(node.args) < 3:
                yield node


@pytest.mark.parametrize("path", kernel_files(), ids=lambda p: str(p.relative_to(ROOT / "rtm_kernels")))
def test_every_masked_load_says_what_the_masked_elements_are(path: Path, cells: Callable[[int], None]) -> None:
    functions = list(jit_functions(path))
    bad = [f"{path.name}:{node.lineno}" for f in functions for node in masked_loads_without_other(f)]
    assert not bad
    cells(sum(ast.unparse(n.func) == "tl.load" for f in functions for n in ast.walk(f) if isinstance(n, ast.Call)))
