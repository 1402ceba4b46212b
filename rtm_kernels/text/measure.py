"""Bits per byte of texts, and what they cost: useful FLOPs by the cost model of puzzles (`rtm_kernels.flops`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rtm_kernels.flops import act_step_flops, layer_flops
from rtm_kernels.text.config import SYMBOLS, TextConfig
from rtm_kernels.text.model import TextModel, Thought, symbol_loss
from rtm_kernels.text.packing import IGNORED, Packed, pack_documents
from rtm_kernels.text.state import WordState


@dataclass(frozen=True)
class Measured:
    """Bits per byte over all symbols of texts (bytes, word boundaries and text ends), words' mean rounds, FLOPs per
    byte as computed, and the number of bytes."""

    bits_per_byte: float
    rounds: float
    flops_per_byte: float
    bytes: int


def measure(
    model: TextModel, documents: Sequence[Sequence[bytes]], rounds: int | None = None, batch_size: int = 16
) -> Measured:
    """The measures of `model` on documents, each a sequence of words that ends with an empty one.

    A model whose words halt skips those that have: `rounds` is then their cap.
    """
    bits = flops = words = taken = 0.0
    for packed, thought, losses, _ in score(model, documents, rounds, batch_size):
        bits += losses.double().sum().item() / math.log(2)
        used = packed.first.numel() if thought.halting is None else thought.halting.steps.sum().item()
        size = packed.first.numel()
        flops += text_flops(model.config, size, packed.symbols.numel()) + used * round_flops(model.config, rounds)
        words, taken = words + size, taken + used
    size = sum(len(word) for document in documents for word in document)
    one = 1.0 if model.config.halts else model.rounds(rounds)
    return Measured(bits / size, one * taken / words, flops / size, size)


@torch.no_grad()
def score(
    model: TextModel, documents: Sequence[Sequence[bytes]], rounds: int | None = None, batch_size: int = 16
) -> Iterator[tuple[Packed, Thought, Tensor, Tensor]]:
    """The words of documents, cut into pieces of at most a row of training, `batch_size` pieces at a time: packed, what
    the backbone made of them, and of every symbol, in order, its loss and whether it is the likeliest."""
    length, row = model.config.backbone.seq_len, model.config.byte_row
    pieces = [words[i : i + length] for words in documents for i in range(0, len(words), length)]
    for i in range(0, len(pieces), batch_size):
        packed = pack_documents(pieces[i : i + batch_size], length, row).to(model.device)
        x = model.slots(model.read_words(packed), packed.first)
        if model.config.halts:  # words that have halted are skipped
            thought = WordState(model, len(x), rounds, x.shape[1]).extend(x, packed.segments)
        else:
            thought = model.think(x, packed.segments, rounds)
        logits, counted = model.write_words(thought.y, packed), packed.targets != IGNORED
        hits = (logits.argmax(-1) == packed.targets)[counted]
        yield packed, thought, symbol_loss(logits, packed.targets)[counted], hits


def text_flops(config: TextConfig, words: float, positions: float) -> float:
    """Forward FLOPs of encoder, decoder and output on so many byte positions, and of what joins them to the words."""
    layers = (config.encoder_layers + config.decoder_layers) * layer_flops(config.bytes_config) / config.byte_row
    joins = 4 * config.byte_size * config.backbone.hidden_size
    return positions * (layers + 2 * config.byte_size * SYMBOLS) + words * joins


def round_flops(config: TextConfig, rounds: int | None = None, train: bool = False) -> float:
    """FLOPs of one word's pass through the program, of `rounds` H cycles or one ACT step.

    Attention counts all words of a row, as for puzzles; `train`: with the gradients of the steps that have one.
    """
    program = config.program(config.rounds if rounds is None else rounds)
    return act_step_flops(config.backbone, train, program) / config.backbone.seq_len


def training_flops(config: TextConfig, words: float, positions: float, rounds: int) -> float:
    """FLOPs of training on so many words and byte positions with `rounds` rounds (of a model that halts: all)."""
    turns = rounds if config.halts else 1
    return 3 * text_flops(config, words, positions) + turns * words * round_flops(config, rounds, train=True)
