"""Small training steps again and again: forward, backward and both optimisers, as hashes of every bit they leave.

    python -m tests.proof.rerun THREADS...

A process for each number of threads is forked from this one; a line per process and implementation says how it hashes
strings (`PYTHONHASHSEED`) and which hashes its runs gave.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import hashlib

import torch
import torch.nn.functional as F

from rtm_kernels.ops.adam_atan2.api import AdamATan2, sign_sgd_
from rtm_kernels.ops.attention_norm.api import attention_norm
from rtm_kernels.ops.attention_norm.reference import rope_tables
from rtm_kernels.ops.mixer_norm.api import mixer_norm
from rtm_kernels.ops.swiglu_norm.api import swiglu_norm
from rtm_kernels.ops.token_loss.api import token_loss
from tests.interpreter import take_loop_bounds
from tests.proof.launching import bits

RUNS = {"reference": 25, "triton": 8}
"""Implementation -> runs of a process: a step is 24 launches, and the interpreter takes half a second for them."""
BATCH, LENGTH, WIDTH, INNER, VOCABULARY, PUZZLES, STEPS = 3, 5, 16, 24, 7, 4, 2


def training_step(impl: str, rate: float = 1e-3) -> str:
    """A hash of the loss, every gradient and every parameter of a layer with both mixers over two updates."""
    g = torch.Generator().manual_seed(0)
    sizes = ((2 * INNER, LENGTH), (LENGTH, INNER), (3 * WIDTH, WIDTH), (WIDTH, WIDTH), (2 * INNER, WIDTH),
             (WIDTH, INNER), (VOCABULARY, WIDTH))  # fmt: skip
    weights = [(torch.randn(n, generator=g) / n[1] ** 0.5).requires_grad_() for n in sizes]
    table = torch.randn(PUZZLES, WIDTH, generator=g)
    tokens = torch.randn(BATCH, LENGTH, WIDTH, generator=g)
    labels = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=g)
    ids = torch.tensor([1, 3, 1])  # a duplicate, whose gradients are summed
    tables = rope_tables(LENGTH, WIDTH // 2, 10000.0)
    optimiser = AdamATan2(weights, lr=rate, weight_decay=0.1, impl=impl)
    found = hashlib.sha256()
    for _ in range(STEPS):
        rows = table[ids].requires_grad_()
        x = tokens + rows[:, None]
        y = mixer_norm(tokens, *weights[:2], injection=(x,), impl=impl)
        y = attention_norm(y, *weights[2:4], num_heads=2, cos_sin=tables, impl=impl)
        y = swiglu_norm(y, *weights[4:6], injection=(x, tokens), impl=impl)
        loss = token_loss(F.linear(y, weights[6]), labels, impl=impl).loss.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        sign_sgd_(table, ids, rows.grad, lr=1e-2, weight_decay=0.1, impl=impl)
        grads = [w.grad for w in weights]
        for tensor in (loss, rows.grad, *grads, *weights, table):
            found.update(bits(tensor))
    return found.hexdigest()


def child(threads: int) -> None:
    """The lines of one process."""
    torch.set_num_threads(threads)
    for impl, runs in RUNS.items():
        digests = sorted({training_step(impl) for _ in range(runs)})
        print(hash("order of a set"), threads, impl, runs, *digests, flush=True)


def main(counts: list[int]) -> int:
    take_loop_bounds()
    for threads in counts:
        pid = os.fork()
        if not pid:
            child(threads)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(list(map(int, sys.argv[1:]))))
