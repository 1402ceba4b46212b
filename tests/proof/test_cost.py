"""What executed compiled code says of FLOPs, bytes and special functions is what the kernels compute, by formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rtm_kernels.config import ModelConfig
from rtm_kernels.flops import act_step_flops
from tests.proof.launching import process

pytestmark = pytest.mark.proof("cost")

B, L, D, FM, F = 768, 97, 512, 512, 1536
"""Batch, and the official Sudoku sizes: tokens, channels, inner widths of the mixer and of the channel MLP."""
LATENT, ACT = 2 * B * L * D, 2 * B * L * F
MIXER, CHANNEL = 2 * FM * (2 * 112 + L), 2 * 3 * F * D
"""Bytes of latents, hidden activations and weights; rows of mixer weights are padded to 112."""
TILED, ROWS = B * D * FM * 128, B * L
"""Products of a mixer weight with its rows on tiles of 128, and rows of the channel half."""
EXPECTED = {  # op, kernel -> FLOPs, special functions, bytes of HBM
    ("mixer +2", "fused"): (6 * TILED, 2 * B * D * FM, 4 * LATENT + MIXER + 4 * B * D),
    ("mixer +0", "fused"): (6 * TILED, 2 * B * D * FM, 2 * LATENT + MIXER + 4 * B * D),
    ("channel", "gate_up"): (4 * ROWS * D * F, 2 * ROWS * F, LATENT + ACT + CHANNEL * 2 // 3),
    ("channel", "gemm"): (2 * ROWS * D * F, 0, ACT + 2 * LATENT + CHANNEL // 3),
    ("channel", "norm"): (0, 2 * ROWS, 2 * LATENT + 4 * ROWS),
    ("mixer backward +2", "inject"): (0, 0, 4 * LATENT),
    ("mixer backward +2", "norm_backward"): (0, 0, 3 * LATENT + 4 * B * D),
    ("mixer backward +2", "fused_input_grad"): (10 * TILED, 2 * B * D * FM, 3 * LATENT + MIXER + 6 * B * D * FM),
    ("channel backward", "norm_backward"): (0, 0, 3 * LATENT + 4 * ROWS),
    ("channel backward", "hidden_backward"): (6 * ROWS * D * F, 2 * ROWS * F, 2 * LATENT + 3 * ACT + CHANNEL),
    ("channel backward", "gemm"): (4 * ROWS * D * F, 0, 2 * LATENT + 2 * ACT + CHANNEL * 2 // 3),
}
ROW = 2e7
"""Special functions that the formulas leave out: a few per row, in each thread that holds a part of it."""


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """Of a training step."""
    found: list[dict[str, Any]] = json.loads(process("-m", "benchmarks.roofline", "--json", interpret=False))
    return found


def test_compiled_code_executes_and_moves_what_the_formulas_say(
    lines: list[dict[str, Any]], cells: Callable[[int], None]
) -> None:
    by_name = {(line["op"], line["kernel"]): line for line in lines}
    for name, (flops, special, size) in EXPECTED.items():
        line = by_name[name]
        assert line["flops"] == pytest.approx(flops), line
        assert special <= line["special"] < special + ROW, line
        assert line["bytes"] == size, line
    cells(len(EXPECTED))


def test_no_launch_is_modelled_below_a_limit(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert line["milliseconds"] >= 0.999 * max(line.get("limits", {"HBM": line["bytes"] / 4.3e9}).values()), line


def test_products_of_an_act_step_are_the_useful_ones_and_those_of_tiles(lines: list[dict[str, Any]]) -> None:
    config = ModelConfig(vocab_size=11, seq_len=81, puzzle_emb_ndim=D, puzzle_emb_len=16)
    assert (config.latent_len, config.inner_width) == (L, F)
    forward = [line for line in lines if line["op"].split()[0] in ("mixer", "channel") and "backward" not in line["op"]]
    executed = sum(line["calls"] * line["flops"] for line in forward)
    useful = B * act_step_flops(config)
    assert useful < executed < 1.1 * useful
