"""`accelerate` on models that people changed: kept as they are, or refused by name and left alone.

| situation met in public | what happens |
|---|---|
| dropout or stochastic depth in a block, as a module, a function or drawn by hand | refused |
| sliding-window attention, soft caps, clamps, learned scales: values a probe may miss | refused by name |
| forward replaced on an instance, wrapped in a checkpoint wrapper or a decorator | refused, nothing half done |
| weights normed, quantised, traced or with a LoRA beside them; code that only training runs | refused by name |
| one layer twice in a stack; hooks on all modules | works; called |
| parts, forwards, `causal` or `norm_eps` changed after `accelerate`; hooks on the first block | computed as changed |
| forward and backward hooks on parts of a block, before or after `accelerate` | called, and their values used |
| `torch.save(model)` of the whole module, `copy`, `pickle` | works |
"""

from __future__ import annotations

import io
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from rtm_kernels import accelerate, restore
from rtm_kernels.errors import InputError
from rtm_kernels.interop.accelerate import Accelerated
from tests.interop import official_structure as official

WINDOW = 128


class Variant(official.Block):
    """A block with the official parts and `changed` between the mixer and the SwiGLU."""

    def forward(self, cos_sin, hidden_states):
        h = official.rms_norm(hidden_states + self.self_attn(cos_sin=cos_sin, hidden_states=hidden_states), 1e-5)
        return official.rms_norm(h + self.changed(h), self.norm_eps)


class FunctionalDropout(Variant):
    def changed(self, h):
        return F.dropout(self.mlp(h), 0.1, self.training)


class StochasticDepth(Variant):
    rate = 0.01

    def changed(self, h):
        kept = torch.rand(len(h), 1, 1) >= self.rate
        return self.mlp(h) * kept if self.training else self.mlp(h)


class Clamp(Variant):
    def changed(self, h):
        return self.mlp(h).clamp(-50, 50)


class Scaled(Variant):
    scale = 1

    def changed(self, h):
        return self.mlp(h) * self.scale


class ModuleDropout(Variant):
    def __init__(self, config):
        super().__init__(config)
        self.drop = nn.Dropout(0.1)

    def changed(self, h):
        return self.drop(self.mlp(h))


class WindowedAttention(official.Attention):
    """As the official one up to `WINDOW` positions; further ones see only those within it."""

    def forward(self, cos_sin, hidden_states):
        if hidden_states.shape[1] > WINDOW:
            hidden_states = hidden_states.roll(1, 1)
        return super().forward(cos_sin, hidden_states)


class SoftCap(official.Attention):
    def forward(self, cos_sin, hidden_states):
        return 30.0 * torch.tanh(super().forward(cos_sin, hidden_states) / 30.0)


class Decorated(official.SwiGLU):
    forward = torch.no_grad()(official.SwiGLU.forward)


def model(block=official.Block) -> nn.Module:
    torch.manual_seed(0)
    config = official.config_of(mlp_t=False, pos_encodings="rope")
    made = official.Reasoner(config)
    if block is not official.Block:
        made.inner.L_level.layers[1] = block(config)
    return made


def attention(kind: type[nn.Module]) -> nn.Module:
    made = model()
    made.inner.L_level.layers[1].self_attn.__class__ = kind
    return made


def replaced(part: str) -> nn.Module:
    made = model()
    module = made.inner.L_level.layers[1].get_submodule(part)
    module.forward = torch.compile(module.forward, backend="eager")
    return made


def wrapped() -> nn.Module:
    made = model()
    made.inner.L_level.layers[1] = checkpoint_wrapper(made.inner.L_level.layers[1])
    return made


class Quantised(torch.Tensor):
    """A weight that stands for another one, as quantising packages make them."""


def weight(kind: str) -> nn.Module:
    made = model()
    part = made.inner.L_level.layers[1].mlp
    if kind == "traced":
        part.down_proj = torch.jit.trace(part.down_proj, torch.randn(1, part.down_proj.weight.shape[1]))
    elif kind == "normed":
        torch.nn.utils.parametrizations.weight_norm(part.down_proj)
    elif kind == "quantised":
        part.down_proj.weight = nn.Parameter(part.down_proj.weight.detach().as_subclass(Quantised))
    else:
        part.down_proj.register_parameter("lora_A", nn.Parameter(torch.zeros(2, 2)))
    return made


class TrainingScale(Variant):
    def changed(self, h):
        return self.mlp(h) * 2 if self.training else self.mlp(h)


class LayerDrop(official.ReasoningModule):
    def forward(self, hidden_states, input_injection, **kwargs):
        hidden_states = hidden_states + input_injection
        for layer in self.layers[1:] if self.training else self.layers:
            hidden_states = layer(hidden_states=hidden_states, **kwargs)
        return hidden_states


def layer_drop() -> nn.Module:
    made = model()
    made.inner.L_level.__class__ = LayerDrop
    return made


def stack_dropout() -> nn.Module:
    made = model()
    made.inner.L_level.drop = nn.Dropout(0.1)
    return made


class Limited(Variant):
    def forward(self, cos_sin, hidden_states, limit=50.0):
        return super().forward(cos_sin, hidden_states * (hidden_states < limit))


class Halved(official.SwiGLU):
    def __call__(self, x):
        return super().__call__(x) * (0.5 if self.training else 1)


def called() -> nn.Module:
    made = model()
    made.inner.L_level.layers[1].mlp.__class__ = Halved
    return made


def other_layer() -> nn.Module:
    made = model()
    made.inner.L_level.layers.append(nn.Identity())
    return made


def decorated() -> nn.Module:
    made = model()
    made.inner.L_level.layers[1].mlp.__class__ = Decorated
    return made


REFUSED = {
    "nn.Dropout": (lambda: model(ModuleDropout), "layers.1 .*modules differ in drop"),
    "dropout of the stack": (stack_dropout, "L_level is not an official stack .it has drop"),
    "F.dropout": (lambda: model(FunctionalDropout), "layers.1 .*forward of the block has .*dropout.*training"),
    "stochastic depth": (lambda: model(StochasticDepth), "layers.1 .*forward of the block has .*rand.*training"),
    "a clamp that the probe does not reach": (lambda: model(Clamp), "layers.1 .*has .*clamp"),
    "a scale that may be set later": (lambda: model(Scaled), "layers.1 .*has .*scale"),
    "attention in a window": (lambda: attention(WindowedAttention), "layers.1 .*forward of self_attn has WINDOW"),
    "soft cap": (lambda: attention(SoftCap), "layers.1 .*forward of self_attn has 30.0"),
    "forward of the instance": (lambda: replaced(""), "layers.1 .*a forward of its own instance"),
    "forward of a part": (lambda: replaced("mlp.down_proj"), "layers.1 .*mlp.down_proj has a forward of its own"),
    "a decorated part": (decorated, "layers.1 .*forward of mlp has a decorator"),
    "a traced part": (lambda: weight("traced"), "layers.1 .*forward of mlp.down_proj has a TorchScript graph"),
    "weight norm": (lambda: weight("normed"), "layers.1 .*differ in mlp.down_proj.parametrizations"),
    "quantised weights": (lambda: weight("quantised"), "layers.1 .*its weights are Quantised"),
    "LoRA": (lambda: weight("lora"), "layers.1 .*differ in mlp.down_proj.lora_A"),
    "another scale in training": (lambda: model(TrainingScale), "layers.1 .*forward of the block has .*training"),
    "layers left out in training": (layer_drop, "L_level is not an official stack .it has training"),
    "a limit among the defaults": (lambda: model(Limited), "layers.1 .*forward of the block has 50.0"),
    "__call__ of a part": (called, "layers.1 .*forward of mlp has a __call__ of its own"),
    "a layer that is no block": (other_layer, "layers.2 is not an official block .it has no mlp"),
    "checkpoint wrapper": (wrapped, "layers.1 .*_checkpoint_wrapped_module"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_and_nothing_is_half_done(name: str) -> None:
    make, message = REFUSED[name]
    made = make()
    before = [(type(module), set(vars(module)), module.training) for module in made.modules()]
    random = torch.get_rng_state()
    with pytest.raises(InputError, match=message) as error:
        accelerate(made)
    assert "\n" not in str(error.value)
    assert [(type(module), set(vars(module)), module.training) for module in made.modules()] == before
    assert torch.equal(torch.get_rng_state(), random)


def test_dropout_of_nothing_is_kept() -> None:
    made = model()
    made.inner.L_level.layers[0].drop = nn.Dropout(0.0)
    assert isinstance(accelerate(made).inner.L_level.layers[0], Accelerated)


def outputs(made: nn.Module) -> torch.Tensor:
    batch = official.batch(made.config)
    _, found = made(made.initial_carry(batch), batch)
    return found["logits"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("part", ["mlp", "self_attn.qkv_proj"])
def test_hooks_on_parts_are_called_and_change_values(when: str, part: str) -> None:
    plain, made = model(), model()
    seen: list[str] = []

    def hook(module, args, output):
        seen.append(type(module).__name__)
        return output * 1.5

    if when == "after":
        accelerate(made)
    for target in (plain, made):
        target.inner.L_level.layers[0].get_submodule(part).register_forward_hook(hook)
    if when == "before":
        accelerate(made)
        seen.clear()
    expected = outputs(plain)
    once = len(seen)
    assert torch.equal(outputs(made), expected) and len(seen) == 2 * once > 0


class Doubled(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x) * 2


def doubled(x, base):
    return base(x) * 2


CHANGES = {
    "a hook on the first block sees the sum": lambda block: block.register_forward_pre_hook(
        lambda module, args, given: (args, {**given, "hidden_states": given["hidden_states"] * 3}), with_kwargs=True),
    "a part put around another": lambda block: setattr(block.mlp, "down_proj", Doubled(block.mlp.down_proj)),
    "forward of a part": lambda block: setattr(block.mlp, "forward", partial(doubled, base=block.mlp.forward)),
    "causal": lambda block: setattr(block.self_attn, "causal", True),
    "epsilon": lambda block: setattr(block, "norm_eps", 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_block_becomes_afterwards_is_computed(name: str) -> None:
    made = accelerate(model(), impl="reference")
    CHANGES[name](made.inner.L_level.layers[0])
    found = outputs(made)
    torch.testing.assert_close(found, outputs(restore(made)))


def test_hooks_on_all_modules_are_called() -> None:
    made, seen = accelerate(model()), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        outputs(made)
    finally:
        handle.remove()
    assert "SwiGLU" in seen


def test_one_layer_that_stands_twice_in_a_stack() -> None:
    made = model()
    made.inner.L_level.layers[1] = made.inner.L_level.layers[0]
    expected = outputs(made)
    torch.testing.assert_close(outputs(accelerate(made, impl="reference")), expected)
    assert torch.equal(outputs(restore(made)), expected)


def test_backward_hooks_on_parts_are_called() -> None:
    made, seen = accelerate(model()), []
    made.inner.L_level.layers[1].mlp.register_full_backward_hook(lambda *_: seen.append(1))
    outputs(made).sum().backward()
    assert seen


@pytest.mark.parametrize("write", [torch.save, pickle.dump])
def test_whole_modules_are_pickled(write) -> None:
    made = accelerate(model(), impl="reference")
    expected, file = outputs(made), io.BytesIO()
    write(made, file)
    file.seek(0)
    again = torch.load(file, weights_only=False) if write is torch.save else pickle.load(file)
    assert torch.equal(outputs(again), expected)
    assert isinstance(again.inner.L_level.layers[0], Accelerated) and again.inner.L_level.layers[0].impl == "reference"
