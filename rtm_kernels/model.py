"""RecursiveReasoner: embeddings, a program over a few latents, heads, and an explicit carry between ACT steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtm_kernels.block import (
    Adapter,
    Embedding,
    FlatStack,
    FusedTRMBlock,
    Linear,
    SparseEmbedding,
    Stack,
    rows,
    trunc_normal,
)
from rtm_kernels.carry import Batch, Carry, check_batch, check_carry, where_rows
from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import require
from rtm_kernels.names import drop_official_prefixes, init_name
from rtm_kernels.ops.attention_norm.reference import rope_tables, rope_tables_2d
from rtm_kernels.ops.halting.reference import halt_logit
from rtm_kernels.pretrained import Pretrained, shapes
from rtm_kernels.program import ADAPTER, SEED, Program
from rtm_kernels.ranges import ranged
from rtm_kernels.recursion import reference
from rtm_kernels.recursion.noise import truncated_normal

Run = Callable[[Program, Mapping[str, Tensor], Tensor], dict[str, Tensor]]
"""Runs a program: latents and x [B, L, D] to the new latents, as `recursion.reference.run` does."""


def stack_of(count: int, c: ModelConfig, impl: str, attention: str, kind: type[Stack | FlatStack] = Stack) -> Any:
    """`count` layers of a config."""
    return kind([
        FusedTRMBlock(
            c.hidden_size, c.latent_len, expansion=c.expansion, mixer=c.mixer, channel_mixer=c.channel_mixer,
            conv_width=c.conv_width, inner_size=c.inner_size, prefix_len=c.prefix_len, norm_axis=c.norm_axis,
            num_heads=c.num_heads, grid=c.pos_encodings == "rope2d", causal=c.causal, qk_norm=c.qk_norm,
            eps=c.rms_norm_eps, impl=impl, attention=attention,
        )
        for _ in range(count)
    ])  # fmt: skip


def add_recursion(module: nn.Module, config: ModelConfig, impl: str, attention: str) -> None:
    """Give `module` the stacks and adapters of the program of `config`, and what its latents start from."""
    c = config
    for name, count in c.layers.items():
        kind = FlatStack if name == "layers" else Stack
        module.add_module(name, stack_of(count, c, impl, attention, kind))
    for name in c.program.stacks:
        if name.startswith(ADAPTER):
            module.add_module(name, Adapter(c.hidden_size, c.adapter_rank))
    for latent in () if c.random_latents else c.program.carried:
        start = trunc_normal(c.hidden_size, std=1.0).to(getattr(torch, c.forward_dtype))
        module.register_buffer(init_name(latent), start)


class RecursiveReasoner(Pretrained):
    """A recursive reasoning model of any architecture of `rtm_kernels.program`, with the official parameter names.

    An official state dict loads unchanged: the prefixes `_orig_mod.`, `model.` and `inner.` are dropped.
    Weights stay in float32 and are cast to `config.forward_dtype` on use; latents are kept in that dtype.
    `impl` and `attention` choose the ops' implementation (see `FusedTRMBlock`); loss heads read `impl` too.
    """

    config: ModelConfig
    configs = ModelConfig
    card = "recursive reasoning model", "cli", "rtm solve puzzles.txt"

    @torch.inference_mode(False)  # weights of inference mode could not be trained
    def __init__(self, config: ModelConfig, *, impl: str = "auto", attention: str = "auto") -> None:
        super().__init__()
        self.config, self.impl = config, impl
        self.program = config.program
        width, embed_std = config.hidden_size, config.hidden_size**-0.5
        self.embed_tokens = Embedding(config.vocab_size, width, std=embed_std)
        self.lm_head = Linear(width, config.vocab_size)
        if config.tied_lm_head:
            self.lm_head.weight = self.embed_tokens.embedding_weight
        if config.has_q_head:
            self.q_head = nn.Linear(width, 2, dtype=torch.float32)
            nn.init.zeros_(self.q_head.weight)
            nn.init.constant_(self.q_head.bias, -5.0)
        if config.puzzle_emb_ndim > 0:
            self.puzzle_emb = SparseEmbedding(config.num_puzzle_identifiers, config.puzzle_emb_ndim)
        if config.pos_encodings == "learned":
            self.embed_pos = Embedding(config.latent_len, width, std=embed_std)
        add_recursion(self, config, impl, attention)
        self._rope: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}
        self.run: Run | None = None
        """What executes programs instead of the stacks one by one; None for the stacks."""
        self._rank, self._world_size = 0, 1
        self.register_load_state_dict_pre_hook(drop_official_prefixes)

    def set_depth(self, config: ModelConfig) -> None:
        """Go on with the cycles and the cap on ACT steps of `config`, all of whose weights the model has.

        Errors: `InputError` for a config with other weights.
        """
        own = shapes(self.state_dict())
        fits = shapes(self.specs(config)).items() <= own.items()
        require(fits, "config", config, "one whose weights the model has")
        self.config, self.program = config, config.program

    def resized(self, seq_len: int) -> RecursiveReasoner:
        """This model at another `seq_len`, with the same parameters (not copied).

        The cap on ACT steps grows with the square root of the length, as paths over a grid do.
        Errors: `InputError` when a weight has the length of the sequence.
        """
        if seq_len == self.config.seq_len:
            return self
        allowed = f"{self.config.seq_len}: the model has weights of this length"
        require(self.config.any_length, "seq_len", seq_len, allowed)
        other = copy.copy(self)
        steps = math.ceil(self.config.halt_max_steps * math.sqrt(seq_len / self.config.seq_len))
        other.config = replace(self.config, seq_len=seq_len, halt_max_steps=steps)
        return other

    def share_batch(self, rank: int, world_size: int) -> None:
        """Take part `rank` of each batch of `world_size` equal parts: random numbers are drawn for the whole batch."""
        self._rank, self._world_size = rank, world_size

    def cos_sin(self) -> tuple[Tensor, Tensor] | None:
        """RoPE tables [L, head_dim] in float32 on the model's device, or None when positions are not rotary."""
        c = self.config
        if c.pos_encodings not in ("rope", "rope2d"):
            return None
        key, width = (self.device, c.latent_len), c.hidden_size // c.num_heads
        if key in self._rope:
            return self._rope[key]
        with torch.inference_mode(False):  # tables of inference mode could not be saved for a backward pass
            if c.pos_encodings == "rope2d":
                columns = c.grid_width or math.isqrt(c.seq_len)
                tables = rope_tables_2d(c.seq_len // columns, columns, width, c.rope_theta, self.device)
            else:
                tables = rope_tables(c.latent_len, width, c.rope_theta, self.device)
        if type(tables[0]) is Tensor:  # not those of a fake or a traced pass
            self._rope[key] = tables
        return tables

    def stacks(self) -> dict[str, reference.ApplyStack]:
        """The stacks of blocks by name, as an executor calls them."""
        cos_sin = self.cos_sin()

        def bind(stack: nn.Module) -> reference.ApplyStack:
            return lambda state, injection: stack(state, injection, cos_sin)

        return {name: bind(self.get_submodule(name)) for name in self.program.stacks}

    def embed(self, inputs: Tensor, puzzle_identifiers: Tensor | None = None) -> Tensor:
        """Input embedding x [B, L, D] = sqrt(D) * (prefix ++ tokens [+ positions, scaled by 1/sqrt(2)]).

        `puzzle_identifiers` [B] are read by a model with puzzle embeddings.
        """
        c = self.config
        x = rows("inputs", self.embed_tokens.embedding_weight.to(self.dtype), inputs)
        if c.prefix_len > 0:
            x = torch.cat((self._prefix(x.shape[0], puzzle_identifiers), x), dim=-2)  # [B, L, D]
        if c.pos_encodings == "learned":
            x = 0.707106781 * (x + self.embed_pos.embedding_weight.to(self.dtype))
        return math.sqrt(c.hidden_size) * x

    def _prefix(self, batch_size: int, puzzle_identifiers: Tensor | None) -> Tensor:
        c = self.config
        size = c.prefix_len * c.hidden_size
        if c.puzzle_emb_ndim == 0:
            shape = (batch_size, c.prefix_len, c.hidden_size)
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        rows = self.puzzle_emb(puzzle_identifiers).to(self.dtype)
        return F.pad(rows, (0, size - rows.shape[-1])).view(-1, c.prefix_len, c.hidden_size)

    def initial_latents(self, batch_size: int, seeds: Tensor | None = None) -> dict[str, Tensor]:
        """Fresh latents [B, L, D]: every position the one initial state, or random numbers (`random_latents`).

        With `seeds` [B] integer a sample's random numbers depend on its seed alone.
        """
        c = self.config
        if c.random_latents:
            if seeds is None:
                seeds = self._seeds(batch_size)
            shape = (c.latent_len, c.hidden_size)
            return {
                name: truncated_normal(seeds, number, shape).to(self.dtype)
                for number, name in enumerate(self.program.carried)
            }
        return {
            name: self.get_buffer(init_name(name)).to(self.dtype).expand(batch_size, c.latent_len, -1)
            for name in self.program.carried
        }

    def own_rows(self, draw: Callable[..., Tensor], batch_size: int, *shape: int) -> Tensor:
        """Random numbers [batch_size, *shape] of `draw`: every rank draws for the whole batch and takes its own."""
        whole = draw((batch_size * self._world_size, *shape), device=self.device)
        return whole[self._rank * batch_size :][:batch_size]

    def _seeds(self, batch_size: int) -> Tensor:
        """A seed for each sample from torch's generator."""
        return self.own_rows(partial(torch.randint, 1 << 31), batch_size)

    def token_logits(self, output: Tensor) -> Tensor:
        """Logits [B, seq_len, V] of the output latent [B, L, D]."""
        return F.linear(output, self.lm_head.weight.to(output.dtype))[:, self.config.prefix_len :]

    def heads(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B, seq_len, V] and halting logits [B, 2] in float32 (None without a halting head)."""
        logits = self.token_logits(output)
        if not self.config.has_q_head:
            return logits, None
        head = self.q_head
        q = F.linear(output[:, 0], head.weight.to(output.dtype), head.bias.to(output.dtype))
        return logits, q.to(torch.float32)

    @ranged("ACT step")
    def act_step(
        self, latents: Mapping[str, Tensor], x: Tensor, program: Program | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """One ACT step: run the program, read the heads. Returns (latents, logits, q logits), latents attached."""
        program = program or self.program
        if self.config.noise and SEED not in latents:
            latents = {**latents, SEED: self._seeds(len(x))}
        if self.run is not None:
            values = self.run(program, latents, x)
        else:
            values = reference.run(program, latents, x, self.stacks())
        return values, *self.heads(values[program.output])

    def initial_carry(self, batch: Batch) -> Carry:
        """A carry in which every sample is halted, so that the first step resets it and takes its data."""
        check_batch(self.config, batch)
        inputs = batch["inputs"]
        size, device = inputs.shape[0], inputs.device
        if self.training and self.config.puzzle_emb_ndim > 0:
            self.puzzle_emb.reserve(size)
        return Carry(
            latents=self.initial_latents(size),
            steps=torch.zeros(size, dtype=torch.int32, device=device),
            halted=torch.ones(size, dtype=torch.bool, device=device),
            current_data={name: torch.empty_like(value) for name, value in batch.items()},
        )

    def forward(self, carry: Carry, batch: Batch, program: Program | None = None) -> tuple[Carry, dict[str, Any]]:
        """One ACT step of the training contract: halted samples restart from `batch`, the others go on.

        Outputs: `logits` [B, seq_len, V], `q_halt_logits` and `q_continue_logits` [B] float32 (absent without a
        halting head), `target_q_continue` [B] in training when `config.q_continue_target`. In training a sample
        halts when its head says so, subject to exploration, or at `halt_max_steps`; in evaluation only at the
        latter, as in the official code (per-sample halting at inference is the solver's).
        """
        check_batch(self.config, batch)
        check_carry(carry, batch)
        halted = carry.halted
        fresh = self.initial_latents(len(halted))
        latents = {k: where_rows(halted, fresh[k], v) for k, v in carry.latents.items()}
        data = {k: where_rows(halted, batch[k], v) for k, v in carry.current_data.items()}
        x = self.embed(data["inputs"], data.get("puzzle_identifiers"))
        values, logits, q = self.act_step(latents, x, program)
        new = {k: values[k].detach() for k in self.program.carried}
        outputs: dict[str, Any] = {"logits": logits}
        if q is not None:
            outputs["q_halt_logits"] = q[..., 0]
            outputs |= {} if self.config.arch == "eqr" else {"q_continue_logits": q[..., 1]}
        with torch.no_grad():
            steps = carry.steps.masked_fill(halted, 0) + 1
            last = steps >= self.config.halt_max_steps
            now_halted = self._halt(q, steps, last) if self.training else last
            if self.training and self.config.q_continue_target and self.config.halt_max_steps > 1:
                outputs["target_q_continue"] = self._target_q_continue(new, data, last)
        return Carry(new, steps, now_halted, data), outputs

    def _halt(self, q: Tensor | None, steps: Tensor, last: Tensor) -> Tensor:
        """Halting of the training contract, with exploration: now and then a sample must run 2..max steps."""
        c = self.config
        if q is None or c.halt_max_steps == 1:
            return last
        wants = halt_logit(q, c.halting == "q_continue") > 0
        explore = self.own_rows(torch.rand, len(steps)) < c.halt_exploration_prob
        least = self.own_rows(partial(torch.randint, 2, c.halt_max_steps + 1, dtype=steps.dtype), len(steps))
        minimum = explore * least
        return (last | wants) & (steps >= minimum)

    def _target_q_continue(self, latents: Mapping[str, Tensor], data: Batch, last: Tensor) -> Tensor:
        """HRM's bootstrapped target: sigmoid of the best halting value one step ahead (of halting, at the last)."""
        x = self.embed(data["inputs"], data.get("puzzle_identifiers"))
        _, _, q = self.act_step(latents, x)
        assert q is not None
        return torch.sigmoid(torch.where(last, q[..., 0], torch.maximum(q[..., 0], q[..., 1])))
