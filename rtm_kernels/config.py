"""ModelConfig: every choice of a recursive reasoner as one frozen, checked piece of data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rtm_kernels import program as programs
from rtm_kernels.errors import InputError, one_of, require

MIXERS = ("mlp", "attention", "none")
CHANNEL_MIXERS = ("swiglu", "conv", "conv2d")
NORM_AXES = ("sequence", "hidden")
POSITIONS = ("none", "rope", "rope2d", "learned")
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


Own = TypeVar("Own", bound="Config")


@dataclass(frozen=True)
class Config:
    """What every config of a model shares: it is saved as JSON, and read with every field checked."""

    def to_json(self) -> str:
        """This configuration as JSON text, sorted, with a final newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls: type[Own], values: Mapping[str, Any]) -> Own:
        """Build from a mapping, refusing unknown and missing fields by name (`InputError`)."""
        known = {f.name: f.default is f.default_factory for f in dataclasses.fields(cls)}  # both MISSING: needed
        missing = sorted(name for name, needed in known.items() if needed and name not in values)
        if missing:
            raise InputError(f"missing config field(s) {', '.join(missing)}: this is no {cls.__name__}")
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"unknown config field(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Architecture of a `RecursiveReasoner`. Field names are the official ones where such a name exists.

    Sizes: `vocab_size` V, `seq_len` tokens of the puzzle, `hidden_size` D. The latent sequence is
    L = `prefix_len` + `seq_len`. `layers` gives the number of blocks of each stack of the program.
    `halting` says which head is read: `q` halts when q_halt > 0, `q_continue` when q_halt > q_continue,
    `settle` has no head, the cumulative policies accumulate p_halt per sequence or per token until it is >= 1.
    `state_ema` keeps that share of a latent in every step (RTM, EqR). EqR draws its first latents from a normal of
    deviation 1, truncated at 2, anew for each sample, and adds `noise` of that deviation in every step. `rope2d`
    rotates half of each head by the row and half by the column of a grid of `grid_width` columns (0: a square).
    `adapter_rank` gives every round of RINS a linear adapter of this rank.
    `channel_mixer` is a SwiGLU over D, or one with a depthwise convolution of `conv_width` on its hidden units, along
    the sequence (`conv`) or over a square grid (`conv2d`). Its inner width is `inner_size`, or follows from `expansion`
    where that is 0. A model whose weights hold nothing of length L (`any_length`) runs at every `seq_len`.

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
    channel_mixer: str = "swiglu"
    conv_width: int = 0
    inner_size: int = 0
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
    grid_width: int = 0
    noise: float = 0.0
    forward_dtype: str = "float32"

    def __post_init__(self) -> None:
        one_of("arch", self.arch, programs.BUILDERS)
        one_of("mixer", self.mixer, MIXERS)
        one_of("channel_mixer", self.channel_mixer, CHANNEL_MIXERS)
        one_of("norm_axis", self.norm_axis, NORM_AXES)
        one_of("pos_encodings", self.pos_encodings, POSITIONS)
        one_of("halting", self.halting, HALTING)
        one_of("forward_dtype", self.forward_dtype, DTYPES)
        for name in ("vocab_size", "seq_len", "hidden_size", "num_heads", "H_cycles", "L_cycles",
                     "num_puzzle_identifiers", "halt_max_steps"):  # fmt: skip
            value = getattr(self, name)
            require(is_int(value) and 1 <= value <= LIMIT, name, value, f"an integer from 1 to {LIMIT}")
        for name in ("puzzle_emb_ndim", "puzzle_emb_len", "adapter_rank", "inner_size", "conv_width",
                     "grid_width"):  # fmt: skip
            value = getattr(self, name)
            require(is_int(value) and 0 <= value <= LIMIT, name, value, f"an integer from 0 to {LIMIT}")
        for name in ("expansion", "rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            require(_is_number(value) and 0 < value < math.inf, name, value, "a positive finite number")
        require(self.expansion <= 64, "expansion", self.expansion, "at most 64")
        for name in ("causal", "qk_norm", "tied_lm_head", "q_continue_target"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        least, most = (0, 0) if self.channel_mixer == "swiglu" else (1, 63)
        odd = self.channel_mixer != "conv2d" or self.conv_width % 2 == 1
        widths = f"{least} to {most}, odd over a grid, for channel_mixer={self.channel_mixer!r}"
        require(least <= self.conv_width <= most and odd, "conv_width", self.conv_width, widths)
        square = math.isqrt(self.seq_len) ** 2 == self.seq_len
        fits = square or self.channel_mixer != "conv2d"
        require(fits, "seq_len", self.seq_len, "a square number for channel_mixer='conv2d'")
        probability = self.halt_exploration_prob
        require(_is_number(probability) and 0 <= probability <= 1, "halt_exploration_prob", probability, "0 to 1")
        require(_is_number(self.state_ema) and 0 <= self.state_ema < 1, "state_ema", self.state_ema, "0 to below 1")
        require(_is_number(self.noise) and 0 <= self.noise < math.inf, "noise", self.noise, "a number of at least 0")
        for name, archs in (("state_ema", ("rtm", "eqr")), ("adapter_rank", ("rins",)), ("noise", ("eqr",))):
            value, theirs = getattr(self, name), " or ".join(map(repr, archs))
            require(value == 0 or self.arch in archs, name, value, f"0 for arch={self.arch!r}; it is for {theirs}")
        if self.mixer == "attention" or self.pos_encodings in ("rope", "rope2d"):
            heads = self.num_heads
            require(self.hidden_size % heads == 0, "num_heads", heads, f"a divisor of hidden_size={self.hidden_size}")
        if self.pos_encodings == "rope":
            head_dim = self.hidden_size // self.num_heads
            require(head_dim % 2 == 0, "num_heads", self.num_heads, f"RoPE needs an even head width, not {head_dim}")
        if self.pos_encodings == "rope2d":
            quarter = self.hidden_size % (4 * self.num_heads) == 0
            require(quarter, "num_heads", self.num_heads, "heads of a multiple of 4 channels for rope2d")
            require(self.prefix_len == 0, "puzzle_emb_len", self.prefix_len, "0 for rope2d, whose grid has no prefix")
            whole = self.seq_len % self.grid_width == 0 if self.grid_width else square
            require(whole, "grid_width", self.grid_width, f"a width of a grid of seq_len={self.seq_len} cells")
        else:
            require(self.grid_width == 0, "grid_width", self.grid_width, "0 without rope2d")
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
        return programs.averaged(built, self.state_ema, self.noise) if self.state_ema or self.noise else built

    @property
    def prefix_len(self) -> int:
        """Workspace tokens before the puzzle: they hold the puzzle embedding, or zeros when there is none."""
        return self.puzzle_emb_len or -(self.puzzle_emb_ndim // -self.hidden_size)

    @property
    def latent_len(self) -> int:
        """L, the length of the latent sequence: prefix and puzzle."""
        return self.prefix_len + self.seq_len

    @property
    def inner_width(self) -> int:
        """F, the inner width of the channel mixer."""
        return self.inner_size or inner_width(self.hidden_size, self.expansion)

    @property
    def any_length(self) -> bool:
        """Whether no weight has the length of the sequence, so that the model runs at every `seq_len`."""
        return self.mixer != "mlp" and self.pos_encodings != "learned" and not self.grid_width

    @property
    def random_latents(self) -> bool:
        """Whether the first latents are drawn for each sample, instead of being the same for all."""
        return self.arch == "eqr"

    @property
    def has_q_head(self) -> bool:
        """Whether the model has a halting head."""
        return self.halting not in ("settle", "fixed")


def is_int(value: object) -> bool:
    """Whether a value is an integer, and not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
