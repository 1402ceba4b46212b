"""Training with its steps before the first gradient in the C++ executor: the gradients of the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rtm_kernels.recursion import native, warm_up
from tests.small_models import ARCHS, make

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"{native.why_not()}")


def gradients(arch: str, fused: bool) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = make(arch).train()
    assert warm_up.why_not(model) is None
    model.run = warm_up.WarmUp(model) if fused else None
    tokens = torch.randint(0, model.config.vocab_size, (3, model.config.seq_len))
    x = model.embed(tokens, torch.zeros(3, dtype=torch.int32))
    latents = {name: torch.randn(x.shape) for name in model.program.carried}
    values, logits, _ = model.act_step(latents, x)
    (logits.square().mean() + sum(v.mean() for v in values.values())).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("arch", list(ARCHS))
def test_gradients_are_those_of_the_reference(arch: str) -> None:
    expected_logits, expected = gradients(arch, False)
    logits, found = gradients(arch, True)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-3)
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        error = torch.linalg.vector_norm(found[name] - value)
        assert error <= 1e-3 * torch.linalg.vector_norm(value) + 1e-6, name


def test_only_steps_without_gradient_run_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[int, int]] = []
    run = native.NativeExecutor.run

    def spy(self: native.NativeExecutor, latents: object, x: object, begin: int = 0, end: int | None = None) -> object:
        ran.append((begin, len(self.program) if end is None else end))
        return run(self, latents, x, begin, end)  # type: ignore[arg-type]

    monkeypatch.setattr(native.NativeExecutor, "run", spy)
    model = make("trm").train()
    first = next(i for i, step in enumerate(model.program.steps) if step.grad)
    gradients("trm", True)
    assert ran == [(0, first)] and first > 0
    model.run = warm_up.WarmUp(model)
    with torch.no_grad():
        model.act_step(model.initial_latents(2), model.embed(torch.zeros(2, model.config.seq_len, dtype=torch.int32),
                                                             torch.zeros(2, dtype=torch.int32)))  # fmt: skip
    assert ran[1:] == [(0, len(model.program))]
