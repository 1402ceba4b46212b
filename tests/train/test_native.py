"""Training with `native`: the loss of the reference, and a clear refusal where it cannot run."""

from __future__ import annotations

import dataclasses

import pytest

from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.recursion import native
from rtm_kernels.recursion.warm_up import WarmUp
from rtm_kernels.train.loop import Trainer
from tests.train.support import TINY


@pytest.mark.skipif(native.why_not() is not None, reason=f"{native.why_not()}")
def test_native_steps_train_as_eager_ones() -> None:
    recipe = TINY
    expected = Trainer(recipe).step()
    trainer = Trainer(dataclasses.replace(recipe, native=True))
    assert isinstance(trainer.model.run, WarmUp)
    found = trainer.step()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_native_that_cannot_run_raises() -> None:
    recipe = TINY
    wide = dataclasses.replace(recipe, native=True, model=dataclasses.replace(recipe.model, forward_dtype="bfloat16"))
    with pytest.raises(BackendUnavailable, match=r"native=True cannot run: the model computes in torch\.bfloat16"):
        Trainer(wide)
