"""FLOPs and bytes of the persistent kernel against counts made by hand."""

from __future__ import annotations

from math import ceil

import pytest
import torch

from rtm_kernels import program as programs
from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.program import Program
from rtm_kernels.recursion.head import HaltingHead
from rtm_kernels.recursion.persistent.cost import Cost, act_step_cost
from rtm_kernels.recursion.persistent.launch import TABLE
from rtm_kernels.recursion.persistent.pack import PackedWeights
from rtm_kernels.recursion.persistent.runner import PersistentRecursion

pytest.importorskip("triton")
HOPPER = TABLE[0]


def cost(program: Program, batch: int, norm_axis: str = "sequence", layers: int = 2, head: bool = False) -> Cost:
    with torch.device("meta"):
        stacks = {
            name: Stack([FusedTRMBlock(512, 97, norm_axis=norm_axis) for _ in range(layers)]) for name in program.stacks
        }
    weights = PackedWeights(stacks, torch.bfloat16)
    fixed = HaltingHead("fixed", 16) if head else None
    return act_step_cost(PersistentRecursion(program, weights, batch, row=HOPPER, head=fixed))


def test_the_official_act_step() -> None:
    got = cost(programs.trm(3, 6), 1, head=True)
    layer = 2 * 512 * (97 * 1024 + 512 * 97) + 2 * 97 * (512 * 3072 + 1536 * 512)
    assert got.flops == 42 * layer == 25_631_391_744
    assert got.phases == 3 * 42 + 2
    assert got.latent_bytes == 3 * 97 * 512 * 2
    parameters = 1024 * 97 + 97 * 512 + 3072 * 512 + 512 * 1536
    assert 2 * 2 * parameters <= got.weight_bytes <= 2 * 2 * parameters * 1.01
    assert got.flops < got.padded_flops < 1.4 * got.flops


def test_flops_grow_with_the_batch_and_weights_do_not() -> None:
    one, five = cost(programs.trm(1, 2), 1), cost(programs.trm(1, 2), 5)
    assert five.flops == 5 * one.flops and five.latent_bytes == 5 * one.latent_bytes
    assert five.weight_bytes == one.weight_bytes and five.phases == one.phases


def test_only_the_stacks_that_are_applied_count() -> None:
    assert cost(programs.rins(3), 1).weight_bytes == 2 * cost(programs.rtm(4), 1).weight_bytes


@pytest.mark.parametrize("norm_axis", ["sequence", "hidden"])
def test_bytes_of_one_layer_tile_by_tile(norm_axis: str) -> None:
    batch, b, hidden = 3, HOPPER.blocks, norm_axis == "hidden"
    moved = 0
    mixer_weights = 2 * (1024 * 104 + 97 * 512)
    for _ in range(batch):
        for _ in range(512 // b["MIX_D"]):
            moved += mixer_weights + 2 * 97 * b["MIX_D"] * 2 + 2 * 97 * b["MIX_D"] + 4 * 97 * hidden
    mixed_parts, rows = 4 * 97 * batch * (512 // b["MIX_D"]) * hidden, batch * 97
    for _ in range(1536 // b["UP_I"]):
        moved += rows * 512 * 2 + mixed_parts + ceil(rows / b["UP_M"]) * 2 * b["UP_I"] * 512 * 2
        moved += rows * b["UP_I"] * 2
    for _ in range(512 // b["DOWN_D"]):
        moved += rows * 1536 * 2 + mixed_parts + ceil(rows / b["DOWN_M"]) * b["DOWN_D"] * 1536 * 2
        moved += rows * b["DOWN_D"] * 2 * 2 + rows * 4
    moved += rows * (2 * 512 * 2 + 4 * (512 // b["DOWN_D"]))
    assert cost(programs.rtm(1), batch, norm_axis, layers=1).moved_bytes == moved
