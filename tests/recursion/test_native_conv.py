"""The C++ executor with a convolution in the channel half, against the reference: a grid of any side, and URM."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.engine.executor import EXECUTORS, executor
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion import native

GRID = ModelConfig(
    vocab_size=6, seq_len=49, arch="rtm", hidden_size=20, num_heads=1, layers={"core": 2}, H_cycles=2, L_cycles=1,
    mixer="none", channel_mixer="conv2d", conv_width=3, inner_size=24, halting="settle",
)  # fmt: skip
URM = ModelConfig(
    vocab_size=6, seq_len=21, arch="urm", hidden_size=32, num_heads=4, layers={"layers": 2}, H_cycles=2, L_cycles=2,
    mixer="attention", channel_mixer="conv", conv_width=2, pos_encodings="rope", puzzle_emb_ndim=32,
)  # fmt: skip
CASES = {
    "grid": GRID, "5x5": replace(GRID, conv_width=5, inner_size=40), "1x1": replace(GRID, conv_width=1, seq_len=25),
    "prefix": replace(GRID, puzzle_emb_len=3), "cell": replace(GRID, seq_len=1), "large": replace(GRID, seq_len=400),
    "wide": replace(GRID, inner_size=600, seq_len=16), "urm": URM, "urm3": replace(URM, conv_width=3),
}  # fmt: skip


@pytest.mark.skipif(native.why_not() is not None, reason="the extension is not compiled")
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name: str) -> None:
    torch.manual_seed(0)
    model = RecursiveReasoner(CASES[name]).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    batch = torch.randint(1, 6, (3, model.config.seq_len))
    x = model.embed(batch, torch.zeros(3, dtype=torch.int64)).detach()
    latents = {k: v.contiguous() for k, v in model.initial_latents(3).items()}
    expected = executor("reference", model).step(latents, x)
    for isa in native.isas():
        ours = native.NativeExecutor(model.program, {n: model.get_submodule(n) for n in model.program.stacks},
                                     native.HeadWeights(tokens=model.lm_head.weight, prefix=model.config.prefix_len),
                                     cos_sin=model.cos_sin(), isa=isa)  # fmt: skip
        got = ours.step(latents, x)
        torch.testing.assert_close(got.logits, expected.logits, rtol=1e-3, atol=1e-4)
        for key, value in expected.latents.items():
            torch.testing.assert_close(got.latents[key], value, rtol=1e-3, atol=1e-4)
        alone = ours.step({k: v[1:2] for k, v in latents.items()}, x[1:2])
        assert torch.equal(alone.logits[0], got.logits[1])


def test_what_it_lacks_is_said() -> None:
    plain = RecursiveReasoner(replace(GRID, channel_mixer="swiglu", conv_width=0))
    assert "no layers of mixer='none'" in str(EXECUTORS["native"].why_not(plain))
