"""What the native CPU executor is compared with: the same steps of TRM as others run them on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import absent, onnx_session
from rtm_kernels import program as programs
from rtm_kernels.config import inner_width
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.recursion import native
from rtm_kernels.recursion.native_weights import StackWeights
from tests.interop.official_structure import Block, ReasoningModule, config_of

Run = Callable[[], object]
PROGRAM = programs.trm(1, 2)
LAYERS = 2


@dataclass(frozen=True)
class Case:
    """Three steps of TRM on a batch: `z <- f(z + (y + x))` twice, `y <- f(y + z)` once, two layers each."""

    name: str
    mixer: str
    L: int
    D: int
    batch: int
    heads: int = 8

    @property
    def flops(self) -> int:
        """Useful FLOPs: two per multiply-add of the products, nothing else, nothing padded or computed twice."""
        L, D = self.L, self.D
        channel = 3 * L * D * inner_width(D, 4)
        mix = 3 * D * L * inner_width(L, 4) if self.mixer == "mlp" else L * 4 * D * D + 2 * L * L * D
        return 2 * (channel + mix) * LAYERS * len(PROGRAM) * self.batch


CASES = [
    *(Case(f"sudoku_b{b}", "mlp", 97, 512, b) for b in (1, 8, 64)),
    *(Case(f"small_b{b}", "mlp", 81, 128, b) for b in (1, 8, 64)),
    *(Case(f"attention916_b{b}", "attention", 916, 512, b) for b in (1, 8)),
]


class Steps(nn.Module):
    """The steps of a case with the official modules; the level is what `compile_level` makes of it."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = config_of(
            hidden_size=case.D, num_heads=case.heads, mlp_t=case.mixer == "mlp", seq_len=case.L, puzzle_emb_len=0
        )
        self.level = ReasoningModule([Block(config) for _ in range(LAYERS)]).eval()
        shape = (case.batch, case.L, case.D)
        self.x, self.y, self.z = (torch.randn(shape).to(dtype) for _ in range(3))
        self.cos_sin = None if case.mixer == "mlp" else rope_tables(case.L, case.D // case.heads, 10000.0)

    def weights(self) -> StackWeights:
        """The weights of the level for the native executor."""
        heads = getattr(self.level.layers[0].config, "num_heads", 1)
        return StackWeights.from_state_dict(self.level.state_dict(), num_heads=heads, cos_sin=self.cos_sin)

    def run(self, level: Callable[..., Tensor]) -> Tensor:
        """The three steps."""
        y, z = self.y, self.z
        for _ in range(2):
            z = level(z, y + self.x, cos_sin=self.cos_sin)
        return level(y, z, cos_sin=self.cos_sin)


def native_run(case: Case, precision: str = "float32") -> Run:
    steps = Steps(case)
    executor = native.NativeExecutor(PROGRAM, {"L_level": steps.weights()}, precision=precision)
    latents = {"z_H": steps.y, "z_L": steps.z}
    return lambda: executor.run(latents, steps.x)["z_H"]


def eager(case: Case, dtype: torch.dtype) -> Run:
    steps = Steps(case, dtype)
    return lambda: steps.run(steps.level)


def compiled(case: Case, **options: Any) -> Run:
    """`torch.compile` of a level; `freezing=True` lets inductor pack the weights and fold the casts."""
    import torch._inductor.config as inductor

    steps = Steps(case)
    patch = inductor.patch(freezing=options.pop("freezing", False))
    torch.compiler.reset()
    with patch:
        level = torch.compile(steps.level, fullgraph=True, dynamic=False, **options)
        steps.run(level)
    return lambda: steps.run(level)


def onnxruntime_run(case: Case) -> Run:
    """ONNX Runtime with its default optimisations and as many threads as PyTorch has."""
    steps = Steps(case).requires_grad_(False)
    run = onnx_session(
        lambda inputs: (steps.level(inputs["state"], inputs["injection"], cos_sin=steps.cos_sin),),
        {"state": steps.z, "injection": steps.x}, ("out",),
    )  # fmt: skip

    def level(state: Tensor, injection: Tensor, cos_sin: object) -> Tensor:
        return run({"state": state, "injection": injection})[0]

    return lambda: steps.run(level)


PEERS: dict[str, Callable[[Case], Run]] = {
    "eager_float32": lambda case: eager(case, torch.float32),
    "eager_bfloat16": lambda case: eager(case, torch.bfloat16),
    "compile": lambda case: compiled(case),
    "compile_max_autotune_frozen": lambda case: compiled(case, mode="max-autotune", freezing=True),
    "onnxruntime": onnxruntime_run,
    "native_bfloat16": lambda case: native_run(case, "bfloat16"),
    "native_int8": lambda case: native_run(case, "int8"),
}


def missing(name: str) -> str | None:
    """What keeps a peer from running here, or None."""
    if name == "onnxruntime":
        return absent("onnx", "onnxruntime")
    return native.why_not_precision(name.removeprefix("native_")) if name.startswith("native_") else None
