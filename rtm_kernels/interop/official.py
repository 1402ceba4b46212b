"""Models of the official TRM, HRM and RSM repositories: their configs and state dicts, both ways."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import InputError, one_of, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.names import bare_name
from rtm_kernels.ops.launch import FLOATING
from rtm_kernels.pretrained import check_fits, shapes

ALIASES = {"transformers_baseline": "transformer"}
"""Official module names that differ from the architecture names of `rtm_kernels.program`."""

STACK_LAYERS = {
    "trm": {"L_level": "L_layers"},
    "trm_singlez": {"L_level": "L_layers"},
    "trm_hier6": {"L_level": "L_layers"},
    "hrm": {"H_level": "H_layers", "L_level": "L_layers"},
    "transformer": {"H_level": "H_layers"},
    "rsm": {"core": "L_layers"},
    "urm": {"layers": "num_layers"},
    "eqr": {"L_level": "L_layers"},
}
"""Architecture -> stack of blocks -> official config field that holds its number of layers."""


LEFT_OUT = re.compile(r"(.*\.)?(puzzle_emb\.local_(weights|ids)|cos_cached|sin_cached|inv_freq)|n_averaged")
"""Buffers that training may leave in a state dict: rows of the last batch, rotary tables, the count of an average."""

REFERENCE = re.compile(r"\$\{[\w.]*?(\w+)\}")
"""A value of a config file that names another field, such as `${.hidden_size}`."""


def _resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with references to its other fields followed, and whole numbers such as 7.0 as integers."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        for _ in config:
            found = REFERENCE.fullmatch(value) if isinstance(value, str) else None
            value = config[found[1]] if found and found[1] in config else value
        resolved = not (isinstance(value, str) and "${" in value)
        require(resolved, name, value, "a value, or a reference to another field of the config")
        value = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
        value = value.item() if isinstance(value, np.generic) else value
        with suppress(ValueError):  # in YAML 1e-5 is a text
            value = float(value) if isinstance(value, str) else value
        values[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return values


def model_config(arch: str, config: Mapping[str, Any]) -> ModelConfig:
    """The `ModelConfig` of an official architecture and its config (the `arch` section of `all_config.yaml`).

    Fields that the official class does not read are ignored, as it ignores them; defaults are its defaults
    (`forward_dtype` bfloat16, `puzzle_emb_len` 16 for the TRM family and RSM).

    Errors: `InputError` for an unknown architecture, a missing field, or a value that `ModelConfig` refuses.
    """
    arch, config = ALIASES.get(arch, arch), _resolved(config)
    one_of("arch", arch, (*STACK_LAYERS, *ALIASES))
    layer_fields = STACK_LAYERS[arch]
    required = ["vocab_size", "seq_len", "hidden_size", "expansion", "num_heads", "H_cycles", *layer_fields.values()]
    required += [] if arch == "eqr" else ["num_puzzle_identifiers"]
    required += [] if arch == "transformer" else ["L_cycles"]
    required += ["pos_encodings"] if arch == "urm" else []
    required += [] if arch in ("rsm", "urm") else ["pos_encodings", "halt_max_steps", "halt_exploration_prob"]
    missing = sorted({name for name in required if name not in config})
    if missing:
        raise InputError(f"the official {arch} config lacks {', '.join(missing)}")
    for name, only in (("act_enabled", True), ("act_inference", False)):
        if arch == "transformer" and config.get(name, only) is not only:
            raise InputError(f"{name}={config[name]!r} is not supported for the transformer baseline; set it to {only}")

    optional = ("pos_encodings", "rms_norm_eps", "rope_theta", "puzzle_emb_ndim", "halt_max_steps",
                "halt_exploration_prob")  # fmt: skip
    values = {name: config[name] for name in (*required, *optional) if name in config}
    if values.get("pos_encodings", "none") is None:
        values["pos_encodings"] = "none"
    values["layers"] = {stack: values.pop(field) for stack, field in layer_fields.items()}
    values["H_cycles"] = 1 if arch == "transformer" else config["H_cycles"]
    values["L_cycles"] = config.get("L_cycles", 1) if arch != "transformer" else 1
    values["forward_dtype"] = config.get("forward_dtype", "bfloat16")
    return ModelConfig(arch=arch, **(values | _contract(arch, config)))


def _contract(arch: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What an official class fixes in its code: mixer, norm axis, prefix length, heads and halting."""
    if arch == "urm":  # one token holds the puzzle embedding; the code fixes the probability
        return {"mixer": "attention", "channel_mixer": "conv", "conv_width": 2, "halting": "q",
                "halt_max_steps": config.get("loops", 16), "halt_exploration_prob": 0.1}  # fmt: skip
    contract: dict[str, Any] = {"mixer": "mlp" if config.get("mlp_t", False) and arch != "transformer" else "attention"}
    if arch == "eqr":
        if any(config.get(name, 1.0) != 1.0 for name in ("H_init_std", "L_init_std")):
            raise InputError("H_init_std and L_init_std other than 1 are not supported")
        rows, columns = config.get("board_height"), config.get("board_width")
        grid = 0 if config.get("pos_encodings") != "rope2d" or rows == columns or not columns else columns
        keep = round(1 - config.get("lambda_", 0.95), 12)
        return contract | {
            "halting": "q",
            "state_ema": keep,
            "grid_width": grid,
            "noise": config.get("noise_scale", 0.01),
        }
    if arch == "hrm":
        return contract | {"halting": "q_continue", "q_continue_target": True}
    if arch == "transformer":
        return contract | {"halting": "q_continue"}
    contract["puzzle_emb_len"] = config.get("puzzle_emb_len", 16)
    if arch == "rsm":
        if config.get("puzzle_emb_ndim", 0) == 0:
            contract["puzzle_emb_len"] = 0
        return contract | {"norm_axis": "hidden", "tied_lm_head": True, "halting": "settle"}
    learned = not config.get("no_ACT_continue", True)
    return contract | {"halting": "q_continue" if learned else "q", "q_continue_target": learned}


def from_official(
    arch: str,
    config: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    *,
    impl: str = "auto",
    attention: str = "auto",
) -> RecursiveReasoner:
    """A `RecursiveReasoner` with the weights of an official model, in evaluation mode.

    arch: trm, trm_singlez, trm_hier6, hrm, transformer (officially transformers_baseline) or rsm.
    config: the official config; state_dict: the official names, with or without the prefixes `_orig_mod.`,
    `module.`,
    `model.` and `inner.`. Weights of any float dtype are stored in float32, initial latents in `forward_dtype`.

    Errors: `InputError` naming missing and unexpected keys, wrong shapes, and tensors that are not dense floats.
    Source: `models/recursive_reasoning/` of TinyRecursiveModels, HRM and RSM.
    """
    ours = model_config(arch, config)
    state = strip_prefixes(state_dict)
    check_state(state, ours)
    model = RecursiveReasoner(ours, impl=impl, attention=attention)
    model.load_state_dict(state)
    return model.eval()


def to_official(model: RecursiveReasoner, *, batch_size: int = 1) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The inverse of `from_official`: (arch, config, state dict) that the official class accepts.

    `batch_size` is the official config field of that name (it sizes buffers of their training). The tensors of
    the state dict are detached and share memory with the model.

    Errors: `InputError` naming the fields of the model's config that the official class cannot express.
    """
    c = model.config
    if c.arch not in STACK_LAYERS:
        raise InputError(f"arch={c.arch!r} has no official class; those that have one: {', '.join(STACK_LAYERS)}")
    same = ("vocab_size", "seq_len", "hidden_size", "expansion", "num_heads", "H_cycles", "L_cycles", "pos_encodings",
            "rms_norm_eps", "rope_theta", "puzzle_emb_ndim", "num_puzzle_identifiers", "halt_max_steps",
            "halt_exploration_prob", "forward_dtype")  # fmt: skip
    official: dict[str, Any] = {name: getattr(c, name) for name in same}
    official |= {"batch_size": batch_size, "H_layers": 0, "L_layers": 0, "mlp_t": c.mixer == "mlp"}
    if c.arch == "urm":
        official["loops"] = c.halt_max_steps
    if c.arch == "eqr":
        official |= {"lambda_": 1 - c.state_ema, "noise_scale": c.noise}
    if c.grid_width:
        official |= {"board_height": c.seq_len // c.grid_width, "board_width": c.grid_width}
    official |= {field: c.layers[stack] for stack, field in STACK_LAYERS[c.arch].items()}
    official |= {"puzzle_emb_len": c.prefix_len, "no_ACT_continue": c.halting != "q_continue"}
    restored = dataclasses.asdict(model_config(c.arch, official)) | {"puzzle_emb_len": c.puzzle_emb_len}
    lost = [f"{name}={value!r}" for name, value in dataclasses.asdict(c).items() if restored[name] != value]
    if model_config(c.arch, official).prefix_len != c.prefix_len:
        lost.append(f"puzzle_emb_len={c.puzzle_emb_len!r}")
    if lost:
        raise InputError(f"the official {c.arch} class cannot express {', '.join(lost)}")
    prefix = "" if c.arch == "rsm" else "inner."
    names = {alias: official_name for official_name, alias in ALIASES.items()}
    return names.get(c.arch, c.arch), official, {prefix + k: v.detach() for k, v in model.state_dict().items()}


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the prefixes of DDP, torch.compile, loss head and ACT wrapper, and without `LEFT_OUT`.

    Errors: `InputError` when two names become one.
    """
    state: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = bare_name(key)
        if LEFT_OUT.fullmatch(name):
            continue
        if name in state:
            raise InputError(f"the state dict holds {name!r} twice, under different prefixes")
        state[name] = value
    return state


def check_state(state: Mapping[str, Any], config: ModelConfig) -> None:
    """Refuse a state dict that does not fit `config` in names and shapes, or holds anything but dense floats.

    Errors: `InputError`, one line that names the keys: missing, unexpected, of a wrong shape or kind.
    """
    specs = RecursiveReasoner.specs(config)
    head, table = "lm_head.weight", "embed_tokens.embedding_weight"
    if config.tied_lm_head and head in state:
        specs[head] = specs[table]
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = type(value).__name__ if not isinstance(value, Tensor) else "meta" if value.is_meta else value.layout
            raise InputError(f"{name} is not a dense tensor but {kind}")
        if value.dtype not in FLOATING:
            raise InputError(f"{name} has dtype {value.dtype}; expected one of {', '.join(map(str, FLOATING))}")
        require(bool(value.isfinite().all()), name, "NaN or infinity", "finite numbers")
    check_fits("the state dict does not fit the config", shapes(state), specs)
    if config.tied_lm_head and head in state and not torch.equal(state[head], state[table]):
        raise InputError(f"{head} differs from {table}, but the model ties them")
