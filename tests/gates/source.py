"""What a launch computes by its source: Triton's interpreter runs it in place, on the buffers that compiled code uses.

Compiled code may sum in another order, but rounds where the source does. So of results in 16 bits it changes few, those
where a sum lies between two numbers, and of wider ones their last bits. A sum that is rounded once more on its way
changes about half of them, however small its error is against float64.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtm_kernels.ops import interpreted

Program = tuple[int, ...]

OTHERS = 0.03
"""Share of 16-bit results that may be other numbers than the interpreter's."""
LAST_BITS = 2.0**-15
"""Largest difference of wider results, relative to the largest of them."""
CARRIED = 2.0**-9
"""The same where a launch goes on for long with results that it has rounded to 16 bits: half a unit of bfloat16."""


def interpret(
    function: Any, args: Sequence[Any], kwargs: dict[str, Any], grid: tuple[int, ...], programs: Sequence[Program]
) -> None:
    """Run these programs of a compiled kernel's source with the arguments of a launch."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpretedFunction, _implicit_cvt, _patch_lang, interpreter_builder
    from triton.runtime.jit import JITFunction

    interpreted.prepare()
    scope = _patch_lang(FunctionType(interpret.__code__, {"tl": tl, "core": tl.core}))
    real = JITFunction.__call__
    JITFunction.__call__ = lambda self, *a, **k: InterpretedFunction(self.fn).rewrite()(*a, **k)  # type: ignore[method-assign]
    try:
        source = InterpretedFunction(function.fn).rewrite()  # it may call other kernels' functions
        constant = {name for name, kind in source.__annotations__.items() if "constexpr" in str(kind)}
        named = {name: value for name, value in kwargs.items() if name in function.arg_names}
        given = inspect.getcallargs(source, *args, **named)
        bound = {name: value if name in constant else _implicit_cvt(value) for name, value in given.items()}
        interpreter_builder.set_grid_dim(*grid)
        with np.errstate(all="ignore"):
            for program in programs:
                interpreter_builder.set_grid_idx(*program)
                source(**bound)
    finally:
        JITFunction.__call__ = real  # type: ignore[method-assign]
        scope.restore()


def unlike(compiled: Tensor, source: Tensor, wide: float = LAST_BITS) -> str:
    """What is wrong with a result of compiled code, if it is not that of the source; "" if nothing is."""
    if not compiled.is_floating_point():
        count = int((compiled != source).sum())
        return f"{count} integers are not those of the source" if count else ""
    if bool((compiled.isnan() != source.isnan()).any()):
        return "other values than those of the source are NaN"
    a, b = compiled.nan_to_num().double(), source.nan_to_num().double()
    if compiled.dtype.itemsize == 2:
        share = float((a != b).double().mean())
        return f"{share:.1%} of the results are not those of the source" if share > OTHERS else ""
    worst = float((a - b).abs().max() / b.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    return f"a result is {worst:.1e} of the largest off the source's" if worst > wide else ""
