"""Triton's interpreter as these tests need it, in two places.

Triton 3.6 with numpy 2.4: a loop bound that a kernel computes is a one-element array there, which numpy no longer turns
into an integer. Triton 3.7 and later take the element; so does this.

Its products are numpy's, whose BLAS sums a row in an order that follows the row's place in the tile on some processors,
and shares a product between threads. Here each row is multiplied by itself, so that bits show what the kernel does.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np


def take_loop_bounds() -> None:
    """Let interpreted kernels loop up to a computed bound, and multiply row by row. Call it before the first launch."""
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    tl, patch, patch_all = interpreter.tl, interpreter._patch_lang_tensor, interpreter._patch_lang
    if getattr(patch, "takes_loop_bounds", False):
        return

    def patch_and_take(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        rows, columns = (t.data.astype(d.data.dtype, copy=False) for t in (a, b))
        product = np.matmul(rows[..., None, :], columns[..., None, :, :])[..., 0, :]
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    def patch_once(fn: Any) -> Any:
        langs = [lang for lang in (tl, tl.core) if any(value is lang for value in fn.__globals__.values())]
        fresh = not langs or any(tl.core.is_builtin(part.load) for part in (*langs, tl))
        return patch_all(fn) if fresh else interpreter._LangPatchScope()

    patch_and_take.takes_loop_bounds = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor, interpreter._patch_lang = patch_and_take, patch_once
    interpreter.InterpreterBuilder.create_dot = dot
