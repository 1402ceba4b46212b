"""swiglu_norm and mixer_norm: what wrong input is told. The rest is in `test_half_layers.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rtm_kernels.errors import InputError
from rtm_kernels.ops.swiglu_norm.api import mixer_norm, swiglu_norm

SIZES = {swiglu_norm: 16, mixer_norm: 5}
"""Op -> the size of the axis that it mixes."""


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        (swiglu_norm, {"x": torch.ones(2, 5, 16, dtype=torch.int64)}, r"x\.dtype"),
        (swiglu_norm, {"x": torch.tensor(1.0), "injection": ()}, r"x\.shape"),
        (swiglu_norm, {"x": torch.ones(2, 5, 15), "injection": ()}, r"gate_up_weight\.shape"),
        (swiglu_norm, {"down_weight": torch.ones(16, 25)}, r"gate_up_weight\.shape"),
        (swiglu_norm, {"down_weight": torch.ones(16)}, r"down_weight\.shape"),
        (swiglu_norm, {"gate_up_weight": torch.ones(48, 16, dtype=torch.int32)}, r"gate_up_weight\.dtype"),
        (swiglu_norm, {"injection": (torch.ones(5, 16),)}, r"injection\[0\]\.shape"),
        (swiglu_norm, {"injection": (torch.ones(2, 5, 16).double(),)}, r"injection\[0\]\.dtype"),
        (swiglu_norm, {"eps": -1.0}, "eps=-1.0"),
        (swiglu_norm, {"impl": "fast"}, "impl='fast'"),
        (mixer_norm, {"x": torch.ones(5, 16), "injection": ()}, r"x\.shape"),
        (mixer_norm, {"x": torch.ones(2, 6, 16), "injection": ()}, r"gate_up_weight\.shape"),
        (mixer_norm, {"norm_axis": "batch"}, "norm_axis='batch'"),
    ],
)
def test_wrong_input_is_named(op: Any, changes: dict[str, Any], message: str) -> None:
    size = SIZES[op]
    weights = {"gate_up_weight": torch.ones(48, size), "down_weight": torch.ones(size, 24)}
    with pytest.raises(InputError, match=message):
        op(**{"x": torch.ones(2, 5, 16), **weights, "injection": (torch.ones(2, 5, 16),), **changes})
