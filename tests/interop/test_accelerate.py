"""accelerate and restore on modules with the structure of the official models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rtm_kernels import accelerate, restore
from rtm_kernels.errors import BackendUnavailable, InputError
from rtm_kernels.interop.accelerate import Accelerated
from tests.interop import official_structure as official

NAMES = tuple(official.models())


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if name == "trm_bfloat16":
        return official.Reasoner(official.config_of(forward_dtype="bfloat16"))
    return official.models()[name]


def config(model: nn.Module):
    return next(m.config for m in model.modules() if hasattr(m, "config"))


def accelerated(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Accelerated)]


def run(head: nn.Module, steps: int = 2) -> dict[str, torch.Tensor]:
    """Outputs, losses, latents and gradients of some training steps, by name."""
    batches = [official.batch(config(head), seed) for seed in range(steps)]
    carry, values = head.initial_carry(batches[0]), {}
    head.train().zero_grad()
    for step, batch in enumerate(batches):
        carry, loss, _, outputs, _ = head(["logits", "q_halt_logits"], carry=carry, batch=batch)
        loss.backward()
        values |= {f"{step}.{key}": value for key, value in outputs.items()} | {f"{step}.loss": loss.detach()}
        values |= {f"{step}.{key}": value for key, value in vars(getattr(carry, "inner_carry", object)).items()
                   if isinstance(value, torch.Tensor)}  # fmt: skip
    values |= {f"grad.{name}": p.grad.clone() for name, p in head.named_parameters()}
    sparse = next(m for m in head.modules() if hasattr(m, "local_weights"))
    values["grad.puzzle_emb"], sparse.local_weights.grad = sparse.local_weights.grad, None
    return values


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [key for key in got if not torch.equal(got[key], expected[key])] == []


@pytest.mark.parametrize("name", [*NAMES, "trm_bfloat16"])
def test_outputs_gradients_and_state_stay(name: str) -> None:
    head = official.LossHead(make(name))
    classes = [type(module) for module in head.modules()]
    attributes = [dict(vars(module)) for module in head.modules()]
    before = run(head)
    state = {key: value.data_ptr() for key, value in head.state_dict().items()}

    assert accelerate(head) is head
    stacks = 2 if name == "hrm" else 1
    assert len(accelerated(head)) == stacks * 3  # each stack and its two blocks
    assert_same(run(head), before)
    assert {key: value.data_ptr() for key, value in head.state_dict().items()} == state
    assert head.load_state_dict(head.state_dict()).missing_keys == []

    assert restore(head) is head
    assert [type(module) for module in head.modules()] == classes
    assert [vars(module).keys() for module in head.modules()] == [values.keys() for values in attributes]
    assert_same(run(head), before)


def test_single_z_stack_without_injection() -> None:
    torch.manual_seed(0)
    stack, x = official.SingleZModule([official.Block(official.config_of()) for _ in range(2)]), torch.randn(3, 10, 32)
    expected = stack(hidden_states=x, cos_sin=None)
    assert torch.equal(accelerate(stack)(hidden_states=x, cos_sin=None), expected)


def test_accelerated_stack_folds_the_injection(monkeypatch) -> None:
    from rtm_kernels import block

    model = accelerate(make("trm_mlp"))
    seen = []
    original = block.mixer_norm

    def spy(x, *weights, injection, **options):
        seen.append(len(injection))
        return original(x, *weights, injection=injection, **options)

    monkeypatch.setattr(block, "mixer_norm", spy)
    batch = official.batch(model.config)
    model(model.initial_carry(batch), batch)
    assert seen == [1, 0] * 6  # six applications of two blocks: the first block of each takes the injection


def test_idempotent_and_options_change() -> None:
    model = make("trm_mlp")
    before = [type(module) for module in model.modules()]
    accelerate(model, impl="reference")
    once = [type(module) for module in model.modules()]
    accelerate(accelerate(model))
    assert [type(module) for module in model.modules()] == once
    assert {module.impl for module in model.modules() if hasattr(module, "impl")} == {"auto"}
    restore(restore(model))
    assert [type(module) for module in model.modules()] == before


def test_deepcopy_stands_on_its_own() -> None:
    head = accelerate(official.LossHead(make("trm_att")))
    twin = copy.deepcopy(head)
    assert_same(run(twin), run(head))
    with torch.no_grad():
        head.model.inner.L_level.layers[0].mlp.down_proj.weight.zero_()
    assert not torch.equal(run(twin)["0.logits"], run(head)["0.logits"])
    restore(head)
    assert accelerated(twin) and not accelerated(head)


@pytest.mark.parametrize("name", ["trm_att", "rsm_mlp"])
def test_the_default_device_is_not_read(name: str) -> None:
    """Official scripts build models within torch.device("cuda"), where a random tensor of the CPU has to say so."""
    model = make(name)
    with torch.device("meta"):
        accelerate(model)
    assert accelerated(model)


def test_through_torch_compile() -> None:
    torch.manual_seed(0)
    compiled = torch.compile(official.ReasoningModule([official.Block(official.config_of())]), backend="eager")
    wrapped = nn.ModuleDict({"L_level": compiled})
    x, injection = torch.randn(2, 3, 10, 32)
    keys = list(wrapped.state_dict())
    expected = compiled(x, injection, cos_sin=None)
    accelerate(wrapped)
    assert len(accelerated(wrapped)) == 2 and list(wrapped.state_dict()) == keys
    applied = []
    hook = compiled._orig_mod.layers[0].register_forward_hook(lambda module, *_: applied.append(type(module).__name__))
    assert torch.equal(compiled(x, injection, cos_sin=None), expected)
    assert applied == ["AcceleratedBlock"]  # the wrapper runs the accelerated block, not what it had compiled
    hook.remove()
    restore(wrapped)
    assert torch.equal(compiled(x, injection, cos_sin=None), expected) and accelerated(wrapped) == []


def refuses(model: nn.Module, message: str) -> None:
    classes = [type(module) for module in model.modules()]
    with pytest.raises(InputError, match=message) as error:
        accelerate(model)
    assert "\n" not in str(error.value)
    assert [type(module) for module in model.modules()] == classes


def test_unknown_structures_are_refused() -> None:
    refuses(nn.Linear(2, 2), "Linear holds nothing to accelerate; looked for modules with `layers`, .*mlp.gate_up_proj")
    refuses(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 1), "holds nothing to accelerate")
    mlp, normless, grouped, own = make("trm_mlp"), make("trm_att"), make("trm_att"), make("trm_mlp")
    mlp.inner.L_level.layers[1].norm = nn.LayerNorm(4)
    refuses(
        mlp,
        r"L_level.layers.1 is not an official block \(its weights and modules differ in norm, norm.bias, norm.weight\)",
    )
    del normless.inner.L_level.layers[0].norm_eps
    refuses(normless, r"inner.L_level.layers.0 is not an official block \(it has no norm_eps\)")
    grouped.inner.L_level.layers[0].self_attn.num_key_value_heads = 2
    refuses(grouped, "fewer key and value heads")
    own.inner.L_level.layers[0].impl = "mine"
    refuses(own, "it has impl of its own")


class PreNormBlock(official.Block):
    """The official parameters, another computation."""

    def forward(self, cos_sin, hidden_states):
        h = hidden_states + self.mlp(official.rms_norm(hidden_states, self.norm_eps))
        return h + self.mlp_t(h.transpose(1, 2)).transpose(1, 2)


class ThreeArguments(official.ReasoningModule):
    def forward(self, hidden_states, input_injection, memory, **kwargs):
        return super().forward(hidden_states, input_injection + memory, **kwargs)


def test_another_computation_under_the_same_names_is_refused() -> None:
    model = make("trm_mlp")
    model.inner.L_level.layers[0].__class__ = PreNormBlock
    refuses(model, "inner.L_level computes something else than the official block normalised over sequence or hidden")
    model.inner.L_level.__class__ = ThreeArguments
    refuses(model, "inner.L_level.forward.*memory.* is not that of an official stack")


def test_bad_options_change_nothing(monkeypatch) -> None:
    model = make("trm_mlp")
    monkeypatch.setattr("rtm_kernels.impl.why_not_triton", lambda device: "no GPU here")
    for error, message, options in (
        (InputError, "impl='fast' is not allowed: expected one of auto", {"impl": "fast"}),
        (InputError, "attention='paged' is not allowed", {"attention": "paged"}),
        (BackendUnavailable, "impl='triton' cannot run: no GPU here", {"impl": "triton"}),
    ):
        with pytest.raises(error, match=message):
            accelerate(model, **options)
    assert accelerated(model) == []


def test_one_bad_stack_leaves_the_whole_model_alone() -> None:
    model = make("hrm")
    model.inner.H_level.layers[0].norm_eps = 0.5
    model.inner.H_level.layers[0].self_attn.causal = True
    restore(accelerate(model))  # other values are data, not structure
    with torch.no_grad():
        model.inner.H_level.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    refuses(model, "inner.H_level computes something else")
    assert accelerated(model) == []
