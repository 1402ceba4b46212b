"""Bridges to the official TRM, HRM and RSM code: their checkpoints, loss heads and live models."""

from rtm_kernels.interop.accelerate import accelerate, restore
from rtm_kernels.interop.checkpoint import load_official_checkpoint
from rtm_kernels.interop.official import from_official, to_official
from rtm_kernels.losses import official_loss_head

__all__ = ["accelerate", "from_official", "load_official_checkpoint", "official_loss_head", "restore", "to_official"]
