"""Shared by every test: Triton interprets where there is no GPU, examples are drawn alike in every run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.interpreter import prepare

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when triton is first imported
    prepare()

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

if importlib.util.find_spec("hypothesis") is not None:  # a machine with a GPU may do without
    import hypothesis

    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
    hypothesis.settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many damaged inputs `tests/hostile` tries per target, and which."""
    parser.addoption("--hostile", type=int, default=100, help="damaged inputs per target of tests/hostile")
    parser.addoption("--hostile-seed", type=int, default=0, help="their seed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, saying that it stays unproven."""
    if HAS_GPU:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: unproven on this machine"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run in this session: the GPU, or the CPU through Triton's interpreter."""
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the recorded outputs of the published implementations."""
    return ROOT / "tests" / "golden"


@pytest.fixture
def cells(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Say how many cells of the table the test has run, when it is more than one."""
    return lambda n: request.node.user_properties.append(("cells", n))
