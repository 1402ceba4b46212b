"""`solve_maze` works with the bundled models alone, for mazes of any side."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("mcp_types")

from rtm_kernels.agent.solvers import Solvers
from rtm_kernels.agent.tools import Tools
from rtm_kernels.data.maze import Maze, generate


def test_solve_maze_without_arguments() -> None:
    with Solvers() as solvers:
        for side in (6, 9):
            maze = Maze(side).render(Maze(side).decode(generate(1, seed=2, side=side)[0][0])).replace(" ", ".")
            found = asyncio.run(Tools(solvers).solve_maze(maze))
            assert found.structured_content["verified"] and found.structured_content["task"] == f"maze{side}"
            assert found.structured_content["path_steps"] == found.structured_content["shortest_steps"]
