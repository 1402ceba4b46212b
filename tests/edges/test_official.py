"""State dicts and configs as official training, DDP and hydra leave them.

| situation met in public | what happens |
|---|---|
| state dict of a model in DistributedDataParallel, `module.` first | loads |
| `puzzle_emb.local_*` and rotary tables saved with the weights | left out |
| names of parts wrapped by FSDP, torch.compile or checkpointing; the count of an averaged model | load; left out |
| config of a hydra file, with `${.hidden_size}`, 7.0 and 1e-5; values of NumPy, a dtype | read |
| NaN, float8, meta or integer weights | refused by name |
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rtm_kernels.errors import InputError
from rtm_kernels.interop import from_official
from tests.interop import official_structure as official

FIELDS = ("vocab_size", "seq_len", "hidden_size", "expansion", "num_heads", "H_cycles", "L_cycles", "L_layers", "mlp_t",
          "pos_encodings", "puzzle_emb_ndim", "puzzle_emb_len", "num_puzzle_identifiers", "halt_max_steps",
          "halt_exploration_prob", "forward_dtype")  # fmt: skip


def given() -> tuple[dict, dict]:
    torch.manual_seed(0)
    config = official.config_of(mlp_t=False, pos_encodings="rope")
    return {name: getattr(config, name) for name in FIELDS}, official.Reasoner(config).state_dict()


def logits(config: dict, state: dict) -> torch.Tensor:
    model = from_official("trm", config, state)
    batch = {"inputs": torch.arange(18).view(2, 9) % 11, "puzzle_identifiers": torch.tensor([0, 2])}
    return model(model.initial_carry(batch), batch)[1]["logits"]


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
@pytest.mark.parametrize("within", ["inner.", "layers.0.", "mlp."])
def test_wrappers_within_a_name(wrapper: str, within: str) -> None:
    config, state = given()
    written = {name.replace(within, within + wrapper): value for name, value in state.items()}
    assert torch.equal(logits(config, written | {"n_averaged": torch.tensor(3)}), logits(config, state))


@pytest.mark.parametrize("prefix", ["module.", "module.model.", "model.module._orig_mod.", "_orig_mod.module.model."])
def test_wrappers_in_any_order(prefix: str) -> None:
    config, state = given()
    assert torch.equal(logits(config, {prefix + name: value for name, value in state.items()}), logits(config, state))


def test_buffers_of_training_are_left_out() -> None:
    config, state = given()
    left = {
        "inner.puzzle_emb.local_weights": torch.zeros(4, 32),
        "inner.puzzle_emb.local_ids": torch.zeros(4, dtype=torch.int32),
        "inner.rotary_emb.cos_cached": torch.zeros(10, 8),
        "inner.rotary_emb.sin_cached": torch.zeros(10, 8),
    }
    assert torch.equal(logits(config, state | left), logits(config, state))


def test_references_and_whole_floats_in_configs() -> None:
    config, state = given()
    written = config | {"puzzle_emb_ndim": "${.hidden_size}", "num_heads": 4.0, "H_cycles": "${arch.L_cycles}"}
    written["rms_norm_eps"] = "1e-5"  # what YAML makes of 1e-5
    written |= {"vocab_size": np.int64(11), "expansion": np.float64(4), "forward_dtype": torch.float32}
    assert torch.equal(logits(written, state), logits(config, state))


@pytest.mark.parametrize("value", ["${.unknown}", "${oc.env:HOME}", "${.puzzle_emb_ndim}", "x${.hidden_size}"])
def test_a_reference_to_nothing_is_named(value: str) -> None:
    config, state = given()
    with pytest.raises(InputError, match=r"^puzzle_emb_ndim=.*is not allowed: a value, or a reference"):
        from_official("trm", config | {"puzzle_emb_ndim": value}, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.fill_(math.nan), "lm_head.weight='NaN or infinity' is not allowed"),
        (lambda w: w.index_fill_(0, torch.tensor(0), math.inf), "lm_head.weight='NaN or infinity' is not allowed"),
        (lambda w: w.to(torch.float8_e4m3fn), "lm_head.weight has dtype torch.float8_e4m3fn"),
        (lambda w: w.to(torch.int32), "lm_head.weight has dtype torch.int32"),
        (lambda w: w.to("meta"), "lm_head.weight is not a dense tensor but meta"),
    ],
)
def test_weights_that_are_no_weights_are_named(change, message: str) -> None:
    config, state = given()
    state["inner.lm_head.weight"] = change(state["inner.lm_head.weight"].clone())
    with pytest.raises(InputError, match=message):
        from_official("trm", config, state)
