"""Every public call under each state that PyTorch keeps for the process: values stay those of the plain call.

| situation met in public | what happens |
|---|---|
| evaluation in `inference_mode` or by a `Solver`, then training | trains |
| a pass under `FakeTensorMode` (memory estimates, exporters), then a real one | real tensors |
| `torch.set_default_dtype` of bfloat16, float16 or float64 | the same weights, the same answers |
| `torch.set_default_device("meta")`, or `with torch.device("meta")` around loading | the same |
| models on `device="meta"` (sharding plans, `accelerate` of a skeleton) | shapes |
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rtm_kernels import ModelConfig, RecursiveReasoner, Solver, accelerate
from rtm_kernels.block import FusedTRMBlock
from rtm_kernels.errors import InputError
from rtm_kernels.losses import ACTLossHead
from rtm_kernels.ops.token_loss.api import LOSSES
from rtm_kernels.pretrained import known_models
from tests.interop import official_structure as official

EXAMPLE = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
ROPE = ModelConfig(
    arch="trm", vocab_size=11, seq_len=9, hidden_size=32, layers={"L_level": 1}, num_heads=4, H_cycles=2, L_cycles=2,
    mixer="attention", pos_encodings="rope", puzzle_emb_ndim=32, num_puzzle_identifiers=3, halt_max_steps=2,
)  # fmt: skip


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT = {
    "nothing": nullcontext,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
}


def batch() -> dict[str, torch.Tensor]:
    tokens = (torch.arange(36, device="cpu") % 11).view(4, 9)
    return {"inputs": tokens, "labels": tokens, "puzzle_identifiers": torch.tensor([0, 2, 1, 1], device="cpu")}


def new_model() -> RecursiveReasoner:
    torch.manual_seed(0)
    return RecursiveReasoner(ROPE)


def logits(model: torch.nn.Module) -> torch.Tensor:
    given = batch()
    with torch.device("cpu"):
        return model(model.initial_carry(given), given)[1]["logits"].detach()


@pytest.mark.parametrize("name", [name for name in AMBIENT if name != "meta"])
def test_models_are_built_and_run_alike(name: str) -> None:
    expected = logits(new_model())
    with AMBIENT[name]():
        model = new_model()
        assert {p.dtype for p in model.state_dict().values()} == {torch.float32}
        assert torch.equal(logits(model), expected)
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", AMBIENT)
def test_saved_models_load_alike_and_train_afterwards(name: str, tmp_path) -> None:
    model = new_model()
    model.save_pretrained(tmp_path / "m")
    expected = logits(model)
    with AMBIENT[name]():
        again = RecursiveReasoner.from_pretrained(tmp_path / "m")
        assert again.device.type == "cpu" and torch.equal(logits(again), expected)
    loss = ACTLossHead(again.train(), "softmax_cross_entropy")
    given = batch()
    loss(carry=loss.initial_carry(given), batch=given, return_keys=[])[1].backward()
    assert again.lm_head.weight.grad.isfinite().all()


def bundled() -> Solver:
    return Solver(RecursiveReasoner.from_pretrained(next(name for name in known_models() if "sudoku" in name)))


@pytest.mark.parametrize("name", AMBIENT)
def test_the_bundled_solver(name: str) -> None:
    with AMBIENT[name]():
        [solution] = bundled().solve([EXAMPLE])
    assert solution.status == "verified" and solution.steps == bundled().solve([EXAMPLE])[0].steps


@pytest.mark.parametrize("name", AMBIENT)
def test_accelerate(name: str) -> None:
    torch.manual_seed(0)
    model = official.models()["trm_att"]
    expected = logits(model)
    with AMBIENT[name]():
        accelerate(model)
        assert torch.equal(logits(model), expected)


def test_accelerate_within_autocast() -> None:
    model = official.models()["trm_att"]
    with torch.autocast("cpu", torch.bfloat16):
        accelerate(model)


def test_a_fake_pass_leaves_nothing_behind() -> None:
    model = new_model()
    expected = logits(new_model())
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.cos_sin()
    assert type(logits(model)) is torch.Tensor and torch.equal(logits(model), expected)


def test_meta_models_give_shapes() -> None:
    with torch.device("meta"):
        model = RecursiveReasoner(ROPE)
        given = {name: value.to("meta") for name, value in batch().items()}
    assert model(model.initial_carry(given), given)[1]["logits"].shape == (4, 9, 11)
    block = FusedTRMBlock(32, 9).to("meta")
    assert block(torch.empty(2, 9, 32, device="meta")).is_meta


@pytest.mark.parametrize("name", ["trm_att", "rsm_mlp", "hrm"])
def test_a_skeleton_is_accelerated_before_its_weights_are_there(name: str) -> None:
    model = official.models()[name]
    state, expected = model.state_dict(), accelerate(model).state_dict().keys()
    axes = {module.norm_axis for module in model.modules() if hasattr(module, "norm_axis")}
    skeleton = accelerate(official.models()[name].to("meta"))
    assert skeleton.state_dict().keys() == expected and all(p.is_meta for p in skeleton.parameters())
    assert {module.norm_axis for module in skeleton.modules() if hasattr(module, "norm_axis")} == axes
    assert skeleton.load_state_dict(state, assign=True).missing_keys == []


def test_kernels_are_debugged_in_the_interpreter_without_this_test_suite() -> None:
    code = """
import torch
from rtm_kernels.block import FusedTRMBlock
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    block, x = FusedTRMBlock(16, 9, impl="triton"), torch.randn(2, 9, 16, dtype=dtype, requires_grad=True)
    block(x).square().sum().backward()
    print(x.grad.isfinite().all().item(), block.mlp.down_proj.weight.grad.isfinite().all().item())
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)
    assert result.stdout.split() == ["True"] * 4, result.stderr


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_every_whole_number_picks_rows(dtype: torch.dtype) -> None:
    model, given = new_model(), batch()
    model.puzzle_emb.weights.copy_(torch.randn(3, 32))
    expected = model(model.initial_carry(given), given)[1]["logits"]
    given = {name: value.to(dtype) for name, value in given.items()}
    assert torch.equal(model(model.initial_carry(given), given)[1]["logits"], expected)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("inputs", lambda t: t + 5, "inputs are from 5 to 15; allowed are 0 to 10"),
        ("inputs", lambda t: t - 1, "inputs are from -1 to 9; allowed"),
        ("puzzle_identifiers", lambda t: t + 1, "puzzle_identifiers are from 1 to 3; allowed are 0 to 2"),
        ("puzzle_identifiers", lambda t: t.bool(), r"batch\['puzzle_identifiers'\].dtype=torch.bool is not allowed"),
        ("inputs", lambda t: t.float(), r"batch\['inputs'\].dtype=torch.float32 is not allowed"),
        ("inputs", lambda t: t.tolist(), r"batch\['inputs'\].dtype=<class 'list'> is not allowed"),
        ("inputs", lambda t: t.to_sparse(), r"batch\['inputs'\]=torch.sparse_coo is not allowed"),
        ("inputs", lambda t: torch.nested.nested_tensor(list(t)), r"batch\['inputs'\]=.* is not allowed"),
    ],
)
def test_what_picks_no_row_is_named(name: str, change, message: str) -> None:
    model, given = new_model(), batch()
    given[name] = change(given[name])
    with pytest.raises(InputError, match=message):
        model(model.initial_carry(given), given)


def test_training_with_puzzle_embeddings_is_one_graph() -> None:
    grads = []
    for compiled in (False, True):
        head, given = ACTLossHead(new_model().train(), "softmax_cross_entropy"), batch()
        carry = head.initial_carry(given)
        step = torch.compile(head, fullgraph=True, backend="aot_eager") if compiled else head
        step(carry=carry, batch=given, return_keys=[])[1].backward()
        grads.append(head.model.puzzle_emb.local_weights.grad)
        assert torch.equal(head.model.puzzle_emb.local_ids, given["puzzle_identifiers"])
    assert torch.allclose(*grads, rtol=1e-5, atol=1e-6) and grads[0].any()


def test_labels_out_of_range_are_named() -> None:
    for loss in LOSSES:
        head = ACTLossHead(new_model().train(), loss)
        given = {**batch(), "labels": torch.full((4, 9), 11)}
        with pytest.raises(InputError, match="labels='11 to 11' is not allowed: 0 to 10, or -100"):
            head([], carry=head.initial_carry(given), batch=given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_models_of_other_dtypes_compute_in_that_of_their_config(dtype: torch.dtype) -> None:
    torch.testing.assert_close(logits(new_model().to(dtype)), logits(new_model()), rtol=1e-2, atol=1e-2)


def test_loading_draws_nothing_of_the_caller() -> None:
    before = torch.get_rng_state()
    RecursiveReasoner.from_pretrained("sudoku")
    assert torch.equal(torch.get_rng_state(), before)
