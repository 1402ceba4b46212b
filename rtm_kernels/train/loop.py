"""The training loop: loss, gradient, optimiser step and moving average; non-finite gradients are skipped."""

from __future__ import annotations

import importlib
import logging
import warnings
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from rtm_kernels.block import FusedTRMBlock
from rtm_kernels.config import ModelConfig
from rtm_kernels.errors import BackendUnavailable, require
from rtm_kernels.flops import act_step_flops
from rtm_kernels.losses import CONFIDENCE, DELTA
from rtm_kernels.model import RecursiveReasoner, Run
from rtm_kernels.ops.launch import choose
from rtm_kernels.pretrained import check_fits, shapes
from rtm_kernels.recursion import symmetric
from rtm_kernels.recursion.graph import CudaGraphs, why_not
from rtm_kernels.train.gradients import DEPTH, Gradients
from rtm_kernels.train.schema import CumulativeHalting, Recipe, Stage
from rtm_kernels.train.steps import Metrics, Steps, Sums
from rtm_kernels.train.stream import build_stream
from rtm_kernels.train.symmetry import Symmetry
from rtm_kernels.train.update import CapturedUpdate, Rows, Update

logger = logging.getLogger(__name__)

VARIANTS = 64
"""Compiled versions of a block: with and without gradient, each number of injected latents, each batch size."""


class Trainer(Steps):
    """Holds all state of a run: model, moving average, optimisers, stream, carries and step count.

    Under torch.distributed every rank draws the same global batch and the same random numbers, and computes its share
    of each part; gradients are summed over the ranks, as in the official code. So several ranks train as one process
    does, except for the rounding of sums. `capture` records the steps of a recipe with `graph`, by default CUDA graphs.

    Errors: `InputError` for a batch that the ranks cannot share; `BackendUnavailable` for `graph` where CUDA graphs
    cannot run.
    """

    model: RecursiveReasoner
    recipe: Recipe

    def __init__(self, recipe: Recipe, device: torch.device | str = "cpu", capture: CudaGraphs | None = None) -> None:
        super().__init__()
        self.recipe, self.device = recipe, torch.device(device)
        if recipe.graph and capture is None:
            reason = why_not() or (None if self.device.type == "cuda" else f"the device is {self.device.type}")
            if reason is not None:
                raise BackendUnavailable(f"graph=True cannot run: {reason}")
        torch.manual_seed(recipe.seed)
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        shares = self.world_size * recipe.accumulate
        for stage in recipe.stages:
            allowed = f"a multiple of {shares}, the ranks times accumulate"
            require(stage.batch_size % shares == 0, "batch_size", stage.batch_size, allowed)
        self.model = build_model(recipe).to(self.device).train()
        self.model.share_batch(self.rank, self.world_size)
        self.head = recipe.objective.head(self.model, recipe.loss).to(self.device)
        self.stream = build_stream(recipe)
        self.update = Update(self.model, recipe, self._symmetry())
        self.optimizers, self.average = self.update.optimizers, self.update.average
        self.position = self.stream.state()
        self.deepest = max(stage.halt_max_steps for stage in recipe.stages)
        """Most ACT steps that a sample takes in any stage."""
        self._stage: Stage | None = None
        if recipe.graph:
            capture = capture or CudaGraphs(self.device)
            if recipe.optimizer == "muon":
                reason = "torch.optim.Muon computes its learning rate on the host"
                logger.warning("graph=True: the optimiser's step is not captured: %s", reason)
            else:
                self.captured_update = CapturedUpdate(self.update, capture)
        self.gradients = Gradients(self.model, self.head, self.deepest, capture if recipe.graph else None)
        self.model.run = self._symmetric_run()
        if recipe.compile and self.model.run is None:
            compile_stacks(self.model)

    def step(self) -> Metrics:
        """One optimiser step. Returns the loss, the gradient's norm, and means over the samples that halted.

        Errors: `Diverged` when `PATIENCE` gradients in a row are not finite; a single one skips the update.
        """
        stage, _ = self.recipe.stage_at(self.step_count)
        self._enter(stage)
        found = self._gradients(stage)
        self._prepare()
        sums, norm = self._finish(*found)
        self.step_count += 1
        return {"grad_norm": norm, "skipped": float(self.skipped), **_means(sums, stage.batch_size)}

    def work(self) -> tuple[float, float]:
        """Samples of the last step, and FLOPs of this rank's ACT steps; stochastic rounds as if none were dropped."""
        stage, _ = self.recipe.stage_at(max(0, self.step_count - 1))
        config: ModelConfig = stage.model(self.recipe.model)
        act_steps = config.halt_max_steps if isinstance(self.recipe.objective, CumulativeHalting) else 1
        flops = float(act_steps * act_step_flops(config, train=True) * stage.batch_size // self.world_size)
        return float(stage.batch_size), flops

    def _symmetry(self) -> Symmetry | None:
        """The symmetry of a recipe with `symmetric`, imposed on the weights that the model starts with."""
        if not self.recipe.symmetric:
            return None
        symmetry = Symmetry(self.model, self.stream.task)
        (symmetry.fresh_ if self.recipe.init is None else symmetry.weights_)(self.model)
        return symmetry

    def _symmetric_run(self) -> Run | None:
        """The C++ executor of symmetric weights, with gradients, where it can run; graphs go on with PyTorch."""
        if not self.recipe.symmetric or self.recipe.graph:
            return None
        reason = symmetric.why_not_structure(self.model)
        if reason is None:
            return symmetric.TrainingRun(self.model)
        if self.model.device.type == "cpu":
            logger.warning("symmetric weights are trained as whole matrices: %s", reason)
        return None

    def _enter(self, stage: Stage) -> None:
        """Set the depth of the stage; carries are kept unless the batch size changes."""
        self.head.set_progress(self.step_count / self.recipe.total_steps)
        if stage is self._stage:
            return
        self._stage = stage
        self.model.set_depth(stage.model(self.recipe.model))
        size = stage.batch_size // self.recipe.accumulate // self.world_size
        self.carries = {key: carry for key, carry in self.carries.items() if len(carry.halted) == size}

    def _prepare(self) -> None:
        """Draw the batch of the next step while a GPU works on this one."""
        following, self.position, self._drawn = self.step_count + 1, self.stream.state(), None
        if following < self.recipe.total_steps:
            stage, _ = self.recipe.stage_at(following)
            self._drawn = self.stream.batch(stage.batch_size, stage.mix)

    def _gradients(self, stage: Stage) -> tuple[Sums, Rows | None]:
        """Backward over the parts of a global batch: sums of metrics, and puzzle rows with gradients."""
        batch = self.stream.batch(stage.batch_size, stage.mix) if self._drawn is None else self._drawn
        length = batch["inputs"].shape[1]
        if length != self.model.config.seq_len:
            self.model.set_depth(replace(self.model.config, seq_len=length))
        whole = zip(*(v.chunk(self.recipe.accumulate) for v in batch.values()), strict=True)
        sums: Sums = {}
        rows: list[Rows] = []
        for i, values in enumerate(whole):
            share = (value.chunk(self.world_size)[self.rank].to(self.device) for value in values)
            part = dict(zip(batch, share, strict=True))
            carry = self.carries.get((i, length)) or self.model.initial_carry(part)
            key = (id(stage), length, self.head.draw())
            self.carries[i, length], found, own = self.gradients(key, carry, part, stage.batch_size)
            for name, value in found.items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=self.device)) + value
            rows += [] if own is None else [own]
        return self._reduce(sums, rows)

    def _reduce(self, sums: Sums, rows: list[Rows]) -> tuple[Sums, Rows | None]:
        """Sums over all ranks of gradients and metrics, and the puzzle rows of all of them."""
        if self.world_size > 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
            for value in sums.values():
                dist.all_reduce(value)
            rows = [(_gather(ids), _gather(grad)) for ids, grad in rows]
        return sums, (torch.cat([ids for ids, _ in rows]), torch.cat([grad for _, grad in rows])) if rows else None


def build_model(recipe: Recipe) -> RecursiveReasoner:
    """The model of a recipe with random weights, or those of `recipe.init`.

    Errors: `InputError` when `init` names no saved model, or one with other weights than the recipe's model has.
    """
    model = RecursiveReasoner(recipe.model)
    if recipe.init is not None:
        weights = RecursiveReasoner.from_pretrained(recipe.init).state_dict()
        check_fits(f"init={recipe.init!r} is not allowed", shapes(weights), model.state_dict())
        model.load_state_dict(weights)
    return model


def _gather(value: Tensor) -> Tensor:
    """The tensors of all ranks, one after the other."""
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def _means(sums: Metrics, batch_size: int) -> Metrics:
    count = max(1.0, sums["count"])

    def divisor(name: str) -> float:
        if name == "count" or name.startswith(DEPTH):
            return 1.0
        return batch_size if name.endswith("loss") or name in (CONFIDENCE, DELTA) else count

    return {name: value / divisor(name) for name, value in sums.items()}


def compile_stacks(model: RecursiveReasoner) -> None:
    """Compile every stack of blocks in place; without a C++ compiler, warn and stay eager.

    Where the Triton kernels run there is nothing left to fuse, and a compiled stack could not share the weights of its
    calls (`ops.shared`), so the stacks stay as they are.
    """
    blocks = (module for module in model.modules() if isinstance(module, FusedTRMBlock))
    if all(choose(block.impl, model.device, model.dtype) == "triton" for block in blocks):
        return
    if model.device.type == "cpu":
        try:
            importlib.import_module("torch._inductor.cpp_builder").get_cpp_compiler()
        except Exception as error:
            reason = f"no C++ compiler ({type(error).__name__})"
            warnings.warn(f"training runs uncompiled: {reason}", RuntimeWarning, stacklevel=2)
            return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for name in model.config.layers:
        model.get_submodule(name).compile(dynamic=False)
