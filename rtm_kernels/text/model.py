"""TextModel: byte encoder, a recursion over words, byte decoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtm_kernels.block import CosSin, Embedding, FusedTRMBlock, Linear, trunc_normal
from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import require
from rtm_kernels.model import add_recursion, stack_of
from rtm_kernels.names import init_name
from rtm_kernels.ops.attention_norm.reference import rope_tables, segment_bias
from rtm_kernels.ops.halting.mixture import HaltingState, halting_update, initial_state
from rtm_kernels.ops.halting.reference import halting_logits
from rtm_kernels.pretrained import Pretrained
from rtm_kernels.program import ADAPTER, Program
from rtm_kernels.recursion import reference
from rtm_kernels.text.config import BOUNDARY, SYMBOLS, TextConfig
from rtm_kernels.text.packing import Packed

Latents = dict[str, Tensor]


class Thought(NamedTuple):
    """What the backbone made of words: y [B, L, D], and where words halt, the state of their halting."""

    y: Tensor
    halting: HaltingState | None


class TextModel(Pretrained):
    """A byte-level language model with a recursion over words (HAT, arXiv 2501.10322).

    The encoder sees a word's bytes (all of them) and its state at the word's begin, projected, is the word's embedding.
    The backbone runs a program over the words of a document, causally. The decoder begins each word from the backbone's
    state of the word before it and sees the bytes so far. Weights stay in float32 and are cast to the backbone's
    `forward_dtype` on use.

    A word that halts keeps its state, and what attention reads of it, from its last round; the words after it go on
    reading that. Its output is the mean of its states, weighted by the halting mixture (arXiv 1603.08983).
    """

    config: TextConfig
    configs = TextConfig
    card = "language model over bytes, with a recursion over words,", "text", "rtm generate 'def '"

    def __init__(self, config: TextConfig, *, impl: str = "auto", attention: str = "auto") -> None:
        super().__init__()
        self.config, backbone, narrow = config, config.backbone, config.bytes_config
        self.narrow = narrow
        self.embed_bytes = Embedding(SYMBOLS, config.byte_size, std=config.byte_size**-0.5)
        self.encoder = stack_of(config.encoder_layers, narrow, impl, attention)
        self.decoder = stack_of(config.decoder_layers, replace(narrow, causal=True), impl, attention)
        self.up_proj = Linear(config.byte_size, backbone.hidden_size)
        self.start = nn.Parameter(trunc_normal(backbone.hidden_size, std=1.0))
        add_recursion(self, backbone, impl, attention)
        self.down_proj = Linear(backbone.hidden_size, config.byte_size)
        self.lm_head = Linear(config.byte_size, SYMBOLS)
        if config.halts:
            self.q_head = nn.Linear(backbone.hidden_size, 1, dtype=torch.float32)
            nn.init.zeros_(self.q_head.weight)
            nn.init.constant_(self.q_head.bias, -math.log(max(1, config.rounds - 1)))  # all rounds at first
        self._rope: dict[tuple[int, int, torch.device], CosSin] = {}

    def rope(self, length: int, config: ModelConfig) -> CosSin:
        """RoPE tables [length, head_dim] of layers of `config`, in float32 on the model's device."""
        key = (length, config.hidden_size // config.num_heads, self.device)
        if key not in self._rope:
            with torch.inference_mode(False):
                self._rope[key] = rope_tables(*key[:2], config.rope_theta, self.device)
        return self._rope[key]

    def embed(self, symbols: Tensor) -> Tensor:
        """Byte embeddings [..., byte_size], scaled by sqrt(byte_size)."""
        table = self.embed_bytes.embedding_weight.to(self.dtype)
        return math.sqrt(self.config.byte_size) * F.embedding(symbols, table)

    def read_words(self, packed: Packed) -> Tensor:
        """Embeddings [words, D] of the packed words, by their bytes alone."""
        cos_sin, bias = self.rope(packed.symbols.shape[1], self.narrow), segment_bias(packed.words, False, self.dtype)
        states = self.encoder(self.embed(packed.symbols), (), cos_sin, bias)
        return F.linear(states.flatten(0, 1)[packed.starts], self.up_proj.weight.to(states.dtype))

    def slots(self, words: Tensor, first: Tensor) -> Tensor:
        """The backbone's input x [B, L, D]: slot m holds word m - 1 of `words` [B * L, D], or the start."""
        before = F.pad(words[:-1], (0, 0, 1, 0)).view(*first.shape, -1)
        return torch.where(first[..., None], self.start.to(words.dtype), before)

    def think(self, x: Tensor, segments: Tensor, rounds: int | None = None) -> Thought:
        """The backbone on x [B, L, D]: `rounds` H cycles, or at most so many ACT steps of each word (default: as
        trained). Words of different `segments` [B, L] do not see each other."""
        config, rounds = self.config, self.rounds(rounds)
        program, cos_sin = config.program(rounds), self.rope(x.shape[1], config.backbone)
        bias = segment_bias(segments, True, x.dtype)
        inputs: dict[int, Tensor] = {}  # of each layer, in the last step that a word took part in

        def step(number: int, active: Tensor, latents: Latents) -> Latents:
            if not config.halts:
                stacks = {name: self.get_submodule(name) for name in program.stacks}
                apply = {name: partial(stack, cos_sin=cos_sin, bias=bias) for name, stack in stacks.items()}
                return reference.run(program, latents, x, apply)
            takes_part = active[..., None]

            def call(place: int, layer: FusedTRMBlock, h: Tensor) -> Tensor:
                inputs[place] = h = torch.where(takes_part, h, inputs[place]) if place in inputs else h
                return layer(h, (), cos_sin, bias)

            new = reference.run(program, latents, x, self.layer_by_layer(program, call))
            return {name: torch.where(takes_part, new[name], old) for name, old in latents.items()}

        return self.ponder(x, rounds, step)

    def ponder(self, x: Tensor, rounds: int, step: Callable[[int, Tensor, Latents], Latents]) -> Thought:
        """What ACT steps make of x [B, L, D]: one, or, where words halt, `rounds` of them.

        `step(number, active, latents)` gives the latents after a step in which the words `active` [B, L] take part; of
        the others they stay.
        """
        program, state = self.config.program(rounds), initial_state(x.shape[0], x.shape[1], x.device)
        latents = {name: self.get_buffer(init_name(name)).expand(x.shape) for name in program.carried}
        if not self.config.halts:
            return Thought(step(0, state.active, latents)[program.output], None)
        y, floor = torch.zeros_like(x), min(self.config.min_rounds, rounds)
        for number in range(rounds):
            latents = step(number, state.active, latents)
            q = halting_logits(latents[program.output], self.q_head.weight, self.q_head.bias, per_token=True)
            state = halting_update(state, "cumulative_token", q, max_steps=rounds, min_steps=floor)
            y = y + state.weight[..., None].to(y.dtype) * latents[program.output]
        return Thought(y, state)

    def layer_by_layer(
        self, program: Program, call: Callable[[int, FusedTRMBlock, Tensor], Tensor]
    ) -> dict[str, reference.ApplyStack]:
        """The stacks of `program` as an executor calls them: the n-th layer that it comes to is `call(n, layer, h)`."""
        numbers = itertools.count()

        def bound(stack: nn.Module, state: Tensor, injection: tuple[Tensor, ...]) -> Tensor:
            h = state + sum(injection[1:], injection[0]) if injection else state
            for layer in stack.layers:  # type: ignore[union-attr]
                h = call(next(numbers), layer, h)
            return h

        stacks = {name: self.get_submodule(name) for name in program.stacks}
        return {n: stack if n.startswith(ADAPTER) else partial(bound, stack) for n, stack in stacks.items()}

    def rounds(self, rounds: int | None) -> int:
        """`rounds`, or those of training. Errors: `InputError` below 1."""
        rounds = self.config.rounds if rounds is None else rounds
        require(rounds >= 1, "rounds", rounds, "at least 1")
        return rounds

    def begin_words(self, y: Tensor) -> Tensor:
        """The decoder's first input of words [..., byte_size], from the backbone's states y [..., D] before them."""
        boundary = self.embed(torch.full((), BOUNDARY, device=y.device))
        return boundary + F.linear(y, self.down_proj.weight.to(y.dtype))

    def write_words(self, y: Tensor, packed: Packed) -> Tensor:
        """Logits [R, W, SYMBOLS] of the symbol after each position, from the backbone's y [B, L, D]."""
        x = self.embed(packed.symbols)
        x = x.flatten(0, 1).index_copy(0, packed.starts, self.begin_words(y).flatten(0, 1)).view(x.shape)
        cos_sin, bias = self.rope(x.shape[1], self.narrow), segment_bias(packed.words, True, x.dtype)
        states = self.decoder(x, (), cos_sin, bias)
        return F.linear(states, self.lm_head.weight.to(states.dtype))

    def forward(self, packed: Packed, rounds: int | None = None) -> tuple[Tensor, Thought]:
        """Logits [R, W, SYMBOLS] of the packed text, and the backbone's states."""
        thought = self.think(self.slots(self.read_words(packed), packed.first), packed.segments, rounds)
        return self.write_words(thought.y, packed), thought


def symbol_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each symbol in nats, float32 of the shape of `targets` [..., W], 0 where they are ignored."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)
