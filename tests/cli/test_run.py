from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rtm_kernels.cli.main import app
from rtm_kernels.errors import InputError
from rtm_kernels.train import official
from rtm_kernels.train.official import accelerating, flash_attn_func, missing, run_script
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
        carry, loss, _, _, _ = head((), carry=carry, batch=batch(config, step))
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
    monkeypatch.setitem(sys.modules, "adam_atan2", official)
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
