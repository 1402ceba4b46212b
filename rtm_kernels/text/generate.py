"""Writing text: state is kept between bytes and words, so that nothing of the prefix is computed again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rtm_kernels.errors import require
from rtm_kernels.text.config import BOUNDARY, TEXT_END
from rtm_kernels.text.model import TextModel
from rtm_kernels.text.packing import pack_documents
from rtm_kernels.text.state import ByteState, WordState
from rtm_kernels.text.words import splitter


class Writer:
    """A text so far, and `logits` [SYMBOLS] of its next symbol: a byte, BOUNDARY or TEXT_END.

    Fed symbol by symbol, or word by word, which is the same bits. What the logits rule out is -inf: a word has at least
    one byte and at most `max_bytes`, and a text ends between words.
    """

    def __init__(self, model: TextModel, rounds: int | None = None) -> None:
        self.model, self.state = model, WordState(model, 1, rounds)
        self.word, self.logits = bytearray(), torch.empty(0)
        self.words: list[tuple[bytes, int]] = []
        """Each word that the backbone has read, and the rounds that it took."""
        self._think(model.start.detach().to(model.dtype))

    def write(self, symbol: int) -> None:
        """Take in the next symbol. Errors: `InputError` for one that is ruled out."""
        require(bool(self.logits[symbol] > -math.inf), "symbol", symbol, "one that may come next")
        if symbol == BOUNDARY:
            self.read([bytes(self.word)])
        else:
            self.word.append(symbol)
            self._next(self.model.embed(torch.tensor(symbol, device=self.model.device)))

    @torch.no_grad()
    def read(self, words: Sequence[bytes]) -> None:
        """Take in whole words where a word begins; the decoder is not asked about their bytes."""
        for word in words:
            packed = pack_documents([[word]], 1, self.model.config.max_bytes + 1).to(self.model.device)
            self.words.append((word, self._think(self.model.read_words(packed)[0])))

    @torch.no_grad()
    def _think(self, x: Tensor) -> int:
        one = torch.ones(1, 1, dtype=torch.int32, device=x.device)
        y, halting = self.state.extend(x.view(1, 1, -1), one)
        self.word, self.bytes = bytearray(), ByteState(self.model)
        self._next(self.model.begin_words(y[0, 0]))
        return self.state.rounds if halting is None else int(halting.steps.item())

    @torch.no_grad()
    def _next(self, x: Tensor) -> None:
        self.logits = self.bytes.extend(x).float()
        self.logits[BOUNDARY if not self.word else TEXT_END] = -math.inf
        if len(self.word) == self.model.config.max_bytes:
            self.logits[:BOUNDARY] = -math.inf


def generate(
    model: TextModel, prompt: str, *, max_bytes: int = 500, temperature: float = 0.0, top_p: float = 1.0,
    stop: Sequence[str] = (), seed: int = 0, rounds: int | None = None, writer: Writer | None = None,
) -> Iterator[bytes]:  # fmt: skip
    """What `model` writes after `prompt`, in pieces, up to `max_bytes` bytes, the first of the `stop` strings, which is
    left out, or the end of the text.

    Temperature 0 takes the likeliest symbol; above, symbols are drawn from the likeliest ones that together have
    `top_p`. The last word of the prompt is open: the model may write on it. `writer` is a new one of the model, for a
    caller that looks at it afterwards. A piece may end within a character.

    Errors: `InputError`; `BackendUnavailable` for a prompt without hat-splitter.
    """
    require(max_bytes >= 0, "max_bytes", max_bytes, "at least 0")
    require(0 <= temperature < math.inf, "temperature", temperature, "a finite number of at least 0")
    require(0 < top_p <= 1, "top_p", top_p, "above 0, at most 1")
    require(all(stop), "stop", stop, "no empty text")
    broken = [text for text in (prompt, *stop) if text.encode(errors="replace").decode() != text]
    require(not broken, "text", broken, "characters that UTF-8 has")
    writer = writer or Writer(model, rounds)
    if prompt:
        *whole, last = splitter(model.config.max_bytes)(prompt)
        writer.read(whole)
        for symbol in last:
            writer.write(symbol)
    ends = sorted((text.encode() for text in stop), key=len, reverse=True)
    held, longest = bytearray(), len(ends[0]) if ends else 1
    rng = torch.Generator().manual_seed(seed)
    written = 0
    while written < max_bytes:
        symbol = choose(writer.logits, temperature, top_p, rng)
        if symbol == TEXT_END:
            break
        writer.write(symbol)
        if symbol == BOUNDARY:
            continue
        held.append(symbol)
        written += 1
        for end in ends:
            if held.endswith(end):
                yield bytes(held[: -len(end)])
                return
        ready = len(held) - longest + 1
        if ready > 0:
            yield bytes(held[:ready])
            del held[:ready]
    yield bytes(held)


def choose(logits: Tensor, temperature: float, top_p: float, rng: torch.Generator) -> int:
    """The next symbol by logits [SYMBOLS], drawn on the CPU as `generate` says."""
    if temperature == 0:
        return int(logits.argmax())
    p, order = F.softmax(logits.double().cpu() / temperature, -1).sort(descending=True, stable=True)
    kept = torch.where(p.cumsum(-1) - p < top_p, p, 0)
    return int(order[torch.multinomial(kept, 1, generator=rng)])
