"""TextConfig: every choice of a text model as one frozen, checked piece of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rtm_kernels.config import LIMIT, MAX_BLOCKS, Config, ModelConfig, is_int
from rtm_kernels.errors import one_of, require
from rtm_kernels.program import ADAPTER, Program

BOUNDARY, TEXT_END = 256, 257
"""The symbols beside the 256 bytes: between words (the first input of a word, the last output), and after the last."""
SYMBOLS = 258
ARCHS = ("rins", "rtm", "trm", "trm_singlez", "trm_hier6", "hrm", "rsm", "urm", "transformer")
"""Architectures whose programs run over words: all without random latents."""


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """Architecture of a `TextModel` (HAT, arXiv 2501.10322).

    `backbone` is the recursion over words: causal attention with RoPE, `seq_len` words in a row of training, any
    number afterwards. With `halting="cumulative_token"` each word takes ACT steps until its sum of p is 1, at least
    `min_rounds` and at most `backbone.halt_max_steps`; with `fixed` a round is one H cycle of the program. Words have
    at most `max_bytes` bytes. The byte encoder and decoder have width `byte_size`; whole words are laid one after the
    other into rows of `byte_row` positions.

    Errors: `InputError` naming the field, its value and what is allowed.
    """

    backbone: ModelConfig
    byte_size: int = 96
    byte_heads: int = 4
    byte_inner: int = 256
    encoder_layers: int = 1
    decoder_layers: int = 2
    max_bytes: int = 16
    byte_row: int = 64
    min_rounds: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.backbone, Mapping):
            object.__setattr__(self, "backbone", ModelConfig.from_dict(self.backbone))
        fits = isinstance(self.backbone, ModelConfig)
        require(fits, "backbone", self.backbone, "the config of a recursion")
        for name, most in (("byte_size", LIMIT), ("byte_heads", LIMIT), ("byte_inner", LIMIT), ("max_bytes", 255),
                           ("encoder_layers", MAX_BLOCKS), ("decoder_layers", MAX_BLOCKS),
                           ("byte_row", 4096), ("min_rounds", self.backbone.halt_max_steps)):  # fmt: skip
            value = getattr(self, name)
            require(is_int(value) and 1 <= value <= most, name, value, f"an integer from 1 to {most}")
        require(self.byte_row > self.max_bytes, "byte_row", self.byte_row, f"more than max_bytes={self.max_bytes}")
        fits = self.byte_size % (2 * self.byte_heads) == 0
        require(fits, "byte_heads", self.byte_heads, f"byte_size={self.byte_size} divided into heads of even width")
        backbone = self.backbone
        one_of("backbone.arch", backbone.arch, ARCHS)
        for name, wanted in (("vocab_size", SYMBOLS), ("mixer", "attention"), ("channel_mixer", "swiglu"),
                             ("causal", True), ("pos_encodings", "rope"), ("prefix_len", 0),
                             ("tied_lm_head", False)):  # fmt: skip
            value = getattr(backbone, name)
            require(value == wanted, f"backbone.{name}", value, f"{wanted!r} for text")
        one_of("backbone.halting", backbone.halting, ("fixed", "cumulative_token"))
        carries = backbone.program.output in backbone.program.carried
        require(not self.halts or carries, "backbone.halting", backbone.halting, "fixed: the program carries no state")

    @property
    def halts(self) -> bool:
        """Whether words halt on their own."""
        return self.backbone.halting == "cumulative_token"

    @property
    def rounds(self) -> int:
        """Rounds of training: the cap of a model that halts, else the H cycles of its program."""
        return self.backbone.halt_max_steps if self.halts else self.backbone.H_cycles

    def program(self, rounds: int) -> Program:
        """One pass of `rounds` H cycles; rounds beyond those of training take the last adapter."""
        config = self.backbone
        steps = (replace(config, H_cycles=rounds) if not self.halts else config).program
        last = f"{ADAPTER}{config.H_cycles}"

        def own(name: str) -> str:
            return last if name.startswith(ADAPTER) and int(name.removeprefix(ADAPTER)) > config.H_cycles else name

        return replace(steps, steps=tuple(replace(step, stack=own(step.stack)) for step in steps.steps))

    @property
    def bytes_config(self) -> ModelConfig:
        """The layers of the encoder and of the decoder, as the cost model reads them."""
        return replace(
            self.backbone, arch="transformer", seq_len=self.byte_row, hidden_size=self.byte_size,
            num_heads=self.byte_heads, layers={"H_level": 1}, H_cycles=1, L_cycles=1, inner_size=self.byte_inner,
            causal=False, halting="fixed", adapter_rank=0, state_ema=0.0,
        )  # fmt: skip
