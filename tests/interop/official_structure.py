"""Stand-ins with the structure, names and call signatures of the official TRM, HRM and RSM models.

Eager modules as the official ones are: a cast of every weight in every call, the injection added outside of the
blocks, the mixer's tensor transposed there and back. They are the baseline that fused code is compared with, and
what `accelerate` must recognise.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

IGNORE = -100


def rms_norm(hidden_states, variance_epsilon):
    wide = hidden_states.to(torch.float32)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + variance_epsilon)
    return (wide * scale).to(hidden_states.dtype)


class CastedLinear(nn.Module):
    def __init__(self, in_features, out_features, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * in_features**-0.5)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, input):
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class CastedEmbedding(nn.Module):
    def __init__(self, num_embeddings, embedding_dim, cast_to):
        super().__init__()
        self.cast_to = cast_to
        self.embedding_weight = nn.Parameter(torch.randn(num_embeddings, embedding_dim) * embedding_dim**-0.5)

    def forward(self, input):
        return F.embedding(input, self.embedding_weight.to(self.cast_to))


class CastedSparseEmbedding(nn.Module):
    def __init__(self, num_embeddings, embedding_dim, batch_size, cast_to):
        super().__init__()
        self.cast_to = cast_to
        self.register_buffer("weights", torch.randn(num_embeddings, embedding_dim))
        self.register_buffer("local_weights", torch.zeros(batch_size, embedding_dim, requires_grad=True), False)
        self.register_buffer("local_ids", torch.zeros(batch_size, dtype=torch.int32), False)

    def forward(self, inputs):
        if not self.training:
            return self.weights[inputs].to(self.cast_to)
        with torch.no_grad():
            self.local_weights.copy_(self.weights[inputs])
            self.local_ids.copy_(inputs)
        return self.local_weights.to(self.cast_to)


class RotaryEmbedding(nn.Module):
    def __init__(self, dim, max_position_embeddings, base):
        super().__init__()
        frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angles = torch.outer(torch.arange(max_position_embeddings, dtype=torch.float32), frequencies).repeat(1, 2)
        self.register_buffer("cos_cached", angles.cos(), persistent=False)
        self.register_buffer("sin_cached", angles.sin(), persistent=False)

    def forward(self):
        return self.cos_cached, self.sin_cached


def rotate(x, cos, sin):
    wide = x.to(cos.dtype)
    a, b = wide.chunk(2, dim=-1)
    return (wide * cos.unsqueeze(-2) + torch.cat((-b, a), dim=-1) * sin.unsqueeze(-2)).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, hidden_size, head_dim, num_heads, num_key_value_heads, causal=False):
        super().__init__()
        self.hidden_size, self.head_dim, self.output_size = hidden_size, head_dim, head_dim * num_heads
        self.num_heads, self.num_key_value_heads, self.causal = num_heads, num_key_value_heads, causal
        self.qkv_proj = CastedLinear(hidden_size, (num_heads + 2 * num_key_value_heads) * head_dim)
        self.o_proj = CastedLinear(self.output_size, hidden_size)

    def forward(self, cos_sin, hidden_states):
        batch, length, _ = hidden_states.shape
        qkv = self.qkv_proj(hidden_states).view(batch, length, -1, self.head_dim)
        query, key, value = qkv.split((self.num_heads, self.num_key_value_heads, self.num_key_value_heads), dim=2)
        if cos_sin is not None:
            query, key = rotate(query, *cos_sin), rotate(key, *cos_sin)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, self.output_size))


class SwiGLU(nn.Module):
    def __init__(self, hidden_size, expansion):
        super().__init__()
        inner = math.ceil(round(expansion * hidden_size * 2 / 3) / 256) * 256
        self.gate_up_proj = CastedLinear(hidden_size, inner * 2)
        self.down_proj = CastedLinear(inner, hidden_size)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """A block of TRM or HRM: the mixer's norm runs over the sequence, because its tensor is still transposed."""

    norm_over_hidden = False

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.norm_eps = config.rms_norm_eps
        if config.mlp_t:
            self.mlp_t = SwiGLU(config.seq_len + config.puzzle_emb_len, config.expansion)
        else:
            heads = config.num_heads
            self.self_attn = Attention(config.hidden_size, config.hidden_size // heads, heads, heads)
        self.mlp = SwiGLU(config.hidden_size, config.expansion)

    def forward(self, cos_sin, hidden_states):
        h = hidden_states
        if not self.config.mlp_t:
            h = rms_norm(h + self.self_attn(cos_sin=cos_sin, hidden_states=h), self.norm_eps)
        elif self.norm_over_hidden:
            h = rms_norm(h + self.mlp_t(h.transpose(1, 2)).transpose(1, 2), self.norm_eps)
        else:
            h = h.transpose(1, 2)
            h = rms_norm(h + self.mlp_t(h), self.norm_eps).transpose(1, 2)
        return rms_norm(h + self.mlp(h), self.norm_eps)


class RSMBlock(Block):
    """A block of RSM: transposed back before the norm, which so runs over the hidden axis."""

    norm_over_hidden = True


class ReasoningModule(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states, input_injection, **kwargs):
        hidden_states = hidden_states + input_injection
        for layer in self.layers:
            hidden_states = layer(hidden_states=hidden_states, **kwargs)
        return hidden_states


class RSMModule(ReasoningModule):
    def forward(self, hidden_states, injection, cos_sin):
        hidden_states = hidden_states + injection
        for layer in self.layers:
            hidden_states = layer(cos_sin=cos_sin, hidden_states=hidden_states)
        return hidden_states


class SingleZModule(ReasoningModule):
    def forward(self, hidden_states, **kwargs):
        for layer in self.layers:
            hidden_states = layer(hidden_states=hidden_states, **kwargs)
        return hidden_states


def config_of(**changes):
    """The fields of an official config, small."""
    values = {
        "batch_size": 4, "vocab_size": 11, "seq_len": 9, "hidden_size": 32, "expansion": 4, "num_heads": 4,
        "H_cycles": 2, "L_cycles": 2, "H_layers": 2, "L_layers": 2, "mlp_t": True, "pos_encodings": "none",
        "puzzle_emb_ndim": 32, "puzzle_emb_len": 1, "num_puzzle_identifiers": 3, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "halt_max_steps": 4, "halt_exploration_prob": 0.0, "forward_dtype": "float32",
    }  # fmt: skip
    return SimpleNamespace(**values | changes)


class Embeddings(nn.Module):
    """What the inner modules of all official models share: tables, input embedding, heads, initial latents."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.forward_dtype = getattr(torch, config.forward_dtype)
        width, dtype = config.hidden_size, self.forward_dtype
        self.embed_tokens = CastedEmbedding(config.vocab_size, width, dtype)
        self.lm_head = CastedLinear(width, config.vocab_size)
        self.puzzle_emb = CastedSparseEmbedding(
            config.num_puzzle_identifiers, config.puzzle_emb_ndim, config.batch_size, dtype
        )
        if config.pos_encodings == "rope":
            length = config.seq_len + config.puzzle_emb_len
            self.rotary_emb = RotaryEmbedding(width // config.num_heads, length, config.rope_theta)
        self.register_buffer("H_init", torch.randn(width).to(dtype))
        self.register_buffer("L_init", torch.randn(width).to(dtype))

    def cos_sin(self):
        return self.rotary_emb() if hasattr(self, "rotary_emb") else None

    def input_embeddings(self, tokens, puzzle_identifiers):
        c = self.config
        rows = self.puzzle_emb(puzzle_identifiers)
        rows = F.pad(rows, (0, c.puzzle_emb_len * c.hidden_size - rows.shape[-1]))
        prefix = rows.view(-1, c.puzzle_emb_len, c.hidden_size)
        return math.sqrt(c.hidden_size) * torch.cat((prefix, self.embed_tokens(tokens.to(torch.int32))), dim=1)


class Inner(Embeddings):
    """The recursion of TRM (one stack, last H cycle with grad) or HRM (two stacks, last two steps with grad)."""

    def __init__(self, config, hierarchical=False):
        super().__init__(config)
        self.q_head = CastedLinear(config.hidden_size, 2, bias=True)
        self.L_level = ReasoningModule([Block(config) for _ in range(config.L_layers)])
        if hierarchical:
            self.H_level = ReasoningModule([Block(config) for _ in range(config.H_layers)])

    def forward(self, carry, batch):
        c, cos_sin = self.config, self.cos_sin()
        x = self.input_embeddings(batch["inputs"], batch["puzzle_identifiers"])
        z_H, z_L = carry.z_H, carry.z_L
        upper = self.H_level if hasattr(self, "H_level") else self.L_level
        with_grad = 2 if hasattr(self, "H_level") else c.L_cycles + 1
        total = c.H_cycles * (c.L_cycles + 1)
        for step in range(total):
            with torch.set_grad_enabled(torch.is_grad_enabled() and step >= total - with_grad):
                if step % (c.L_cycles + 1) < c.L_cycles:
                    z_L = self.L_level(z_L, z_H + x, cos_sin=cos_sin)
                else:
                    z_H = upper(z_H, z_L, cos_sin=cos_sin)
        q = self.q_head(z_H[:, 0]).to(torch.float32)
        new = SimpleNamespace(z_H=z_H.detach(), z_L=z_L.detach())
        return new, self.lm_head(z_H)[:, c.puzzle_emb_len :], (q[..., 0], q[..., 1])


class Reasoner(nn.Module):
    """The ACT wrapper of TRM and HRM."""

    def __init__(self, config, hierarchical=False):
        super().__init__()
        self.config = config
        self.inner = Inner(config, hierarchical)

    def initial_carry(self, batch):
        c, size = self.config, batch["inputs"].shape[0]
        empty = torch.empty(size, c.seq_len + c.puzzle_emb_len, c.hidden_size, dtype=self.inner.forward_dtype)
        return SimpleNamespace(
            inner_carry=SimpleNamespace(z_H=empty, z_L=empty.clone()),
            steps=torch.zeros(size, dtype=torch.int32),
            halted=torch.ones(size, dtype=torch.bool),
            current_data={k: torch.empty_like(v) for k, v in batch.items()},
        )

    def forward(self, carry, batch):
        reset = carry.halted.view(-1, 1, 1)
        inner = SimpleNamespace(
            z_H=torch.where(reset, self.inner.H_init, carry.inner_carry.z_H),
            z_L=torch.where(reset, self.inner.L_init, carry.inner_carry.z_L),
        )
        data = {
            k: torch.where(carry.halted.view(-1, *[1] * (v.ndim - 1)), batch[k], v)
            for k, v in carry.current_data.items()
        }
        inner, logits, (q_halt, q_continue) = self.inner(inner, data)
        steps = torch.where(carry.halted, 0, carry.steps) + 1
        halted = steps >= self.config.halt_max_steps
        if self.training:
            halted = halted | (q_halt > 0)
        carry = SimpleNamespace(inner_carry=inner, steps=steps, halted=halted, current_data=data)
        return carry, {"logits": logits, "q_halt_logits": q_halt, "q_continue_logits": q_continue}


class RSM(Embeddings):
    """The Recursive Stem Model: fresh latents in every call, tied lm_head, the last cycle with grad."""

    def __init__(self, config):
        super().__init__(config)
        self.core = RSMModule([RSMBlock(config) for _ in range(config.L_layers)])
        self.lm_head.weight = self.embed_tokens.embedding_weight

    def initial_carry(self, batch):
        return SimpleNamespace(current_data=batch, halted=None)

    def forward(self, carry, batch, override_H_cycles=None, debug_structure=False, alpha=1.0):
        c, cos_sin = self.config, self.cos_sin()
        x = self.input_embeddings(batch["inputs"], batch["puzzle_identifiers"])
        z_H, z_L = self.H_init.expand_as(x), self.L_init.expand_as(x)
        depth = c.H_cycles if override_H_cycles is None else override_H_cycles
        for cycle in range(depth):
            with torch.set_grad_enabled(torch.is_grad_enabled() and cycle == depth - 1):
                for _ in range(c.L_cycles):
                    z_L = self.core(z_L, z_H + x, cos_sin=cos_sin)
                z_H = self.core(z_H, z_L, cos_sin=cos_sin)
        return SimpleNamespace(current_data=batch, halted=None), {"logits": self.lm_head(z_H)[:, c.puzzle_emb_len :]}


class LossHead(nn.Module):
    """The official loss heads, head(return_keys, carry=, batch=): each sample's mean softmax cross entropy, summed."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def initial_carry(self, batch):
        return self.model.initial_carry(batch)

    def forward(self, return_keys, **model_kwargs):
        carry, outputs = self.model(**model_kwargs)
        logits, labels = outputs["logits"], carry.current_data["labels"].to(torch.long)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="none")
        counted = labels != IGNORE
        loss = (losses.view(labels.shape) / counted.sum(-1, keepdim=True).clamp_min(1)).sum()
        if "q_halt_logits" in outputs:
            q, solved = outputs["q_halt_logits"], ((logits.argmax(-1) == labels) | ~counted).all(-1)
            loss = loss + 0.5 * F.binary_cross_entropy_with_logits(q, solved.to(q.dtype), reduction="sum")
        kept = {k: outputs[k].detach() for k in return_keys if k in outputs}
        halted = torch.tensor(True) if carry.halted is None else carry.halted.all()
        return carry, loss, {"lm_loss": loss.detach()}, kept, halted


def models():
    """Name -> model, one for every structure that `accelerate` must recognise."""
    rope = {"mlp_t": False, "pos_encodings": "rope"}
    return {
        "trm_mlp": Reasoner(config_of()),
        "trm_att": Reasoner(config_of(**rope)),
        "hrm": Reasoner(config_of(**rope), hierarchical=True),
        "rsm_mlp": RSM(config_of()),
        "rsm_att": RSM(config_of(**rope)),
    }


def batch(config, seed=0):
    """A batch with labels, some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    shape = (config.batch_size, config.seq_len)
    labels = torch.randint(1, config.vocab_size, shape, generator=generator)
    return {
        "inputs": torch.randint(0, config.vocab_size, shape, generator=generator),
        "labels": labels.masked_fill(torch.rand(shape, generator=generator) < 0.2, IGNORE),
        "puzzle_identifiers": torch.randint(0, config.num_puzzle_identifiers, shape[:1], generator=generator),
    }
