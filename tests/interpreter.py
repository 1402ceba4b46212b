"""Triton's interpreter as these tests need it: the package's own patch of it, and sums in one order.

Its products are numpy's, whose BLAS sums a row in an order that follows the row's place in the tile on some processors,
and shares a product between threads. Here each row is multiplied by itself, so that bits show what the kernel does.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np


def prepare() -> None:
    """Prepare the interpreter, and let it multiply row by row. Call it before the first launch."""
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    from rtm_kernels.ops import interpreted

    tl, patch_all = interpreter.tl, interpreter._patch_lang
    if getattr(patch_all, "once", False):
        return

    def dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        rows, columns = (t.data.astype(d.data.dtype, copy=False) for t in (a, b))
        product = np.matmul(rows[..., None, :], columns[..., None, :, :])[..., 0, :]
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    def patch_once(fn: Any) -> Any:
        langs = [lang for lang in (tl, tl.core) if any(value is lang for value in fn.__globals__.values())]
        fresh = not langs or any(tl.core.is_builtin(part.load) for part in (*langs, tl))
        return patch_all(fn) if fresh else interpreter._LangPatchScope()

    assert not interpreted.prepare.cache_info().currsize, "a kernel was interpreted before its products were replaced"
    patch_once.once = True  # type: ignore[attr-defined]
    interpreter._patch_lang, interpreter.InterpreterBuilder.create_dot = patch_once, dot
    interpreted.prepare()  # after the products, which it gives bfloat16 as float32
