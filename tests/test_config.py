"""ModelConfig: derived sizes, JSON, and one clear line for every bad field."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rtm_kernels.config import ModelConfig, inner_width
from rtm_kernels.errors import InputError, RTMError


def config(**changes) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 11, "seq_len": 81} | changes)


@pytest.mark.parametrize(
    ("width", "expansion", "inner"),
    [(512, 4, 1536), (97, 4, 512), (81, 4, 256), (916, 4, 2560), (32, 1.5, 256), (1, 4, 256)],
)
def test_inner_width(width: int, expansion: float, inner: int) -> None:
    assert inner_width(width, expansion) == inner


@pytest.mark.parametrize(
    ("ndim", "length", "prefix"), [(0, 0, 0), (0, 3, 3), (512, 0, 1), (513, 0, 2), (512, 16, 16), (1024, 2, 2)]
)
def test_prefix(ndim: int, length: int, prefix: int) -> None:
    c = config(puzzle_emb_ndim=ndim, puzzle_emb_len=length)
    assert c.prefix_len == prefix and c.latent_len == 81 + prefix


def test_json_round_trip() -> None:
    c = config(arch="hrm", layers={"H_level": 4, "L_level": 4}, expansion=2.5, causal=True, forward_dtype="bfloat16")
    text = c.to_json()
    assert text.endswith("}\n") and list(json.loads(text)) == sorted(json.loads(text))
    assert ModelConfig.from_dict(json.loads(text)) == c
    assert dataclasses.replace(c, H_cycles=7).H_cycles == 7


def test_a_config_does_not_change() -> None:
    layers = {"L_level": 2}
    c = config(layers=layers)
    layers["L_level"] = 9
    assert c.layers == {"L_level": 2}
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.vocab_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("arch", "gpt", "expected one of trm, trm_singlez"),
        ("mixer", "conv", "expected one of mlp, attention"),
        ("norm_axis", "batch", "expected one of sequence, hidden"),
        ("pos_encodings", "alibi", "expected one of none, rope, learned"),
        ("halting", "never", "expected one of q, q_continue"),
        ("forward_dtype", "int8", "expected one of float32"),
        ("vocab_size", 0, "an integer from 1 to 1048576"),
        ("hidden_size", 512.0, "an integer from 1"),
        ("H_cycles", "3", "an integer from 1"),
        ("puzzle_emb_ndim", -1, "an integer from 0"),
        ("expansion", 0, "a positive finite number"),
        ("expansion", 65, "at most 64"),
        ("rms_norm_eps", float("nan"), "a positive finite number"),
        ("halt_exploration_prob", 1.5, "0 to 1"),
        ("causal", 1, "true or false"),
        ("layers", {"L_level": 0}, "an integer from 1 to 256"),
        ("layers", ["L_level"], "a mapping"),
        ("layers", {"L_level": 1, "H_level": 1}, r"one entry for each of the stacks \('L_level',\)"),
    ],
)
def test_bad_fields_are_named(field: str, value: object, allowed: str) -> None:
    with pytest.raises(InputError, match=f"{field}.*is not allowed: .*{allowed}") as error:
        config(**{field: value})
    assert "\n" not in str(error.value) and isinstance(error.value, (RTMError, ValueError))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "attention", "num_heads": 7}, "num_heads=7 is not allowed: a divisor of hidden_size=512"),
        ({"pos_encodings": "rope", "hidden_size": 24}, "num_heads=8 .*RoPE needs an even head width, not 3"),
        ({"puzzle_emb_ndim": 1025, "puzzle_emb_len": 2}, r"puzzle_emb_ndim=1025 .*puzzle_emb_len \* hidden_size = 1"),
        ({"H_cycles": 1 << 17, "L_cycles": 2}, "H_cycles=131072 .*at most 16384"),
        ({"arch": "rins", "layers": {"A": 1, "B": 1}, "adapter_rank": 2, "H_cycles": 257}, "H_cycles=257 .*most 256"),
        ({"arch": "trm_hier6", "L_cycles": 7}, "L_cycles=7 .*six low-level latents"),
    ],
)
def test_fields_that_do_not_go_together(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**changes)


def test_from_dict_names_unknown_and_missing_fields() -> None:
    with pytest.raises(InputError, match=r"unknown config field\(s\) depth, width; known: H_cycles, "):
        ModelConfig.from_dict({"vocab_size": 1, "seq_len": 1, "width": 3, "depth": 2})
    with pytest.raises(InputError, match=r"missing config field\(s\) seq_len, vocab_size"):
        ModelConfig.from_dict({"arch": "trm"})
