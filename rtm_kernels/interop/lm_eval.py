"""Text models in the lm-eval harness, as `rtm-text`. The module runs the harness's own command line, too:

python -m rtm_kernels.interop.lm_eval run --model rtm-text --model_args model=runs/text-small/model --tasks arc_easy
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.text.generate import generate
from rtm_kernels.text.measure import score
from rtm_kernels.text.model import TextModel
from rtm_kernels.text.words import splitter

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise BackendUnavailable("the harness needs the package lm-eval: pip install 'rtm-kernels[lm-eval]'") from None

WRITTEN = 512
"""Bytes that a generation may have where the task sets no limit; a limit in tokens counts bytes here."""


@register_model("rtm-text")
class TextLM(LM):
    """A `TextModel` as the harness calls it. `model` is its folder; `rounds` as for `TextModel.think`.

    Log-likelihoods are those of bytes and word boundaries, in the words of the splitter; the boundary after the last
    word counts only in `loglikelihood_rolling`, where the end of the text follows it. Contexts are cut at the left to
    the words that a row of training has; a rolling text begins again in each such row.
    """

    def __init__(
        self, model: str, rounds: int | None = None, batch_size: int = 16, device: str = "cpu", **ignored: Any
    ) -> None:
        super().__init__()
        self.model = TextModel.from_pretrained(model).to(device or "cpu")
        self.rounds, self.size = None if rounds is None else int(rounds), int(batch_size)
        self.split, self.words = splitter(self.model.config.max_bytes), self.model.config.backbone.seq_len

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the greedy one."""
        found = []
        cut = [self._cut(*request.args) for request in requests]
        scored = self._score([words for words, _ in cut])
        for (words, tail), (loss, hit) in zip(cut, scored, strict=True):
            ends = [k + 1 for k, byte in enumerate(i for word in words for i in (*word, None)) if byte is not None]
            begin = 0 if tail == len(ends) else ends[-tail - 1]
            part = slice(begin, ends[-1]) if tail else slice(0)
            found.append((-float(loss[part].sum()), bool(hit[part].all())))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, its end included."""
        scored = self._score([[*self.split(request.args[0]), b""] for request in requests])
        return [-float(losses.sum()) for losses, _ in scored]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop text."""
        found = []
        for request in requests:
            context, options = request.args
            stop, drawn = options.get("until") or [], options.get("do_sample", False)
            pieces = generate(
                self.model, b"".join(self.split(context)[-self.words :]).decode(errors="ignore"),
                stop=[stop] if isinstance(stop, str) else stop, rounds=self.rounds,
                max_bytes=int(options.get("max_gen_toks", WRITTEN)), top_p=float(options.get("top_p", 1.0)),
                temperature=float(options.get("temperature", 1.0)) if drawn else 0.0,
            )  # fmt: skip
            found.append(b"".join(pieces).decode(errors="replace"))
        return found

    def _cut(self, context: str, continuation: str) -> tuple[list[bytes], int]:
        """The words of both, cut at the left, and the bytes of the continuation among them."""
        words, tail = self.split(context + continuation), len(continuation.encode())
        needed = size = 0
        while size < tail:
            needed, size = needed + 1, size + len(words[-needed - 1])
        return words[-max(self.words, needed) :], tail

    def _score(self, documents: list[list[bytes]]) -> list[tuple[Tensor, Tensor]]:
        """Of each document the loss of every symbol, and whether it is the likeliest."""
        none = torch.zeros(0, device=self.model.device)
        scored = [(none, none.bool()), *(part[2:] for part in score(self.model, documents, self.rounds, self.size))]
        sizes = [sum(len(word) + 1 for word in words) for words in documents]
        losses, hits = (torch.cat(part).cpu().split(sizes) for part in zip(*scored, strict=True))
        return list(zip(losses, hits, strict=True))


if __name__ == "__main__":
    cli_evaluate()
