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
import torch
from adam_atan2 import AdamATan2
from flash_attn import flash_attn_func
from tests.interop.official_structure import LossHead, Reasoner, RSM, batch, config_of

if __name__ == "__main__":
    name, folder = sys.argv[1:]
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
    json.dump(losses, open(f"{folder}/out.json", "w"))
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "pretrain.py").write_text(SCRIPT)
    return str(tmp_path / "pretrain.py")


def rtm(*arguments: object):
    return invoke("run", *arguments)


@pytest.mark.skipif(len(missing()) < 2, reason="adam_atan2 or flash_attn is installed")
@pytest.mark.parametrize(
    ("name", "stacks"),
    [
        ("mlp", "Inner.L_level"),
        ("att", "Inner.L_level"),
        ("hrm", "Inner.L_level, Inner.H_level"),
        ("rsm", "RSM.core"),
    ],
)
def test_a_script_trains_alike_with_fused_blocks(name: str, stacks: str, script: str, tmp_path: Path) -> None:
    found = {}
    for way, options in {"plain": ["--plain"], "fused": []}.items():
        (tmp_path / way).mkdir()
        result = rtm(*options, script, name, tmp_path / way)
        assert result.exit_code == 0
        found[way] = json.loads((tmp_path / way / "out.json").read_text())
    first, last = result.stderr.splitlines()
    assert "replaces adam_atan2 by AdamATan2 of rtm_kernels" in first and "flash_attn by flash_attn_func" in first
    assert last == f"rtm run: accelerated {stacks}"
    assert found["fused"] == pytest.approx(found["plain"], rel=1e-5)
    assert len(set(found["plain"])) == len(found["plain"])
    assert "adam_atan2" not in sys.modules and sys.argv[0] != script


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
def test_attention_stands_in_by_its_formula(causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 4, 8)
    scores = torch.einsum("bshd,bthd->bhst", q, k) * 8**-0.5
    if causal:
        scores = scores.masked_fill(~torch.ones(5, 5).tril().bool(), -torch.inf)
    expected = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v)
    torch.testing.assert_close(flash_attn_func(q, k, v, causal=causal), expected)
    with sdpa_kernel(SDPBackend.MATH):  # whose output lies otherwise in memory
        out = flash_attn_func(q=q, k=k, v=v, causal=causal)
    torch.testing.assert_close(out.view(2, 5, 32), expected.flatten(2))
