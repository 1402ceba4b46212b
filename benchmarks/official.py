"""The official structure at the sizes of a case: what people run today, and the baseline of every ratio."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.problem import Inputs, Problem
from rtm_kernels.config import ModelConfig
from tests.interop import official_structure as official

ARCHS = ("trm", "hrm")


def why_not(config: ModelConfig) -> str | None:
    """Why the stand-in for the official code does not cover `config`, or None."""
    return None if config.arch in ARCHS else f"no official structure for arch={config.arch}"


def inner(problem: Problem) -> Any:
    """The official inner model (embeddings, recursion, heads) with the problem's weights."""
    c = problem.config
    config = official.config_of(
        batch_size=problem.case.batch, vocab_size=c.vocab_size, seq_len=c.seq_len, hidden_size=c.hidden_size,
        expansion=c.expansion, num_heads=c.num_heads, H_cycles=c.H_cycles, L_cycles=c.L_cycles,
        L_layers=c.layers["L_level"], H_layers=c.layers.get("H_level", 0), mlp_t=c.mixer == "mlp",
        pos_encodings=c.pos_encodings, puzzle_emb_ndim=c.puzzle_emb_ndim, puzzle_emb_len=c.prefix_len,
        num_puzzle_identifiers=c.num_puzzle_identifiers, rms_norm_eps=c.rms_norm_eps, rope_theta=c.rope_theta,
        forward_dtype=c.forward_dtype,
    )  # fmt: skip
    model = official.Inner(config, hierarchical=c.arch == "hrm")
    if c.prefix_len == 0:  # the official code has no puzzle embeddings then
        del model.puzzle_emb
        model.input_embeddings = lambda tokens, _: math.sqrt(c.hidden_size) * model.embed_tokens(tokens.to(torch.int32))
    state = {k: v for k, v in problem.model.state_dict().items() if "embed_pos" not in k}
    model.load_state_dict(state)
    return model.to(problem.model.device).eval()


class HalfLayer(nn.Module):
    """One half of an official block on `h + (y + x)`, or the channel half on h."""

    def __init__(self, block: Any, task: str) -> None:
        super().__init__()
        self.block, self.task = block, task

    def forward(self, inputs: Inputs, cos_sin: tuple[Tensor, Tensor] | None) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        block, h = self.block, inputs["h"]
        if self.task == "channel":
            return official.rms_norm(h + block.mlp(h), block.norm_eps)
        h = h + (inputs["y"] + inputs["x"])
        if self.task == "block":
            return block(cos_sin, h)
        if not block.config.mlp_t:
            return official.rms_norm(h + block.self_attn(cos_sin=cos_sin, hidden_states=h), block.norm_eps)
        h = h.transpose(1, 2)
        return official.rms_norm(h + block.mlp_t(h), block.norm_eps).transpose(1, 2)


def precast(model: nn.Module, dtype: torch.dtype) -> None:
    """Store every parameter in `dtype`, so that the casts on use do nothing."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def act_step(model: Any, inputs: Inputs) -> tuple[Inputs, Tensor, Tensor]:
    """One ACT step: (inputs with the new latents, logits, q logits [B, 2])."""
    carry = SimpleNamespace(z_H=inputs["z_H"], z_L=inputs["z_L"])
    new, logits, (q_halt, q_continue) = model(carry, inputs)
    return {**inputs, "z_H": new.z_H, "z_L": new.z_L}, logits, torch.stack((q_halt, q_continue), -1)


def use_liger(model: nn.Module) -> None:
    """Let the SwiGLUs of `model` use Liger's fused silu(gate) * up."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    def forward(swiglu: Any, x: Tensor) -> Tensor:
        gate, up = swiglu.gate_up_proj(x).chunk(2, dim=-1)
        return swiglu.down_proj(LigerSiLUMulFunction.apply(gate.contiguous(), up.contiguous()))

    for module in model.modules():
        if isinstance(module, official.SwiGLU):
            module.forward = partial(forward, module)
