from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from typer.testing import CliRunner

from rtm_kernels.cli.main import app
from rtm_kernels.errors import InputError
from rtm_kernels.interop.scripts import accelerating, flash_attn_func, missing, run_script
from tests.interop import official_structure

SCRIPT = """
import json, sys
import torch
from adam_atan2 import AdamATan2
from flash_attn import flash_attn_func
from tests.interop.official_structure import LossHead, Reasoner, RSM, batch, config_of

if __name__ == "__main__":
    name, out = sys.argv[1:]
    torch.manual_seed(0)
    config = config_of(mlp_t=name != "att", pos_encodings="rope" if name == "att" else "none")
    head = LossHead(RSM(config) if name == "rsm" else Reasoner(config, hierarchical=name == "hrm")).train()
    optimizer = AdamATan2(head.parameters(), lr=0, betas=(0.9, 0.95), weight_decay=0.1)
    carry, losses = head.initial_carry(batch(config)), []
    for step in range(6):
        growth = dict(override_H_cycles=1 + step // 2, debug_structure=step == 0, alpha=0.5) if name == "rsm" else {}
        carry, loss, _, _, _ = head((), carry=carry, batch=batch(config, step), **growth)
        (loss / 4).backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    json.dump(losses, open(out, "w"))
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "pretrain.py").write_text(SCRIPT)
    return str(tmp_path / "pretrain.py")


def rtm(*arguments: str):
    return CliRunner().invoke(app, ["run", *arguments], catch_exceptions=False)


@pytest.mark.skipif(len(missing()) < 2, reason="adam_atan2 or flash_attn is installed")
@pytest.mark.parametrize(
    ("name", "stacks"),
    [("mlp", "Inner.L_level"), ("att", "Inner.L_level"), ("hrm", "Inner.L_level, Inner.H_level"), ("rsm", "RSM.core")],
)
def test_a_script_trains_alike_with_fused_blocks(name: str, stacks: str, script: str, tmp_path: Path) -> None:
    plain, fused = tmp_path / "plain.json", tmp_path / "fused.json"
    assert rtm("--plain", script, name, str(plain)).exit_code == 0
    result = rtm(script, name, str(fused))
    assert result.exit_code == 0
    first, last = result.stderr.splitlines()
    assert "replaces adam_atan2 by AdamATan2 of rtm_kernels" in first and "flash_attn by flash_attn_func" in first
    assert last == f"rtm run: accelerated {stacks}"
    a, b = json.loads(plain.read_text()), json.loads(fused.read_text())
    assert a == pytest.approx(b, rel=1e-5) and len(set(a)) == 6
    assert "adam_atan2" not in sys.modules and sys.argv[0] != script


def test_a_dry_run_only_says_what_it_would_do(script: str, tmp_path: Path) -> None:
    result = rtm("--dry-run", script, "mlp", str(tmp_path / "out.json"))
    assert result.exit_code == 0 and "would replace" in result.stderr and "as they are built" in result.stderr
    assert not (tmp_path / "out.json").exists()


def test_a_script_that_is_not_there_is_refused() -> None:
    result = rtm("/nowhere/pretrain.py")
    assert result.exit_code == 2 and "SCRIPT='/nowhere/pretrain.py'" in result.stderr
    with pytest.raises(InputError):
        run_script(Path("/nowhere"), [])


def test_installed_packages_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adam_atan2", official_structure)
    assert "adam_atan2" not in missing()


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


CUDA_SCRIPT = """
import json, sys
import torch, torch.distributed as dist
from adam_atan2 import AdamATan2
from tests.interop.official_structure import LossHead, Reasoner, RSM, batch, config_of

if __name__ == "__main__":
    name, folder = sys.argv[1:]
    dist.init_process_group(backend="nccl", init_method=f"file://{folder}/store", rank=0, world_size=1)
    torch.cuda.set_device(0)
    torch.manual_seed(0)
    config = config_of(mlp_t=True, pos_encodings="none")
    with torch.device("cuda"):
        head = LossHead(RSM(config) if name == "rsm" else Reasoner(config, hierarchical=True)).train()
    optimizer = AdamATan2(head.parameters(), lr=0, betas=(0.8, 0.9), weight_decay=0.1)
    with torch.device("cuda"):
        carry = head.initial_carry({key: value.cuda() for key, value in batch(config).items()})
    for step in range(3):
        data = {key: value.cuda(non_blocking=True) for key, value in batch(config, step).items()}
        with torch.autocast(device_type="cuda", dtype=torch.bfloat16, enabled=True):
            cast = torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype
            carry, loss, _, _, _ = head((), carry=carry, batch=data)
        loss.backward()
        dist.all_reduce(next(head.parameters()).grad)
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.reset_peak_memory_stats()
    torch.save(head.state_dict(), f"{folder}/state.pt")
    state = torch.load(f"{folder}/state.pt", map_location="cuda:0")
    devices = {str(t.device) for t in [*state.values(), loss, torch.zeros(1, device="cuda"), loss.to("cuda:0")]}
    dist.destroy_process_group()
    json.dump([loss.item(), str(cast), sorted(devices)], open(f"{folder}/out.json", "w"))
"""


@pytest.mark.parametrize("name", ["hrm", "rsm"])
def test_a_script_for_cuda_runs_on_the_cpu_when_asked_to(name: str, tmp_path: Path) -> None:
    """As the official scripts do it: models built within torch.device("cuda"), .cuda(), autocast and NCCL."""
    (tmp_path / "pretrain.py").write_text(CUDA_SCRIPT)
    load, autocast, found = torch.load, torch.autocast, {}
    for way, options in {"plain": ["--plain"], "fused": []}.items():
        folder = tmp_path / way
        folder.mkdir()
        result = rtm("--cpu", *options, str(tmp_path / "pretrain.py"), name, str(folder))
        assert result.exit_code == 0 and "; CUDA by the CPU" in result.stderr.splitlines()[0]
        found[way] = json.loads((folder / "out.json").read_text())
    assert found["plain"][1:] == found["fused"][1:] == ["torch.bfloat16", ["cpu"]]
    assert found["fused"][0] == pytest.approx(found["plain"][0], rel=1e-2)
    assert torch.load is load and torch.autocast is autocast


def test_one_rank_of_many_speaks(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    result = rtm("--dry-run", script, "mlp", str(tmp_path / "out.json"))
    assert result.exit_code == 0 and result.stderr == ""
