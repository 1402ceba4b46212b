"""What is captured never copies from the host: checked on the meta device, where a tensor of the CPU stands out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rtm_kernels import program as programs
from rtm_kernels.block import FusedTRMBlock, Stack
from rtm_kernels.engine.executor import executor
from rtm_kernels.engine.slots import Slots
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.ops.halting.policy import HaltingPolicy
from rtm_kernels.recursion.persistent import runner
from rtm_kernels.recursion.persistent.pack import PackedLayers
from tests.small_models import ARCHS, make

META = torch.device("meta")


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device does not know of autocast."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


class OneDevice(TorchDispatchMode):
    """Refuses operators that meet a tensor of the CPU and one of the device, numbers that PyTorch wraps left out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        results = func(*args, **(kwargs or {}))
        tensors += [t for t in tree_leaves(results) if isinstance(t, Tensor)]
        copies = str(func).startswith(("aten.copy_", "aten._to_copy"))
        host = [t for t in tensors if t.device.type == "cpu" and (t.dim() > 0 or copies)]
        if host and any(t.device == META for t in tensors):
            raise AssertionError(f"{func} copies {tuple(host[0].shape)} from the host")
        return results


@pytest.mark.parametrize("arch", ARCHS)
def test_an_act_step_with_embeddings_and_heads(arch: str) -> None:
    model: RecursiveReasoner = make(arch).to(META)
    model.cos_sin()
    inputs = torch.zeros(3, 6, dtype=torch.int32, device=META)
    with torch.no_grad(), OneDevice():
        model.act_step(model.initial_latents(3), model.embed(inputs, inputs[:, 0]))


@pytest.mark.parametrize("kind", ["guesses", "noise"])
@pytest.mark.parametrize("policy", ["q+settle=2", "cumulative+cumulative_token", "fixed", "verified"])
def test_a_step_of_the_slots(policy: str, kind: str) -> None:
    model: RecursiveReasoner = make().to(META)
    chosen = HaltingPolicy.parse(policy)
    slots = Slots(model, executor("reference", model), chosen, lambda x, y: x[:, 0] > 0, 3, kind=kind)
    model.embed(torch.zeros(1, 6, dtype=torch.int32, device=META), torch.zeros(1, dtype=torch.int32, device=META))
    with torch.no_grad(), OneDevice():
        slots._observe(2)
        if chosen.on == ("verified",):
            slots._decide(2)


def test_loading_the_persistent_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    launched = []
    monkeypatch.setattr(runner, "launch", lambda kernel, row, *args, **constants: launched.append(row.kernel))
    program = programs.trm(1, 1)
    with META:
        weights = PackedLayers({"L_level": Stack([FusedTRMBlock(24, 9)])}, torch.float32)
        latents, x = {name: torch.empty(3, 9, 24) for name in program.carried}, torch.empty(3, 9, 24)
        head = (torch.empty(2, 24), torch.empty(2))
    recursion = runner.PersistentRecursion(program, weights, head=head)
    with OneDevice():
        loaded = recursion.load(latents, x)
        loaded.step()
        values = loaded.values(latents)
    assert launched == [runner.KERNEL] and all(len(t) == 3 for t in values.values())
