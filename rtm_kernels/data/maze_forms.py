"""Mazes in the forms that people post, as cells of the vocabulary."""

from __future__ import annotations

ALIASES = str.maketrans({"s": "S", "g": "G", "e": "E", **dict.fromkeys("\u2588\u2593\u25a0", "#"), "_": " "})
"""Characters of mazes met in public -> those of the vocabulary."""


def plain(text: str) -> str:
    """A maze in the vocabulary: E is its end where no G is, 1 and 0 are wall and open where no # is.

    Cells may be separated by commas. What is ambiguous stays as it is, for `encode` to refuse.
    """
    rows = text.translate(ALIASES).split("\n")
    if all(set(row[1::2]) <= {","} and "," not in row[::2] for row in rows if len(row) > 1):
        rows = [row[::2] for row in rows]
    text = "\n".join(rows)
    if "G" not in text:
        text = text.replace("E", "G")
    if not set(text) & set("# ."):
        text = text.replace("1", "#").replace("0", " ")
    return text


def drawn(rows: list[str], side: int = 0) -> str:
    """The rows of a grid, at least `side` wide, with the open cells at their ends that an editor took away.

    An empty line is such a row only where other rows end early too. Else it may separate two halves, and stays empty.
    """
    width = max(side, *map(len, rows))
    if "" in rows and all(len(row) in (0, width) for row in rows):
        return "\n".join(rows)
    return "\n".join(row.ljust(width) for row in rows)
