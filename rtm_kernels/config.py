"""ModelConfig: every choice of a recursive reasoner as one frozen, checked piece of data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtm_kernels import program as programs
from rtm_kernels.errors import InputError, one_of, require

MIXERS = ("mlp", "attention")
NORM_AXES = ("sequence", "hidden")
POSITIONS = ("none", "rope", "learned")
DTYPES = ("float32", "bfloat16", "float16", "float64")
HALTING = ("q", "q_continue", "settle", "cumulative", "cumulative_token", "fixed")
LIMIT = 1 << 20
MAX_STEPS = 1 << 14
"""Most steps that the program of one ACT step may have."""
MAX_BLOCKS = 256
"""Most blocks of one stack, and most adapters."""


def inner_width(width: int, expansion: float) -> int:
    """Inner width of a SwiGLU over `width` features: ceil(round(expansion * width * 2/3) / 256) * 256."""
    return -(round(expansion * width * 2 / 3) // -256) * 256


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a `RecursiveReasoner`. Field names are the official ones where such a name exists.

    Sizes: `vocab_size` V, `seq_len` tokens of the puzzle, `hidden_size` D. The latent sequence is
    L = `prefix_len` + `seq_len`. `layers` gives the number of blocks of each stack of the program.
    `halting` says which head is read: `q` halts when q_halt > 0, `q_continue` when q_halt > q_continue,
    `settle` has no head, the cumulative policies accumulate p_halt per sequence or per token until it is >= 1.
    `state_ema` keeps that share of a latent in every step (RTM). `adapter_rank` gives every round of RINS a linear
    adapter of this rank.

    Errors: `InputError` naming the field, its value and what is allowed.
    """

    vocab_size: int
    seq_len: int
    arch: str = "trm"
    hidden_size: int = 512
    expansion: float = 4.0
    num_heads: int = 8
    layers: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"L_level": 2})
    H_cycles: int = 3
    L_cycles: int = 6
    mixer: str = "mlp"
    norm_axis: str = "sequence"
    pos_encodings: str = "none"
    causal: bool = False
    qk_norm: bool = False
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    puzzle_emb_ndim: int = 0
    puzzle_emb_len: int = 0
    num_puzzle_identifiers: int = 1
    tied_lm_head: bool = False
    halting: str = "q"
    q_continue_target: bool = False
    halt_max_steps: int = 16
    halt_exploration_prob: float = 0.1
    state_ema: float = 0.0
    adapter_rank: int = 0
    forward_dtype: str = "float32"

    def __post_init__(self) -> None:
        one_of("arch", self.arch, programs.BUILDERS)
        one_of("mixer", self.mixer, MIXERS)
        one_of("norm_axis", self.norm_axis, NORM_AXES)
        one_of("pos_encodings", self.pos_encodings, POSITIONS)
        one_of("halting", self.halting, HALTING)
        one_of("forward_dtype", self.forward_dtype, DTYPES)
        for name in ("vocab_size", "seq_len", "hidden_size", "num_heads", "H_cycles", "L_cycles",
                     "num_puzzle_identifiers", "halt_max_steps"):  # fmt: skip
            value = getattr(self, name)
            require(is_int(value) and 1 <= value <= LIMIT, name, value, f"an integer from 1 to {LIMIT}")
        for name in ("puzzle_emb_ndim", "puzzle_emb_len", "adapter_rank"):
            value = getattr(self, name)
            require(is_int(value) and 0 <= value <= LIMIT, name, value, f"an integer from 0 to {LIMIT}")
        for name in ("expansion", "rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            require(_is_number(value) and 0 < value < math.inf, name, value, "a positive finite number")
        require(self.expansion <= 64, "expansion", self.expansion, "at most 64")
        for name in ("causal", "qk_norm", "tied_lm_head", "q_continue_target"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        probability = self.halt_exploration_prob
        require(_is_number(probability) and 0 <= probability <= 1, "halt_exploration_prob", probability, "0 to 1")
        require(_is_number(self.state_ema) and 0 <= self.state_ema < 1, "state_ema", self.state_ema, "0 to below 1")
        for name, arch in (("state_ema", "rtm"), ("adapter_rank", "rins")):
            value = getattr(self, name)
            require(value == 0 or self.arch == arch, name, value, f"0 for arch={self.arch!r}; it is for {arch!r}")
        if self.mixer == "attention" or self.pos_encodings == "rope":
            heads = self.num_heads
            require(self.hidden_size % heads == 0, "num_heads", heads, f"a divisor of hidden_size={self.hidden_size}")
        if self.pos_encodings == "rope":
            head_dim = self.hidden_size // self.num_heads
            require(head_dim % 2 == 0, "num_heads", self.num_heads, f"RoPE needs an even head width, not {head_dim}")
        room = self.prefix_len * self.hidden_size
        allowed = f"at most puzzle_emb_len * hidden_size = {room}"
        require(self.puzzle_emb_ndim <= room, "puzzle_emb_ndim", self.puzzle_emb_ndim, allowed)
        length = self.H_cycles * (self.L_cycles + 1)
        require(length <= MAX_STEPS, "H_cycles", self.H_cycles, f"H_cycles * (L_cycles + 1) at most {MAX_STEPS}")
        few = not self.adapter_rank or self.H_cycles <= MAX_BLOCKS
        require(few, "H_cycles", self.H_cycles, f"at most {MAX_BLOCKS} rounds with adapters")
        require(isinstance(self.layers, Mapping), "layers", self.layers, "a mapping from stack to number of blocks")
        object.__setattr__(self, "layers", dict(self.layers))
        wanted = tuple(name for name in self.program.stacks if not name.startswith(programs.ADAPTER))
        require(set(self.layers) == set(wanted), "layers", self.layers, f"one entry for each of the stacks {wanted}")
        for name, count in self.layers.items():
            allowed = f"an integer from 1 to {MAX_BLOCKS}"
            require(is_int(count) and 1 <= count <= MAX_BLOCKS, f"layers[{name!r}]", count, allowed)

    @property
    def program(self) -> programs.Program:
        """The recursion of one ACT step."""
        if self.adapter_rank:
            return programs.rins(self.H_cycles, adapters=True)
        built = programs.build(self.arch, self.H_cycles, self.L_cycles)
        return programs.averaged(built, self.state_ema) if self.state_ema else built

    @property
    def prefix_len(self) -> int:
        """Workspace tokens before the puzzle: they hold the puzzle embedding, or zeros when there is none."""
        return self.puzzle_emb_len or -(self.puzzle_emb_ndim // -self.hidden_size)

    @property
    def latent_len(self) -> int:
        """L, the length of the latent sequence: prefix and puzzle."""
        return self.prefix_len + self.seq_len

    @property
    def has_q_head(self) -> bool:
        """Whether the model has a halting head."""
        return self.halting not in ("settle", "fixed")

    def to_json(self) -> str:
        """This configuration as JSON text, sorted, with a final newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from a mapping, refusing unknown and missing fields by name (`InputError`)."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"unknown config field(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        missing = sorted({"vocab_size", "seq_len"} - set(values))
        if missing:
            raise InputError(f"missing config field(s) {', '.join(missing)}")
        return cls(**values)


def is_int(value: object) -> bool:
    """Whether a value is an integer, and not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
