"""One ACT step for other runtimes, as ONNX or as a program of `torch.export`. The caller runs the loop and halts it."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rtm_kernels.errors import BackendUnavailable, require
from rtm_kernels.files import StrPath, flush
from rtm_kernels.model import RecursiveReasoner

FORMATS = (".onnx", ".pt2")
OPSET = 20
"""Version of the ONNX operators."""


class ActStep(nn.Module):
    """One ACT step of a model, from tensors to tensors, in float32 with the operators of PyTorch alone.

    Inputs: `inputs` [B, seq_len] int64; `puzzle_identifiers` [B] int64 for a model with puzzle embeddings; each
    carried latent [B, L, D] by its name; `fresh` [B] bool, True where a sample starts, so that its latents are the
    initial ones whatever was given. Outputs: `logits` [B, seq_len, V], `q` [B, 2] of a halting head, and `next_NAME` of
    each carried latent. A program that carries no latent has no `fresh`.

    Errors: `InputError` for a model that draws random numbers (EqR).
    """

    def __init__(self, model: RecursiveReasoner) -> None:
        super().__init__()
        config = replace(model.config, forward_dtype="float32")
        random = config.random_latents or any(step.noise for step in config.program.steps)
        require(not random, "arch", config.arch, "one that draws no random numbers can be exported")
        self.model = RecursiveReasoner(config, impl="reference", attention="sdpa").eval().requires_grad_(False)
        self.model.load_state_dict(model.state_dict())

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """The step on the inputs by name."""
        names = self.model.program.carried
        first = self.model.initial_latents(1)
        latents = {name: torch.where(given["fresh"].view(-1, 1, 1), first[name], given[name]) for name in names}
        x = self.model.embed(given["inputs"], given.get("puzzle_identifiers"))
        values, logits, q = self.model.act_step(latents, x)
        found = {"logits": logits} if q is None else {"logits": logits, "q": q}
        return found | {f"next_{name}": values[name] for name in names}

    def example(self, size: int = 2) -> dict[str, Tensor]:
        """Inputs of a batch that starts."""
        c = self.model.config
        given = {"inputs": torch.zeros(size, c.seq_len, dtype=torch.int64)}
        if c.puzzle_emb_ndim > 0:
            given["puzzle_identifiers"] = torch.zeros(size, dtype=torch.int64)
        if names := self.model.program.carried:
            given["fresh"] = torch.ones(size, dtype=torch.bool)
        return given | {name: torch.zeros(size, c.latent_len, c.hidden_size) for name in names}


def export(model: RecursiveReasoner, path: StrPath) -> dict[str, list[str]]:
    """Write one ACT step of `model` (`ActStep`), weights and initial latents included, to a file for any batch size.

    The ending of `path` says the format: `.onnx` (operators of opset 20, the config as JSON under the metadata key
    `rtm_kernels`), or `.pt2` (`torch.export.load(path).module()({"inputs": ..., ...})`). The file appears complete or
    not at all. Returns the names of the inputs and outputs.

    Errors: `InputError` for another ending and for a model that cannot be exported; `BackendUnavailable` for `.onnx`
    without onnx and onnxscript.
    """
    target = Path(path)
    require(target.suffix in FORMATS, "path", str(path), f"a name that ends with {' or '.join(FORMATS)}")
    require(target.parent.is_dir(), "path", str(path), "a file in a folder that exists")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if target.suffix == ".onnx" and missing:
        raise BackendUnavailable(f"ONNX needs {' and '.join(missing)}: pip install 'rtm-kernels[onnx]'")
    step = ActStep(model)
    example = step.example()
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in example}
    with torch.no_grad(), _quiet():
        outputs = list(step(example))
        program = torch.export.export(step, (example,), dynamic_shapes=(shapes,))
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            aside = Path(folder) / target.name
            if target.suffix == ".pt2":
                torch.export.save(program, aside)
            else:
                aside.write_bytes(_onnx(program, list(example), outputs, model.config.to_json()))
            flush(aside)
            os.replace(aside, target)
    return {"inputs": list(example), "outputs": outputs}


def _onnx(program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str], config: str) -> bytes:
    exported = torch.onnx.export(
        program, input_names=inputs, output_names=outputs, opset_version=OPSET, dynamo=True, verbose=False
    )
    assert exported is not None
    proto = exported.model_proto
    del proto.graph.value_info[:]
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # what the exporter notes about PyTorch's graph: a quarter of the file
        part.doc_string = ""
    proto.metadata_props.add(key="rtm_kernels", value=config)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that this model does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
