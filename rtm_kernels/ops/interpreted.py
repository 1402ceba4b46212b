"""What Triton's interpreter lacks for kernels that are debugged with TRITON_INTERPRET=1: bfloat16, and loop bounds.

numpy has no bfloat16, so the interpreter keeps bit patterns in uint16 and computes with those as integers. Here such
operands are widened to float32, and results are rounded to the nearest bfloat16, ties to even, as the hardware does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np


def widen(bits: Any) -> Any:
    """float32 values of bfloat16 bit patterns."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values: Any) -> Any:
    """bfloat16 bit patterns of values, rounded to nearest even; every NaN becomes 0x7fc0."""
    with np.errstate(all="ignore"):
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).reshape(np.shape(values))
    nearest = ((bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(bits & 0x7FFFFFFF > 0x7F800000, np.uint16(0x7FC0), nearest)


@functools.cache
def prepare() -> None:
    """Patch the interpreter, once per process, before the first launch."""
    _take_loop_bounds()
    _compute_bfloat16()


def _take_loop_bounds() -> None:
    """Let a loop run up to a computed bound: an array of one element, which numpy 2.4 does not convert."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_take(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_take


def _compute_bfloat16() -> None:
    """Replace the operations of the interpreter that would multiply, add, compare or convert bit patterns."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    plain = {n: getattr(builder, n) for n in ("cast_impl", "create_fp_to_fp", "binary_op", "unary_op", "create_dot")}

    def short(dtype: Any) -> bool:
        return bool(dtype.scalar == tl.bfloat16)

    def wide(t: Any) -> Any:
        return handle(widen(t.data), tl.float32) if short(t.dtype) else t

    def cast(name: str) -> Callable[..., Any]:
        def convert(self: Any, source: Any, to: Any, *rounding: Any) -> Any:
            if not short(source.dtype) and not short(to):
                return plain[name](self, source, to, *rounding)
            data = wide(source).data
            return handle(narrow(data) if short(to) else data.astype(interpreter._get_np_dtype(to)), to.scalar)

        return convert

    def operation(name: str, count: int) -> Callable[..., Any]:
        def apply(self: Any, *args: Any) -> Any:
            if not short(args[0].dtype):
                return plain[name](self, *args)
            out = args[count](*(wide(t).data for t in args[:count]))
            return handle(out if out.dtype == bool else narrow(out), args[0].dtype.scalar)

        return apply

    builder.cast_impl, builder.create_fp_to_fp = cast("cast_impl"), cast("create_fp_to_fp")
    builder.binary_op, builder.unary_op = operation("binary_op", 2), operation("unary_op", 1)
    builder.create_dot = lambda self, a, b, *rest: plain["create_dot"](self, wide(a), wide(b), *rest)
    builder.get_bf16 = lambda self, value: handle(narrow(np.array([value], np.float32)), tl.bfloat16)
