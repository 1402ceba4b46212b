"""Small models of every architecture, and batches for them."""

from __future__ import annotations

import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.model import RecursiveReasoner

SMALL = {
    "vocab_size": 7, "seq_len": 6, "hidden_size": 16, "num_heads": 2, "expansion": 1, "H_cycles": 2, "L_cycles": 2,
    "puzzle_emb_ndim": 16, "num_puzzle_identifiers": 5, "halt_max_steps": 4, "halt_exploration_prob": 0.0,
}  # fmt: skip
ARCHS = {
    "trm": {},
    "trm_singlez": {"arch": "trm_singlez", "mixer": "attention", "pos_encodings": "rope"},
    "trm_hier6": {"arch": "trm_hier6"},
    "hrm": {
        "arch": "hrm", "layers": {"H_level": 1, "L_level": 2}, "mixer": "attention", "pos_encodings": "rope",
        "halting": "q_continue", "q_continue_target": True,
    },
    "rsm": {"arch": "rsm", "layers": {"core": 2}, "tied_lm_head": True, "halting": "settle", "norm_axis": "hidden"},
    "rins": {"arch": "rins", "layers": {"A": 1, "B": 1}, "mixer": "attention", "causal": True, "halting": "fixed"},
    "rtm": {"arch": "rtm", "layers": {"core": 1}, "halting": "cumulative"},
    "transformer": {"arch": "transformer", "layers": {"H_level": 2}, "mixer": "attention", "halting": "q_continue"},
}  # fmt: skip


def make(arch: str = "trm", **changes) -> RecursiveReasoner:
    """A small model whose halting head and puzzle embeddings are not zero."""
    torch.manual_seed(0)
    model = RecursiveReasoner(ModelConfig(**SMALL | ARCHS[arch] | changes), impl="reference")
    if model.config.has_q_head:
        with torch.no_grad():
            model.q_head.weight.normal_()
            model.q_head.bias.zero_()
    if model.config.puzzle_emb_ndim:
        model.puzzle_emb.weights.normal_()
    return model.eval()


def batch_of(size: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "inputs": torch.randint(0, 7, (size, 6), generator=generator),
        "puzzle_identifiers": torch.randint(0, 5, (size,), generator=generator),
    }
