"""One ACT step outside this package: torch.export gives the same bits, ONNX Runtime the same answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.interop import export as exporting
from rtm_kernels.interop.export import ActStep, export
from rtm_kernels.model import RecursiveReasoner
from tests.cli.conftest import invoke, refused
from tests.small_models import batch_of, make

SHALLOW: dict[str, Any] = {"H_cycles": 1, "L_cycles": 1}
MODELS = {
    "trm": SHALLOW | {"mixer": "mlp", "puzzle_emb_ndim": 0},
    "hrm": SHALLOW,
    "rins": SHALLOW | {"forward_dtype": "bfloat16"},
}
LOCAL: dict[str, Any] = {
    "seq_len": 9, "mixer": "none", "channel_mixer": "conv2d", "conv_width": 3, "puzzle_emb_ndim": 0,
    "puzzle_emb_len": 0,
}  # fmt: skip


def model_of(name: str) -> RecursiveReasoner:
    return make("trm", **SHALLOW, **LOCAL) if name == "local" else make(name, **MODELS[name])


def steps(model: RecursiveReasoner, run: Any, size: int) -> None:
    """Two ACT steps by `run` and by the model: the second goes on from the first, but for a sample that starts anew."""
    plain = ActStep(model).model
    names = list(ActStep(model).example())
    torch.manual_seed(1)
    batch = batch_of(size, seed=size) | {"inputs": torch.randint(0, 7, (size, model.config.seq_len))}
    fresh = torch.ones(size, dtype=torch.bool)
    latents: dict[str, Tensor] = {
        n: torch.full((size, plain.config.latent_len, 16), 9.0) for n in plain.program.carried
    }
    for _ in range(2):
        given = {**batch, "fresh": fresh, **latents}
        found = run({name: given[name] for name in names})
        start = plain.initial_latents(size)
        mixed = {name: torch.where(fresh.view(-1, 1, 1), start[name], value) for name, value in latents.items()}
        with torch.no_grad():
            values, logits, q = plain.act_step(mixed, plain.embed(batch["inputs"], batch["puzzle_identifiers"]))
        torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-5)
        assert ("q" in found) == (q is not None)
        if q is not None:
            torch.testing.assert_close(found["q"], q, rtol=1e-4, atol=1e-5)
        latents = {name: found[f"next_{name}"] for name in latents}
        torch.testing.assert_close(latents, {name: values[name] for name in latents}, rtol=1e-4, atol=1e-5)
        fresh = torch.arange(size) == 1


@pytest.mark.parametrize("name", ["trm", "hrm"])
def test_a_program_of_torch_export_gives_the_bits_of_the_model(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    names = export(model, tmp_path / "step.pt2")
    program = torch.export.load(tmp_path / "step.pt2").module()
    step = ActStep(model)

    def run(given: dict[str, Tensor]) -> dict[str, Tensor]:
        assert list(given) == names["inputs"]
        found, expected = program(given), step(given)
        assert list(found) == names["outputs"] and all(torch.equal(found[key], expected[key]) for key in expected)
        return found

    for size in (1, 3):
        steps(model, run, size)
    assert os.listdir(tmp_path) == ["step.pt2"]


@pytest.mark.parametrize("name", [*MODELS, "local"])
def test_onnx_runtime_gives_the_answers_of_the_model(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="no onnx here: the ONNX export is unproven")
    runtime = pytest.importorskip("onnxruntime", reason="no onnxruntime here: the ONNX export is unproven")
    pytest.importorskip("onnxscript", reason="no onnxscript here: the ONNX export is unproven")
    model, path = model_of(name), tmp_path / "step.onnx"
    names = export(model, path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", exporting.OPSET)]
    assert json.loads(proto.metadata_props[0].value) == json.loads(model.config.to_json())
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == names["inputs"]

    def run(given: dict[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(names["outputs"], {key: value.numpy() for key, value in given.items()})
        return {key: torch.from_numpy(np.asarray(value)) for key, value in zip(names["outputs"], found, strict=True)}

    for size in (1, 3):
        steps(model, run, size)


def test_what_cannot_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("trm")
    with pytest.raises(InputError, match=r"path='.*step\.bin' is not allowed: a name that ends with \.onnx or \.pt2"):
        export(model, tmp_path / "step.bin")
    with pytest.raises(InputError, match="a file in a folder that exists"):
        export(model, tmp_path / "nowhere" / "step.pt2")
    eqr = RecursiveReasoner(ModelConfig(arch="eqr", vocab_size=7, seq_len=6, hidden_size=16, num_heads=2, noise=0.1))
    with pytest.raises(InputError, match=r"arch='eqr' is not allowed: one that draws no random numbers"):
        export(eqr, tmp_path / "step.pt2")
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"ONNX needs onnx and onnxscript: pip install 'rtm-kernels\[onnx\]'"):
        export(model, tmp_path / "step.onnx")
    assert os.listdir(tmp_path) == []


def test_rtm_export(tmp_path: Path) -> None:
    folder = model_of("trm").save_pretrained(tmp_path / "model")
    out = tmp_path / "step.pt2"
    found = json.loads(invoke("export", folder, out, "--json").stdout)
    assert found["bytes"] == out.stat().st_size and found["outputs"] == ["logits", "q", "next_z_L", "next_z_H"]
    refused(invoke("export", folder, out), "it exists (--overwrite replaces it)")
    assert "next_z_H" in invoke("export", folder, out, "--overwrite").stdout
