"""Conformance of URM and EqR with recorded outputs of the published code, where the records are here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rtm_kernels import interop
from rtm_kernels.carry import Carry
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.program import SEED
from tests.test_golden import GRADIENTS, VALUES, Golden, assert_agrees, assert_gradients, eval_step

FOLDERS = [parent / "shared" / "golden" for parent in Path(__file__).resolve().parents]
FOLDER = next((folder for folder in FOLDERS if folder.is_dir()), Path("nowhere"))
NAMES = sorted(path.stem for kind in ("urm", "eqr") for path in FOLDER.glob(f"{kind}*.safetensors"))
pytestmark = pytest.mark.skipif(not NAMES, reason="the records are not here")


def load(name: str) -> Golden:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    return Golden(name, metadata["arch"], json.loads(metadata["config"]), tensors)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("step", range(3))
def test_eval_steps(name: str, step: int) -> None:
    golden = load(name)
    model = golden.model()
    before = golden.part(f"eval.step{step - 1}.") if step else golden.part("init.")
    latents = {key: before[key] for key in model.program.carried if key in before} or None
    got, recorded = eval_step(model, golden.part("eval.batch."), latents), golden.part(f"eval.step{step}.")
    assert set(got) == set(recorded)
    for key, value in recorded.items():
        assert_agrees(got[key], value, VALUES, False, key)


@pytest.mark.parametrize("name", NAMES)
def test_training_step(name: str) -> None:
    golden = load(name)
    model = golden.model()
    head, batch, init = interop.official_loss_head(model).train(), golden.part("train.batch."), golden.part("init.")
    carry = head.initial_carry(batch)
    if init:
        carry = Carry(init, carry.steps, torch.zeros_like(carry.halted), dict(batch))
    carry, loss, *_ = head([], carry=carry, batch=batch)
    loss.backward()
    assert torch.equal(carry.halted, golden.tensors["train.halted"])
    assert_agrees(loss.detach(), golden.tensors["train.loss"], VALUES, False, "loss")
    assert_gradients(model, golden.part("train.grad."), GRADIENTS / 10, False)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_back_out(name: str) -> None:
    golden = load(name)
    model = golden.model()
    arch, config, state = interop.to_official(model, batch_size=golden.config["batch_size"])
    recorded = golden.part("state.")
    assert arch == golden.arch and state.keys() == recorded.keys()
    assert all(torch.equal(state[key], value) for key, value in recorded.items())
    shared = [key for key, value in golden.config.items() if config.get(key) is not None and value is not None]
    assert [config[key] for key in shared] == pytest.approx([golden.config[key] for key in shared])
    assert interop.from_official(arch, config, state).config == model.config


def test_noise_and_first_latents_do_not_depend_on_the_batch() -> None:
    golden = load("eqr_mlp")
    model = golden.model()
    noisy = interop.from_official("eqr", golden.config | {"noise_scale": 0.3}, golden.part("state."))
    init, x = golden.part("init."), noisy.embed(golden.part("eval.batch.")["inputs"])
    seeds = torch.arange(len(x))

    def z_H(rows: slice, seeds: torch.Tensor = seeds, net: RecursiveReasoner = noisy) -> torch.Tensor:
        with torch.no_grad():
            return net.act_step({**{k: v[rows] for k, v in init.items()}, SEED: seeds[rows]}, x[rows])[0]["z_H"]

    whole = z_H(slice(None))
    torch.testing.assert_close(z_H(slice(2, 3))[0], whole[2], rtol=1e-3, atol=1e-3)
    away = (whole - z_H(slice(None), net=model)).std()
    assert 0.1 < away < 3 and noisy.config == dataclasses.replace(model.config, noise=0.3)
    assert (z_H(slice(None), seeds + 7) - whole).std() > 0.1
    first, second = (model.initial_latents(4)["z_H"] for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
