"""Triton 3.6's interpreter with numpy 2.4: a loop bound that a kernel computes is a one-element array there,
which numpy no longer turns into an integer. Triton 3.7 and later take the element; so does this."""

from __future__ import annotations

import importlib.util
from typing import Any


def take_loop_bounds() -> None:
    """Let interpreted kernels loop up to a bound that is not a constant. Call it before the first launch."""
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor
    if getattr(patch, "takes_loop_bounds", False):
        return

    def patch_and_take(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    patch_and_take.takes_loop_bounds = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = patch_and_take
