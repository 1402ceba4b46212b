"""Weights that commute with the symmetries of a task: one number for each orbit of the entries of a matrix.

A model of such weights answers the twin of a puzzle with the twin of its answer. Its matrices are ordinary ones, so
that everything runs it. Muon takes its steps on the small blocks of such matrices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from rtm_kernels.data.task import Generators, Task
from rtm_kernels.errors import InputError, require
from rtm_kernels.model import RecursiveReasoner
from rtm_kernels.recursion.symmetric_weights import expanded, mean_blocks

VANISHING = 1e-4
"""Singular values below this share of the largest are those of directions that no symmetric matrix reaches."""


class Symmetry:
    """The symmetric subspace of the weights of `model` under the symmetries of `task`.

    Channels come in copies of the values (digits) of the task and hidden units of the mixer in copies of its groups
    (rows, columns, boxes): channel `copy * values + value`; what is left over does not move. The mean over the group
    of a weight W is the mean over each orbit of its entries, `W[i, j] ~ W[r(i), c(j)]`. The halting head alone is not
    invariant, because it reads the first position.

    Errors: `InputError` for a task without symmetries and for a model whose parts cannot carry them.
    """

    def __init__(self, model: RecursiveReasoner, task: Task) -> None:
        found = task.generators()
        require(found is not None, "symmetric", True, f"a task with symmetries; {task.name} has none")
        assert found is not None
        self.values = found.values.shape[1]
        """How many values (digits) the task has."""
        self._orbits: dict[str, _Orbits | _Copies] = {
            name: _Orbits(*spaces, model.device) for name, spaces in _spaces(model, found).items()
        }
        for name in self.channel_mixes(model):
            self._orbits[name] = _Copies(self.values, parts_of(name))

    @staticmethod
    def channel_mixes(model: RecursiveReasoner) -> dict[str, nn.Parameter]:
        """The matrices of the channel mixes, by name: both of their sides are copies of the values."""
        return {name: p for name, p in model.named_parameters() if ".layers." in name and ".mlp." in name}

    @torch.no_grad()
    def fresh_(self, model: RecursiveReasoner) -> None:
        """Make random weights symmetric, of equal singular values and of the norm that they had."""
        for name, weight in self._of(model):
            mean = self._orbits[name].mean(weight)
            if mean.dim() == 2 and mean.any():
                u, values, v = torch.linalg.svd(mean, full_matrices=False)
                kept = values > VANISHING * values[0]
                mean = self._orbits[name].mean(u[:, kept] @ v[kept])
            norm = mean.norm()
            weight.copy_(mean * (weight.float().norm() / norm if norm > 0 else 1.0))

    @torch.no_grad()
    def weights_(self, model: RecursiveReasoner) -> None:
        """Replace every weight by its mean over the group."""
        for name, weight in self._of(model):
            weight.copy_(self._orbits[name].mean(weight))

    @torch.no_grad()
    def gradients_(self, model: RecursiveReasoner) -> None:
        """Replace every gradient by its mean over the group."""
        for name, weight in self._of(model):
            if weight.grad is not None:
                weight.grad.copy_(self._orbits[name].mean(weight.grad))

    def _of(self, model: RecursiveReasoner) -> list[tuple[str, Tensor]]:
        named = dict([*model.named_parameters(), *model.named_buffers()])
        return [(name, named[name]) for name in self._orbits]


class _Orbits:
    """Orbits of the entries of a matrix whose rows and columns are permuted by generators [G, rows], [G, columns]."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray, device: torch.device) -> None:
        labels = np.arange(rows.shape[1] * columns.shape[1]).reshape(rows.shape[1], columns.shape[1])
        before = None
        while before is None or (labels != before).any():
            before = labels
            for row, column in zip(rows, columns, strict=True):
                moved = labels[np.ix_(row, column)]
                labels = np.minimum(labels, moved)
            labels = labels.reshape(-1)[labels]
        _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        index = index.reshape(-1)
        within = np.arange(len(index)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        members = np.full((len(sizes), sizes.max()), len(index))
        order = np.argsort(index, kind="stable")
        members[index[order], within] = order
        self._index, self._members, self._sizes = (torch.from_numpy(a).to(device) for a in (index, members, sizes))

    def mean(self, weight: Tensor) -> Tensor:
        """The mean of `weight` over each orbit, in float32; a sum of gathered members has the same bits every time."""
        entries = torch.cat((weight.float().reshape(-1), weight.new_zeros(1, dtype=torch.float32)))
        means = entries[self._members].sum(1) / self._sizes
        return means[self._index].reshape(weight.shape)


class _Copies:
    """The same for a matrix of the channel mix, in `parts` of rows that are copies of the values by themselves."""

    def __init__(self, values: int, parts: int) -> None:
        self._values, self._parts = values, parts

    def mean(self, weight: Tensor) -> Tensor:
        """The mean of `weight` over each orbit, in float32."""
        n = self._values
        return torch.cat([expanded(*mean_blocks(part, n), n) for part in weight.chunk(self._parts)])


def parts_of(name: str) -> int:
    """How many matrices a weight of the channel mix stacks: gates and values of a SwiGLU are two."""
    return 2 if "gate_up_proj" in name else 1


class SymmetricMuon(torch.optim.Muon):
    """`torch.optim.Muon` for the matrices of channel mixes, whose gradients are symmetric as they are.

    In an orthonormal basis of what the n values move, such a matrix is block diagonal: n - 1 times one block, and one
    of the sums over the values with what they do not move. Orthogonalising the matrix orthogonalises each block, so
    the step is that of the whole matrix (`adjust_lr_fn="match_rms_adamw"` with its shape) for a fraction of the work.
    The blocks are read from the weights at every step, so the state is the momentum alone.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], values: int, lr: float, weight_decay: float) -> None:
        self._weights, self._values, self._blocks = dict(weights), values, dict[str, list[nn.Parameter]]()
        groups = []
        for name, weight in self._weights.items():
            self._blocks[name] = [nn.Parameter(block) for block in self._split(name, weight.detach())]
            for block in self._blocks[name]:
                factor = math.sqrt(max(weight.shape) / max(block.shape))
                groups.append({"params": [block], "lr": lr * factor, "weight_decay": weight_decay / factor})
        super().__init__(groups, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on every weight that has a gradient."""
        used = {name: w for name, w in self._weights.items() if w.grad is not None}
        for name, weight in used.items():
            assert weight.grad is not None
            for block, value, grad in zip(
                self._blocks[name], self._split(name, weight), self._split(name, weight.grad), strict=True
            ):
                block.copy_(value)
                block.grad = grad
        super().step(closure)
        for name, weight in used.items():
            weight.copy_(self._joined(name))
            for block in self._blocks[name]:
                block.grad = None

    def _split(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks of a weight, those of its parts below one another."""
        n, found = self._values, []
        for part in weight.chunk(parts_of(name)):
            own, shared = mean_blocks(part, n)
            rows, columns = own.shape
            sums = self._scaled(shared, rows, columns, math.sqrt(n))
            sums[:rows, :columns] += own
            found.append((own, sums))
        return torch.cat([own for own, _ in found]), torch.cat([sums for _, sums in found])

    def _joined(self, name: str) -> Tensor:
        n, parts = self._values, parts_of(name)
        weights = []
        for own, sums in zip(*(block.chunk(parts) for block in self._blocks[name]), strict=True):
            rows, columns = own.shape
            shared = sums.clone()
            shared[:rows, :columns] -= own
            weights.append(expanded(own, self._scaled(shared, rows, columns, 1 / math.sqrt(n)), n))
        return torch.cat(weights)

    @staticmethod
    def _scaled(shared: Tensor, rows: int, columns: int, factor: float) -> Tensor:
        """`shared` with its rows and columns of copies times `factor` each."""
        scaled = shared.clone()
        scaled[:rows] *= factor
        scaled[:, :columns] *= factor
        return scaled


Spaces = tuple[np.ndarray, np.ndarray]


def _spaces(model: RecursiveReasoner, found: Generators) -> dict[str, Spaces]:
    """How the generators permute the rows and columns of every weight, by its name."""
    config = model.config
    require(config.mixer == "mlp", "mixer", config.mixer, "'mlp' for symmetric weights")
    require(config.pos_encodings == "none", "pos_encodings", config.pos_encodings, "'none' for symmetric weights")
    require(config.adapter_rank == 0, "adapter_rank", config.adapter_rank, "0 for symmetric weights")
    require(config.puzzle_emb_ndim == 0, "puzzle_emb_ndim", config.puzzle_emb_ndim, "0 for symmetric weights")
    require(config.hidden_size >= found.values.shape[1], "hidden_size", config.hidden_size, "a channel for each value")
    fixed = np.zeros((len(found.values), 1), dtype=np.int64)
    positions = np.concatenate((np.repeat(fixed, config.prefix_len, 1), found.positions + config.prefix_len), axis=1)
    positions[:, : config.prefix_len] = np.arange(config.prefix_len)
    channels, tokens = copies(found.values, config.hidden_size), found.tokens(config.vocab_size)
    spaces: dict[str, Spaces] = {}
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        part = name.split(".layers.")[-1].split(".", 1)[-1]
        if part == "mlp_t.gate_up_proj.weight":
            spaces[name] = twice(copies(found.groups, len(weight) // 2)), positions
        elif part == "mlp_t.down_proj.weight":
            spaces[name] = positions, copies(found.groups, weight.shape[1])
        elif part in ("mlp.gate_up_proj.weight", "mlp.down_proj.weight"):
            continue  # `_Copies`
        elif name in ("embed_tokens.embedding_weight", "lm_head.weight"):
            spaces[name] = tokens, channels
        elif name == "q_head.weight":
            spaces[name] = np.concatenate((fixed, fixed + 1), axis=1), channels
        elif name.endswith("_init"):
            spaces[name] = fixed, channels
        elif name != "q_head.bias":
            raise InputError(f"symmetric=True is not allowed: how the symmetries act on {name} is not known")
    return spaces


def copies(permutations: np.ndarray, size: int) -> np.ndarray:
    """Permutations [G, n] of as many copies as fit into `size` things, the rest of which stay: [G, size]."""
    count, n = permutations.shape
    moved = np.tile(np.arange(size), (count, 1))
    for start in range(0, size - n + 1, n):
        moved[:, start : start + n] = start + permutations
    return moved


def twice(permutations: np.ndarray) -> np.ndarray:
    """The same permutations of two halves, the gates and the values of a SwiGLU."""
    return np.concatenate((permutations, permutations + permutations.shape[1]), axis=1)
