"""Seeded damage: to bytes, to texts and to JSON values."""

from __future__ import annotations

import copy
import random
from typing import Any

NASTY_TEXTS = (
    "", " ", "\x00", "\x1b[31m", "-1", "0", "1e309", "nan", "inf", "9" * 400, "../../etc/passwd", "/dev/null", "%s%n",
    "\ud800", "\u202e", "é" * 50, "[" * 500, "{}", "null", "true", "--help", "-", "=", "+", "q=", "settle=1/", "." * 81,
    "x" * 5000, "\r\n\r\n", "1" * 81,
    "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79",
)  # fmt: skip
GRID = [[1] * 40 for _ in range(40)]
"""Rows of their own: damage to a row that stands in many places would multiply."""
NASTY_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**30, -(10**30), 0.5, 1e308, [], {}, [[]], [None], {"a": 1}, GRID, *NASTY_TEXTS,
)  # fmt: skip


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four of: a flipped bit, a byte set, bytes cut out, doubled, moved, inserted, the end cut off.

    In one of 500 a piece of it is repeated, 16 KiB to 1 MiB more: as large as the limits on files and lines.
    """
    found = bytearray(data)
    if found and rng.random() < 0.002:
        at = rng.randrange(len(found))
        piece = bytes(found[at : at + rng.choice((1, 2, 8, 64))])
        found[at:at] = piece * ((1 << rng.randint(14, 20)) // len(piece))
        return bytes(found)
    for _ in range(rng.randint(1, 4)):
        if not found:
            return bytes(found)
        at = rng.randrange(len(found))
        end = min(len(found), at + rng.choice((1, 2, 8, 200)))
        match rng.randrange(7):
            case 0:
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at] = rng.choice(b'\x00\xff"{}[],:-9eE\n\\')
            case 2:
                del found[at:end]
            case 3:
                found[at:at] = found[at:end]
            case 4:
                piece = bytes(found[at:end])
                del found[at:end]
                to = rng.randrange(len(found) + 1)
                found[to:to] = piece
            case 5:
                found[at:at] = rng.choice(NASTY_TEXTS).encode("utf-8", "replace")[:300]
            case _:
                del found[at:]
    return bytes(found)


def damage_text(text: str, rng: random.Random) -> str:
    """The text damaged, or another one altogether."""
    if rng.random() < 0.4:
        return rng.choice(NASTY_TEXTS)
    return damage_bytes(text.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")


def damage_json(value: Any, rng: random.Random) -> Any:
    """A copy with one to three leaves or branches replaced, removed, renamed or nested."""
    found = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = [(found, key) for found, key in _places(found)]
        if not places:
            return rng.choice(NASTY_VALUES)
        parent, key = rng.choice(places)
        match rng.randrange(5):
            case 0 | 1:
                parent[key] = copy.deepcopy(rng.choice(NASTY_VALUES))
            case 2:
                del parent[key]
            case 3:
                parent[key] = [parent[key]] if rng.random() < 0.5 else {"": parent[key]}
            case _:
                if isinstance(parent, dict):
                    parent[rng.choice(NASTY_TEXTS)] = copy.deepcopy(rng.choice(NASTY_VALUES))
                else:
                    parent.insert(key, copy.deepcopy(rng.choice(NASTY_VALUES)))
    return found


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below `value`, in order."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, child in items for place in [(value, key), *_places(child)]]
