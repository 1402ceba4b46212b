"""Small text models and random words."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.text.config import SYMBOLS, TextConfig
from rtm_kernels.text.model import TextModel
from rtm_kernels.text.packing import Packed, pack_documents

BACKBONE = ModelConfig(
    vocab_size=SYMBOLS, seq_len=12, arch="rins", hidden_size=16, num_heads=2, layers={"A": 1, "B": 1}, H_cycles=2,
    L_cycles=1, mixer="attention", causal=True, pos_encodings="rope", inner_size=24, halting="fixed", adapter_rank=2,
    forward_dtype="float64",
)  # fmt: skip
BACKBONES = {
    "rins": BACKBONE,
    "trm": replace(BACKBONE, arch="trm", layers={"L_level": 2}, adapter_rank=0, H_cycles=2, L_cycles=2, qk_norm=True),
    "rtm": replace(BACKBONE, arch="rtm", layers={"core": 2}, adapter_rank=0, H_cycles=1, halting="cumulative_token",
                   halt_max_steps=4),
    "trm that halts": replace(BACKBONE, arch="trm", layers={"L_level": 1}, adapter_rank=0, L_cycles=2,
                              halting="cumulative_token", halt_max_steps=3),
}  # fmt: skip


def text_model(kind: str, **changes: object) -> TextModel:
    """A model of random weights in float64, whose words halt after different numbers of rounds."""
    torch.manual_seed(0)
    options = {"byte_size": 16, "byte_heads": 2, "byte_inner": 24, "decoder_layers": 2, "max_bytes": 6, "byte_row": 11}
    model = TextModel(TextConfig(backbone=BACKBONES[kind], **(options | changes))).double().eval()  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if name.startswith("adapter") or name == "q_head.weight":
            torch.nn.init.normal_(parameter, std=0.6)
    return model


def draw_words(rng: random.Random, count: int, most: int = 6) -> list[bytes]:
    """Random words of 1 to `most` bytes."""
    return [bytes(rng.randrange(256) for _ in range(rng.randint(1, most))) for _ in range(count)]


def packed_of(model: TextModel, *documents: list[bytes]) -> Packed:
    """Documents in rows of the model."""
    return pack_documents(documents, model.config.backbone.seq_len, model.config.byte_row)
