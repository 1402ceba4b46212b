"""Text models in the lm-eval harness, by the name `rtm-text`: `python -m rtm_kernels.interop.lm_eval run --model
rtm-text --model_args model=runs/text-small/model --tasks arc_easy`, or import this module and use the harness's own
functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rtm_kernels.errors import BackendUnavailable
from rtm_kernels.text.generate import generate
from rtm_kernels.text.measure import predict
from rtm_kernels.text.model import TextModel, symbol_loss
from rtm_kernels.text.packing import IGNORED, pack_documents
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

    def __init__(self, model: str, rounds: int | None = None, batch_size: int = 16, device: str | None = None,
                 **ignored: Any) -> None:  # fmt: skip
        super().__init__()
        self.model = TextModel.from_pretrained(model).to(device or "cpu")
        self.rounds = None if rounds is None else int(rounds)
        self.size = int(batch_size)
        self.split = splitter(self.model.config.max_bytes)
        self.words = self.model.config.backbone.seq_len

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the greedy one."""
        return self._batched([request.args for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, its end included."""
        found = []
        for request in requests:
            document = [*self.split(request.args[0]), b""]
            parts = [document[i : i + self.words] for i in range(0, len(document), self.words)]
            found.append(sum(score for part in _parts(parts, self.size) for score in self._rows(part)))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to a stop text."""
        found = []
        for request in requests:
            context, options = request.args
            stop = options.get("until") or []
            drawn = options.get("do_sample", False)
            words = self.split(context)[-self.words :]
            pieces = generate(
                self.model, b"".join(words).decode(errors="ignore"), stop=[stop] if isinstance(stop, str) else stop,
                max_bytes=int(options.get("max_gen_toks", WRITTEN)), rounds=self.rounds,
                temperature=float(options.get("temperature", 1.0)) if drawn else 0.0,
                top_p=float(options.get("top_p", 1.0)),
            )  # fmt: skip
            found.append(b"".join(pieces).decode(errors="replace"))
        return found

    def _batched(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        scored = [(i, *self._cut(*pair)) for i, pair in enumerate(pairs)]
        scored.sort(key=lambda item: len(item[1]))
        for part in _parts(scored, self.size):
            losses, hits = self._score([words for _, words, _ in part])
            for (i, words, tail), loss, hit in zip(part, losses, hits, strict=True):
                end = len(loss) - 1  # the boundary after the last word is not part of the continuation
                is_byte = torch.tensor([k < len(word) for word in words for k in range(len(word) + 1)])
                places = is_byte.nonzero().flatten()
                begin = int(places[-tail - 1]) + 1 if tail < len(places) else 0
                begin = begin if tail else end
                found[i] = (-float(loss[begin:end].sum()), bool(hit[begin:end].all()))
        return found

    def _cut(self, context: str, continuation: str) -> tuple[list[bytes], int]:
        """The words of both, cut at the left, and the bytes of the continuation among them."""
        words, tail = self.split(context + continuation), len(continuation.encode())
        needed, size = 0, 0
        while size < tail:
            needed += 1
            size += len(words[-needed])
        kept = words[-max(self.words, needed) :]
        return kept, tail

    def _rows(self, rows: list[list[bytes]]) -> list[float]:
        return [-float(loss.sum()) for loss in self._score(rows)[0]]

    @torch.no_grad()
    def _score(self, documents: list[list[bytes]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of each document the loss of every symbol, and whether it is the likeliest."""
        length = max(1, *map(len, documents))
        packed = pack_documents([document or [b""] for document in documents], length, self.model.config.byte_row)
        packed = packed.to(self.model.device)
        logits, _ = predict(self.model, packed, self.rounds)
        counted = packed.targets != IGNORED
        loss = symbol_loss(logits, packed.targets)[counted].cpu()
        hit = (logits.argmax(-1) == packed.targets)[counted].cpu()
        sizes = [sum(len(word) + 1 for word in document or [b""]) for document in documents]
        return list(loss.split(sizes)), list(hit.split(sizes))


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


if __name__ == "__main__":
    cli_evaluate()
