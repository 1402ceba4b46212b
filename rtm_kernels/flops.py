"""Useful floating-point operations of a model, from its sizes: a multiply-add is two, recomputation is not counted."""

from __future__ import annotations

from rtm_kernels.config import ModelConfig, inner_width
from rtm_kernels.program import Program


def layer_flops(config: ModelConfig, half: str = "both") -> int:
    """FLOPs of one layer on one sample [L, D]: its matrix products. `half`: mixer, channel or both."""
    length, width = config.latent_len, config.hidden_size
    taps = config.conv_width ** (2 if config.channel_mixer == "conv2d" else 1)
    channel = 2 * length * config.inner_width * (3 * width + taps)
    mixer = 6 * length * width * inner_width(length, config.expansion)
    if config.mixer == "attention":
        mixer = 8 * length * width**2 + 4 * length**2 * width
    if config.mixer == "none":
        mixer = 0
    return {"mixer": mixer, "channel": channel, "both": mixer + channel}[half]


def act_step_flops(config: ModelConfig, train: bool = False, program: Program | None = None) -> int:
    """FLOPs of one ACT step of one sample; with `train` the gradients of the steps that have one, twice the forward."""
    steps = (program or config.program).steps
    layers = [config.layers.get(step.stack, 0) * (3 if train and step.grad else 1) for step in steps]
    return layer_flops(config) * sum(layers)
