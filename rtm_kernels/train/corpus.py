"""Text as documents: found, deduplicated, split into a trained and a held-out part, and streamed as packed words."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtm_kernels.errors import InputError, printable, require
from rtm_kernels.text.packing import Packed, pack
from rtm_kernels.text.words import splitter
from rtm_kernels.train.text_recipe import TextRecipe

STDLIB = "stdlib"
PIECE = 1 << 16
"""Bytes of the longest document: longer files are cut at line ends."""
LONGEST = 64
"""Bytes in which a row looks for the begin of a word."""


@dataclass(frozen=True)
class Document:
    """The bytes of a file from `begin` to `end`, whole characters of UTF-8; `key` is made of its content alone."""

    path: Path
    begin: int
    end: int
    key: str

    def content(self) -> bytes:
        """The content. Errors: `InputError` when the file has changed since it was found."""
        with open(self.path, "rb") as file:
            file.seek(self.begin)
            content = file.read(self.end - self.begin)
        require(_key(content) == self.key, printable(str(self.path)), "changed", "the content at the begin of the run")
        return content


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and held-out ones, each in an order of its own that follows from their content."""

    train: list[Document]
    held_out: list[Document]
    unread: int  # files that are no UTF-8 text
    repeated: int  # documents that stood there before

    def sample(self, limit: int) -> list[str]:
        """Held-out documents, as many as fit into `limit` bytes, at least one."""
        texts: list[str] = []
        size = 0
        for document in self.held_out:
            size += document.end - document.begin
            if texts and size > limit:
                break
            texts.append(document.content().decode())
        return texts


def find_corpus(data: str, held_out: float) -> Corpus:
    """The corpus of a file, of all files below a folder, hidden ones left out, or of `stdlib`.

    A file is a document; one of more than 64 KiB is several, cut at line ends. Documents of the same content count
    once. A document is held out by its content, all of a file together unless there is one file only.

    Errors: `InputError` when nothing is there, or only one part of it is left.
    """
    paths = _paths(data)
    seen: set[str] = set()
    parts: tuple[list[Document], list[Document]] = ([], [])
    unread = repeated = 0
    for path in paths:
        content = path.read_bytes()
        if not _is_text(content):
            unread += 1
            continue
        whole = _key(content)
        for begin, end in _pieces(content):
            document = Document(path, begin, end, _key(content[begin:end]))
            if document.key in seen:
                repeated += 1
                continue
            seen.add(document.key)
            chosen = int((whole if len(paths) > 1 else document.key)[:8], 16) < held_out * 2**32
            parts[chosen].append(document)
    require(len(seen) > 1, "data", data, f"at least two documents of UTF-8 text; {unread} files are none")
    if not parts[1]:  # a small corpus: its last document by content
        parts[1].append(parts[0].pop(max(range(len(parts[0])), key=lambda i: parts[0][i].key)))
    require(bool(parts[0]), "held_out", held_out, "a smaller share: nothing is left to train on")
    train, test = (sorted(part, key=lambda document: document.key) for part in parts)
    return Corpus(train, test, unread, repeated)


def _paths(data: str) -> list[Path]:
    root, pattern = (Path(sysconfig.get_path("stdlib")), "*.py") if data == STDLIB else (Path(data), "*")
    require(root.exists(), "data", data, f"{STDLIB}, or a file or folder of text")
    files = [root] if root.is_file() else [path for path in sorted(root.rglob(pattern)) if path.is_file()]
    parts = ((path, path.relative_to(root).parts) for path in files)
    return [p for p, names in parts if not any(n[0] == "." or n == "site-packages" for n in names)]


def _pieces(content: bytes) -> Iterator[tuple[int, int]]:
    begin = 0
    while begin < len(content):
        end = min(begin + PIECE, len(content))
        if end < len(content):
            line = content.rfind(b"\n", begin, end) + 1
            end = line if line > begin else end
            while end < len(content) and content[end] & 0xC0 == 0x80:  # within a character
                end += 1
        yield begin, end
        begin = end


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def _key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class TextStream:
    """Endless batches of packed words. A row begins anywhere in the documents, between words, each byte as likely as
    any other; where its document ends, with a word without bytes, another one begins, as a segment of its own.

    A batch follows from the recipe's seed and the number of batches before it.
    """

    def __init__(self, recipe: TextRecipe) -> None:
        self.recipe, self.corpus = recipe, find_corpus(recipe.data, recipe.held_out)
        self.split = splitter(recipe.model.max_bytes)
        self.taken = 0
        self.key = _key("".join(document.key for document in self.corpus.train).encode())
        self.ends = np.cumsum([document.end - document.begin for document in self.corpus.train])

    def batch(self) -> tuple[Packed, int]:
        """The next batch, and its bytes."""
        length, rows = self.recipe.model.backbone.seq_len, self.recipe.batch_size
        rng = np.random.default_rng([self.recipe.seed, self.taken])
        self.taken += 1
        words: list[bytes] = []
        first = np.zeros(rows * length, bool)
        while len(words) < rows * length:
            first[len(words)] = True
            words += self._words(rng, -len(words) % length or length, inside=len(words) % length == 0)
        content = b"".join(words)
        lengths = np.array([len(word) for word in words]).reshape(rows, length)
        return pack(content, lengths, first.reshape(rows, length), self.recipe.model.byte_row), len(content)

    def _words(self, rng: np.random.Generator, most: int, inside: bool) -> list[bytes]:
        """At most so many words from a place that is drawn, `inside` a document or at its begin."""
        place = rng.integers(self.ends[-1])
        number = int(np.searchsorted(self.ends, place, side="right"))
        content = self.corpus.train[number].content()
        offset = len(content) - int(self.ends[number] - place) if inside else 0
        low = max(0, offset - LONGEST)
        begin = max(low, content.rfind(b" ", low, offset), content.rfind(b"\n", low, offset))
        part = content[begin : begin + most * self.recipe.model.max_bytes + LONGEST]
        return [*self.split(part.decode(errors="ignore")), b""][:most]

    def state(self) -> str:
        """The position of the stream as text."""
        return json.dumps({"corpus": self.key, "taken": self.taken})

    def load_state(self, state: str) -> None:
        """Continue from a position that `state` returned. Errors: `InputError`."""
        values = json.loads(state)
        if values["corpus"] != self.key:
            raise InputError(f"data={self.recipe.data!r}: the text is not the one at the begin of the run")
        self.taken = values["taken"]
