"""The ops as a repository of the hub's `kernels`, loaded from a folder by the real `kernels`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rtm_kernels.ops.swiglu_norm.api import swiglu_norm
from tests.interop import official_structure
from tests.packaging.hub_kernels import BACKENDS, VERSION, write

kernels: Any = pytest.importorskip(
    "kernels", reason="no kernels package here: that the hub's kernels loads the ops is unproven"
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("dist"))


def test_the_layout(repository: Path, tmp_path: Path) -> None:
    """As kernel-builder reads and writes it; every variant is the source, its namespace and its metadata."""
    from kernels._rust import Build, Metadata

    assert [str(b) for b in Build.open(repository).general.backends] == list(BACKENDS)
    again = write(tmp_path)
    source = {p.relative_to(repository / "torch-ext" / "rtm_kernels"): p.read_bytes()
              for p in (repository / "torch-ext" / "rtm_kernels").rglob("*.*")}  # fmt: skip
    for backend in BACKENDS:
        folder = repository / "build" / f"torch-{backend}"
        built = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*")}
        made = {Path("_ops.py"), Path("metadata.json")}
        assert built.keys() - source.keys() == made
        assert all(built[place] == content for place, content in source.items())
        metadata = Metadata.read_from_file(folder / "metadata.json")
        assert (str(metadata.name), metadata.version) == ("rtm-kernels", VERSION)
        assert metadata.python_depends == []
    files = {p.relative_to(repository): p.read_bytes() for p in repository.rglob("*.*") if p.is_file()}
    assert files == {p.relative_to(again): p.read_bytes() for p in again.rglob("*.*") if p.is_file()}
    assert not any(b"from rtm_kernels" in content or b"import rtm_kernels" in content for content in source.values())


def blocks(mixer: str) -> tuple[Any, str]:
    """An official block whose class may be mapped, and the name of its layer."""
    base, name = official_structure.Block, "TRMBlock"
    if mixer == "rsm":
        base, name = official_structure.RSMBlock, "RSMBlock"
    named = kernels.use_kernel_forward_from_hub(name)(type("Official", (base,), {"forward": base.forward}))
    torch.manual_seed(0)
    config = SimpleNamespace(
        mlp_t=mixer != "attention", rms_norm_eps=1e-5, seq_len=6, puzzle_emb_len=0, expansion=1, num_heads=2,
        hidden_size=16,
    )  # fmt: skip
    return named(config), name


@pytest.mark.parametrize("mixer", ["mlp", "attention", "rsm"])
def test_kernelize_maps_official_blocks(repository: Path, mixer: str) -> None:
    block, name = blocks(mixer)
    x, cos_sin = torch.randn(2, 6, 16, requires_grad=True), None
    if mixer == "attention":
        cos_sin = official_structure.RotaryEmbedding(8, 6, 10000.0)()
    official = block(cos_sin, x)
    official.square().sum().backward()
    expected, x.grad = x.grad, None
    layer = kernels.LocalLayerRepository(repository, layer_name=name)
    with kernels.use_kernel_mapping({name: {"cpu": layer}}):
        kernels.kernelize(block, mode=kernels.Mode.TRAINING, device="cpu", use_fallback=False)
    assert block.forward.__func__.__module__.startswith("_rtm_kernels_cpu_")
    fused = block(cos_sin, x)
    fused.square().sum().backward()
    torch.testing.assert_close(fused, official)
    torch.testing.assert_close(x.grad, expected)


def test_its_triton_kernels_run_beside_those_of_the_package(repository: Path) -> None:
    """In Triton's interpreter: each copy has registered its ops under its own name."""
    pytest.importorskip("triton", reason="no triton here: the kernels of the hub's copy are unproven")
    loaded = kernels.get_local_kernel(repository)
    torch.manual_seed(0)
    x, gate_up, down = torch.randn(3, 16), torch.randn(64, 16), torch.randn(16, 32)
    expected = loaded.swiglu_norm(x, gate_up, down, impl="reference")
    for op in (loaded.swiglu_norm, swiglu_norm):
        torch.testing.assert_close(op(x, gate_up, down, impl="triton"), expected, rtol=1e-4, atol=1e-5)
