"""Configs and state dicts of the official repositories: what is read, and what is refused in one line."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.interop import checkpoint, from_official, load_official_checkpoint, to_official
from rtm_kernels.interop.official import STACK_LAYERS, model_config
from rtm_kernels.interop.unpickle import read_state
from rtm_kernels.model import RecursiveReasoner

CONFIG = {
    "name": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1", "loss": {"name": "losses@ACTLossHead"},
    "batch_size": 4, "vocab_size": 11, "seq_len": 9, "num_puzzle_identifiers": 3, "hidden_size": 32, "expansion": 4,
    "num_heads": 4, "H_cycles": 2, "L_cycles": 3, "H_layers": 1, "L_layers": 2, "pos_encodings": "rope",
    "puzzle_emb_ndim": 32, "halt_max_steps": 8, "halt_exploration_prob": 0.1, "forward_dtype": "float32",
}  # fmt: skip


def official(arch="trm", **changes):
    """Config and a random state dict of an official model, with the prefixes of a compiled training run."""
    config = CONFIG | changes
    torch.manual_seed(0)
    state = RecursiveReasoner(model_config(arch, config)).state_dict()
    inner = "" if arch == "rsm" else "inner."
    return config, {f"_orig_mod.model.{inner}{name}": value for name, value in state.items()}


def test_defaults_are_those_of_the_official_classes() -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("forward_dtype", "puzzle_emb_ndim")}
    trm = model_config("trm", config)
    assert (trm.forward_dtype, trm.puzzle_emb_len, trm.mixer, trm.halting) == ("bfloat16", 16, "attention", "q")
    assert (trm.rms_norm_eps, trm.rope_theta, trm.puzzle_emb_ndim) == (1e-5, 10000.0, 0)
    assert trm.layers == {"L_level": 2} and not trm.q_continue_target


def test_each_class_fixes_its_own_contract() -> None:
    hrm = model_config("hrm", CONFIG | {"puzzle_emb_len": 16})
    assert hrm.layers == {"H_level": 1, "L_level": 2} and hrm.halting == "q_continue" and hrm.q_continue_target
    assert hrm.prefix_len == 1  # the field puzzle_emb_len does not exist there
    baseline = model_config("transformers_baseline", CONFIG | {"H_cycles": 5, "mlp_t": True})
    assert baseline == model_config("transformer", CONFIG)
    assert baseline.layers == {"H_level": 1} and len(baseline.program) == 1 and not baseline.q_continue_target
    assert baseline.mixer == "attention"
    rsm = model_config("rsm", CONFIG | {"mlp_t": True})
    assert rsm.norm_axis == "hidden" and rsm.tied_lm_head and rsm.halting == "settle" and rsm.prefix_len == 16
    assert model_config("rsm", CONFIG | {"puzzle_emb_ndim": 0, "puzzle_emb_len": 16}).prefix_len == 0
    assert model_config("trm", CONFIG | {"puzzle_emb_ndim": 0, "puzzle_emb_len": 16}).prefix_len == 16
    learned = model_config("trm", CONFIG | {"no_ACT_continue": False})
    assert learned.halting == "q_continue" and learned.q_continue_target


@pytest.mark.parametrize("arch", STACK_LAYERS)
def test_weights_go_in_and_come_back(arch: str) -> None:
    config, state = official(arch)
    model = from_official(arch, config, state)
    assert not model.training
    name, again, weights = to_official(model, batch_size=4)
    assert name == ("transformers_baseline" if arch == "transformer" else arch)
    assert {f"_orig_mod.model.{key}" for key in weights} == state.keys()
    assert all(torch.equal(weights[key.removeprefix("_orig_mod.model.")], value) for key, value in state.items())
    assert from_official(name, again, weights).config.program == model.config.program


@pytest.mark.parametrize("prefix", ["", "inner.", "model.inner.", "_orig_mod.model.inner.", "_orig_mod."])
def test_any_prefix_is_dropped(prefix: str) -> None:
    config, state = official()
    bare = {key.removeprefix("_orig_mod.model.inner."): value for key, value in state.items()}
    model = from_official("trm", config, {prefix + key: value for key, value in bare.items()})
    assert all(torch.equal(value, bare[key]) for key, value in model.state_dict().items())


def test_half_precision_weights_become_float32_parameters() -> None:
    config, state = official(forward_dtype="bfloat16")
    model = from_official("trm", config, {key: value.to(torch.bfloat16) for key, value in state.items()})
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert model.H_init.dtype == torch.bfloat16


def refuses(message: str, arch="trm", config=None, state=None) -> None:
    default_config, default_state = official()
    with pytest.raises(InputError, match=message) as error:
        from_official(arch, default_config | (config or {}), state if state is not None else default_state)
    assert "\n" not in str(error.value)


KEY = "_orig_mod.model.inner.lm_head.weight"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "missing 'lm_head.weight'"),
        (torch.ones(11, 31), r"lm_head.weight has shape \(11, 31\); the config asks for \(11, 32\)"),
        (torch.ones(11, 32).to_sparse(), "lm_head.weight is not a dense tensor but torch.sparse_coo"),
        ([1.0], "lm_head.weight is not a dense tensor but list"),
        (torch.ones(11, 32, dtype=torch.int64), "lm_head.weight has dtype torch.int64"),
    ],
)
def test_a_weight_that_does_not_fit_is_refused(value: object, message: str) -> None:
    state = official()[1] | {KEY: value}
    refuses(message, state={key: kept for key, kept in state.items() if kept is not None})


def test_refusals() -> None:
    config, state = official()
    refuses(r"arch='foo' is not allowed: expected one of trm, ", arch="foo")
    with pytest.raises(InputError, match="lacks L_cycles, vocab_size"):
        from_official("trm", {k: v for k, v in config.items() if k not in ("L_cycles", "vocab_size")}, state)
    refuses("hidden_size=0", config={"hidden_size": 0})
    refuses("unexpected 'extra.bias'", state=state | {"extra.bias": torch.zeros(1)})
    refuses("holds 'lm_head.weight' twice", state=state | {"lm_head.weight": state[KEY]})
    refuses("act_inference=True is not supported", arch="transformer", config={"act_inference": True})
    huge = {"vocab_size": 1 << 20, "hidden_size": 1 << 20, "num_heads": 1 << 10}  # nothing is allocated for it
    refuses("has shape", config=huge, state=state)


def test_tied_heads_must_agree() -> None:
    config, state = official("rsm")
    model = from_official("rsm", config, {k: v for k, v in state.items() if "lm_head" not in k})
    assert model.lm_head.weight is model.embed_tokens.embedding_weight
    state["_orig_mod.model.lm_head.weight"] = state["_orig_mod.model.lm_head.weight"] + 1
    refuses("lm_head.weight differs from embed_tokens", arch="rsm", config=config, state=state)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"causal": True}, "causal=True"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"norm_axis": "hidden"}, "norm_axis='hidden'"),
        ({"halting": "cumulative"}, "halting='cumulative'"),
        ({"tied_lm_head": True}, "tied_lm_head=True"),
    ],
)
def test_what_the_official_class_cannot_express_is_named(change: dict, named: str) -> None:
    config = dataclasses.replace(model_config("trm", CONFIG), **change)
    with pytest.raises(InputError, match=f"cannot express .*{named}"):
        to_official(RecursiveReasoner(config))
    hrm = dataclasses.replace(model_config("hrm", CONFIG), puzzle_emb_len=3)
    with pytest.raises(InputError, match="puzzle_emb_len=3"):
        to_official(RecursiveReasoner(hrm))
    rins = ModelConfig(vocab_size=3, seq_len=4, arch="rins", hidden_size=8, num_heads=1, layers={"A": 1, "B": 1})
    with pytest.raises(InputError, match=f"arch='rins' has no official class; .*{', '.join(STACK_LAYERS)}"):
        to_official(RecursiveReasoner(rins))


def test_checkpoints(tmp_path) -> None:
    config, state = official()
    path = tmp_path / "step_1"
    torch.save(state, path)
    loaded = load_official_checkpoint(path)
    assert from_official("trm", config, loaded).state_dict().keys() == loaded.keys()
    torch.save({"model_state": state, "optimizer_states": [], "step": 3}, path)
    assert read_state(path).keys() == state.keys()
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        load_official_checkpoint(path)


def test_old_torch_reads_no_pickles(tmp_path, monkeypatch) -> None:
    path = tmp_path / "step_1"
    torch.save({"a": torch.ones(1)}, path)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(BackendUnavailable, match=r"torch >= 2.10; this is torch 2.9.1"):
        checkpoint.load_official_checkpoint(path)
