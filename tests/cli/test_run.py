from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from rtm_kernels.interop.scripts import accelerating, flash_attn_func, missing
from tests.cli.conftest import invoke, refused
from tests.interop import official_structure

SCRIPT = """
import json, sys
import torch, torch.distributed as dist
from adam_atan2 import AdamATan2
from flash_attn import flash_attn_func
from tests.interop.official_structure import LossHead, Reasoner, RSM, batch, config_of

if __name__ == "__main__":
    name, device, folder = sys.argv[1:]
    cuda = device == "cuda"
    if cuda:
        dist.init_process_group(backend="nccl", init_method=f"file://{folder}/store", rank=0, world_size=1)
        torch.cuda.set_device(0)
    torch.manual_seed(0)
    config = config_of(mlp_t=name != "att", pos_encodings="rope" if name == "att" else "none")
    with torch.device(device):
        head = LossHead(RSM(config) if name == "rsm" else Reasoner(config, hierarchical=name == "hrm")).train()
    optimizer = AdamATan2(head.parameters(), lr=0, betas=(0.9, 0.95), weight_decay=0.1)
    with torch.device(device):
        carry, losses = head.initial_carry({key: value.to(device) for key, value in batch(config).items()}), []
    for step in range(3 if cuda else 6):
        growth = dict(override_H_cycles=1 + step // 2, debug_structure=step == 0, alpha=0.5) if name == "rsm" else {}
        data = {key: value.cuda(non_blocking=True) if cuda else value for key, value in batch(config, step).items()}
        with torch.autocast(device_type=device, dtype=torch.bfloat16, enabled=cuda):
            cast = torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype
            carry, loss, _, _, _ = head((), carry=carry, batch=data, **growth)
        (loss / 4).backward()
        if cuda:
            dist.all_reduce(next(head.parameters()).grad)
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if cuda else 1e-3  # in bfloat16 two runs soon differ
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    devices = {str(loss.device)}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.save(head.state_dict(), f"{folder}/state.pt")
        state = torch.load(f"{folder}/state.pt", map_location="cuda:0")
        devices |= {str(t.device) for t in [*state.values(), torch.zeros(1, device="cuda"), loss.to("cuda:0")]}
        dist.destroy_process_group()
    json.dump([losses, str(cast), sorted(devices)], open(f"{folder}/out.json", "w"))
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "pretrain.py").write_text(SCRIPT)
    return str(tmp_path / "pretrain.py")


def rtm(*arguments: object):
    return invoke("run", *arguments)


@pytest.mark.skipif(len(missing()) < 2, reason="adam_atan2 or flash_attn is installed")
@pytest.mark.parametrize(
    ("name", "device", "stacks"),
    [
        ("mlp", "cpu", "Inner.L_level"),
        ("att", "cpu", "Inner.L_level"),
        ("hrm", "cpu", "Inner.L_level, Inner.H_level"),
        ("rsm", "cpu", "RSM.core"),
        ("hrm", "cuda", "Inner.L_level, Inner.H_level"),
        ("rsm", "cuda", "RSM.core"),
    ],
)
def test_a_script_trains_alike_with_fused_blocks(
    name: str, device: str, stacks: str, script: str, tmp_path: Path
) -> None:
    """One for CUDA as the official scripts do it: built within torch.device("cuda"), .cuda(), autocast and NCCL."""
    load, autocast, found = torch.load, torch.autocast, {}
    for way, options in {"plain": ["--plain"], "fused": []}.items():
        (tmp_path / way).mkdir()
        result = rtm(*options, *(["--cpu"] if device == "cuda" else []), script, name, device, tmp_path / way)
        assert result.exit_code == 0
        assert ("; CUDA by the CPU" in result.stderr.splitlines()[0]) == (device == "cuda")
        found[way], *rest = json.loads((tmp_path / way / "out.json").read_text())
        assert rest == ["torch.float32" if device == "cpu" else "torch.bfloat16", ["cpu"]]
    first, last = result.stderr.splitlines()
    assert "replaces adam_atan2 by AdamATan2 of rtm_kernels" in first and "flash_attn by flash_attn_func" in first
    assert last == f"rtm run: accelerated {stacks}"
    assert found["fused"] == pytest.approx(found["plain"], rel=1e-5 if device == "cpu" else 1e-2)
    assert len(set(found["plain"])) == len(found["plain"])
    assert "adam_atan2" not in sys.modules and sys.argv[0] != script
    assert torch.load is load and torch.autocast is autocast


def test_a_dry_run_only_says_what_it_would_do(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adam_atan2", official_structure)
    result = rtm("--dry-run", script, "mlp", tmp_path / "out.json")
    assert result.exit_code == 0 and "would replace" in result.stderr and "as they are built" in result.stderr
    assert "AdamATan2" not in result.stderr and not (tmp_path / "out.json").exists()
    monkeypatch.setenv("RANK", "1")  # one rank of torchrun speaks
    assert rtm("--dry-run", script, "mlp", tmp_path / "out.json").stderr == ""
    refused(rtm("/nowhere/pretrain.py"), "SCRIPT='/nowhere/pretrain.py'")


def test_a_stack_of_other_blocks_stays_as_it_is() -> None:
    class Odd(official_structure.ReasoningModule):
        def forward(self, hidden_states, input_injection, **kwargs):
            return 2 * super().forward(hidden_states, input_injection, **kwargs)

    report: list[str] = []
    parent = torch.nn.Module()
    with accelerating(report):
        parent.odd = Odd([official_structure.Block(official_structure.config_of())])
    assert type(parent.odd) is Odd and "Module.odd not (" in report[0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "heads", "kv_heads"), [(5, 4, 4), (3, 4, 2)])
def test_attention_stands_in_by_its_formula(causal: bool, queries: int, heads: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, queries, heads, 8)
    k, v = (torch.randn(2, 5, kv_heads, 8) for _ in "kv")
    wide_k, wide_v = (t.repeat_interleave(heads // kv_heads, dim=2) for t in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q, wide_k) * 8**-0.5
    if causal:
        seen = torch.arange(5)[None, :] <= torch.arange(queries)[:, None] + 5 - queries
        scores = scores.masked_fill(~seen, -torch.inf)
    expected = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), wide_v)
    torch.testing.assert_close(flash_attn_func(q, k, v, causal=causal), expected)
    with sdpa_kernel(SDPBackend.MATH):  # whose output lies otherwise in memory
        out = flash_attn_func(q=q, k=k, v=v, causal=causal)
    torch.testing.assert_close(out.view(2, queries, heads * 8), expected.flatten(2))
