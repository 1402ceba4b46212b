"""Names of parameters and buffers, ours and the official ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

WRAPPERS = ("module.", "model.", "inner.")
ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def bare_name(key: str) -> str:
    """A parameter's name without what DDP, FSDP, torch.compile, checkpointing, loss head and ACT wrapper put in it."""
    for wrapper in ANYWHERE:
        key = key.replace(wrapper, "")
    while key.startswith(WRAPPERS):
        key = key.partition(".")[2]
    return key


def init_name(latent: str) -> str:
    """Buffer that a latent starts from: `z_H` starts from `H_init`, URM's `current_hidden` from `init_hidden`."""
    return "init_hidden" if latent == "current_hidden" else f"{latent.removeprefix('z_')}_init"


def drop_official_prefixes(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """A pre-hook of `load_state_dict`: names without official prefixes, and a tied lm_head from the embedding."""
    for key in [k for k in state if k.startswith(prefix)]:
        state[prefix + bare_name(key.removeprefix(prefix))] = state.pop(key)
    tied = prefix + "lm_head.weight"
    if getattr(module.config, "tied_lm_head", False) and tied not in state:
        embedding = state.get(prefix + "embed_tokens.embedding_weight")
        if embedding is not None:
            state[tied] = embedding
