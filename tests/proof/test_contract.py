"""The contract of every registered op, graph capture, and how many variants of a kernel get compiled."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from rtm_kernels.ops.shared import shared_weights
from tests.cases import DIFFERENTIABLE, by_batch, name_of, small_cases
from tests.cases.attention_norm import attention
from tests.cases.case import Case, meta, run
from tests.cases.persistent import launch_persistent
from tests.cases.swiglu import channel, mixer
from tests.cases.token_loss import loss
from tests.proof.launching import PACKAGE, Launch, bits, every_launch, jit_functions, kernel_files

pytest.importorskip("triton")

NAMESPACE = "rtm_kernels::"


class Recorder(TorchDispatchMode):
    """Keeps the arguments of the first call of every op of the package, and the names of all ops that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.names.append(name)
        if name.startswith(NAMESPACE) and name not in self.calls:
            copies = tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, args)
            self.calls[name] = (func, copies)
        return func(*args, **(kwargs or {}))


@cache
def recorded() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """One call of every op of the package, as the small cases make them."""
    with Recorder() as recorder:
        for case in small_cases():
            tensors = case.make(torch.Generator().manual_seed(0))
            run(case, "triton", tensors)
            if case.op in DIFFERENTIABLE:
                with shared_weights():
                    run(case, "triton", tensors)
    return recorder.calls


@pytest.mark.proof("contract")
def test_opcheck_of_every_registered_op(cells: Callable[[int], None]) -> None:
    calls = recorded()
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith(NAMESPACE)}
    assert set(calls) == registered
    for name, (func, args) in calls.items():
        leaves = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, args)
        if name.removeprefix(NAMESPACE) in DIFFERENTIABLE:
            leaves = tree_map(
                lambda t: t.requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t, leaves
            )
        torch.library.opcheck(func, leaves)
    cells(4 * len(calls))


COMPILED = {case.op: case for case in reversed(small_cases()) if case.op in (*DIFFERENTIABLE, "sign_sgd")}


def same_compiled(case: Case, make: dict[str, Tensor]) -> None:
    """The case in one graph gives the bits of eager, forward and backward."""
    torch._dynamo.reset()
    eager = run(case, "triton", make)

    def call(impl: str, tensors: dict[str, Tensor]) -> Any:
        return torch.compile(lambda t: case.call(impl, t), fullgraph=True, backend="aot_eager")(dict(tensors))

    compiled = run(Case(case.op, case.name, case.make, call), "triton", make)
    assert list(map(bits, compiled[0])) == list(map(bits, eager[0]))
    assert {n: bits(t) for n, t in compiled[1].items()} == {n: bits(t) for n, t in eager[1].items()}


@pytest.mark.proof("contract")
@pytest.mark.parametrize("op", COMPILED)
def test_no_graph_break_and_the_bits_of_eager(op: str) -> None:
    same_compiled(COMPILED[op], COMPILED[op].make(torch.Generator().manual_seed(0)))


DEGENERATE = [
    build(shape)
    for shape in ((0, 3, 8), (1, 1, 1), (2, 1, 5), (1, 7, 3))
    for build in (
        lambda s: channel(s, 5, 1, "plain"),
        lambda s: mixer(*s, 5, "hidden", 1, "plain"),
        lambda s: attention(s, 1, 1, "plain", "qk_norm"),
        lambda s: loss(s, "plain", 1.0, 0.1),
    )
]


@pytest.mark.proof("degenerate")
@pytest.mark.parametrize("case", DEGENERATE, ids=name_of)
def test_degenerate_sizes_forward_backward_and_compiled(case: Case) -> None:
    same_compiled(case, case.make(torch.Generator().manual_seed(0)))


@pytest.mark.proof("graphs")
@pytest.mark.parametrize("name", by_batch())
def test_launchers_read_no_value_of_a_tensor(name: str) -> None:
    """On meta tensors reading a value raises, so nothing here makes the host wait for the device."""
    with every_launch(lambda launch: None) as seen:
        by_batch()[name](4)
    assert seen


@pytest.mark.proof("graphs")
def test_a_planted_host_synchronisation_is_found() -> None:
    with pytest.raises(RuntimeError, match="meta tensors"):
        meta(3).sum().item()


@pytest.mark.proof("graphs")
def test_the_persistent_launch_allocates_nothing_and_calls_nothing_else() -> None:
    recursion = launch_persistent(2, 97, "sequence", launch=False)
    with every_launch(lambda launch: None) as seen, Recorder() as recorder:
        recursion.step()
    assert (seen, recorder.names) == (["recursion_kernel"], [])


WAITS = {"item", "tolist", "cpu", "numpy", "nonzero", "synchronize", "masked_select", "unique"}
OUTSIDE = {"reference.py"}
"""What runs on the host before there is a launch."""


@pytest.mark.proof("graphs")
def test_no_launcher_names_a_call_that_waits(cells: Callable[[int], None]) -> None:
    folders = [*(PACKAGE / "ops").iterdir(), PACKAGE / "recursion" / "persistent"]
    paths = [p for f in folders if f.is_dir() for p in sorted(f.glob("*.py")) if p.name not in OUTSIDE]
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WAITS:
                found.append(f"{path.parent.name}/{path.name}:{node.lineno}")
    assert not found
    cells(len(paths))


BATCHES = (*range(1, 201), 255, 256, 257, 300, 512, 768, 1000, 4608)
MOST_VARIANTS = 8


def unspecialised() -> dict[str, set[str]]:
    """Kernel -> arguments that are marked `do_not_specialize`."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in kernel_files():
        for function in jit_functions(path):
            for decorator in function.decorator_list:
                for keyword in decorator.keywords if isinstance(decorator, ast.Call) else ():
                    if keyword.arg == "do_not_specialize":
                        found[function.name] = set(ast.literal_eval(keyword.value))
    return found


def variant(launch: Launch, skip: set[str]) -> tuple[Any, ...]:
    """What Triton compiles anew for: constants, and of each integer its width, being 1, and divisibility by 16."""
    key = []
    for name, value in launch.arguments.items():
        if name in launch.constexprs:
            key.append((name, str(value)))
        elif isinstance(value, Tensor):
            key.append((name, str(value.dtype)))
        elif isinstance(value, int) and not isinstance(value, bool):
            wide = "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
            key.append((name, wide, *(() if name in skip else (value == 1, value % 16 == 0))))
    return tuple(key)


@pytest.mark.proof("variants")
@pytest.mark.parametrize("name", by_batch())
def test_few_variants_and_no_constant_that_follows_the_batch(name: str, cells: Callable[[int], None]) -> None:
    skip = unspecialised()
    launches: dict[int, list[Launch]] = {}
    for batch in BATCHES:
        found: list[Launch] = []
        with every_launch(found.append):
            by_batch()[name](batch)
        launches[batch] = found
    constants = [
        [(x.kernel, {k: str(v) for k, v in x.arguments.items() if k in x.constexprs}) for x in each]
        for each in launches.values()
    ]
    assert all(each == constants[0] for each in constants), "a constant or the choice of kernels follows the batch"
    for place in range(len(constants[0])):
        variants = {variant(each[place], skip[each[place].kernel]) for each in launches.values()}
        assert len(variants) <= MOST_VARIANTS, f"{constants[0][place][0]}: {len(variants)} variants"
    cells(len(BATCHES) * len(constants[0]))
