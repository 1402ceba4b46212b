"""Mazes in the forms that people post, as cells of the vocabulary."""

from __future__ import annotations

ALIASES = str.maketrans({"s": "S", "g": "G", "e": "E", **dict.fromkeys("\u2588\u2593\u25a0", "#"), "_": " "})
"""Characters of mazes met in public -> those of the vocabulary."""
CHARACTERS = frozenset("#. SGEo10,\t")


def is_cells(line: str) -> bool:
    """Whether a line begins with a wall, or holds nothing but cells of a maze and what separates them."""
    return line.startswith("#") or CHARACTERS.issuperset(line.translate(ALIASES))


def trimmed(rows: list[str]) -> bool:
    """Whether an editor took away the open cells at the ends of rows: they differ in width, and no dots are open."""
    return len(set(map(len, rows))) > 1 and "." not in "".join(rows)


def plain(text: str) -> str:
    """A maze in the vocabulary: E is its end where no G is, 1 and 0 are wall and open where no # is.

    Rows get back the open cells that an editor took away. Cells may be separated by commas, and in a square by spaces
    or tabs; rows may be indented. What is ambiguous stays as it is, for `encode` to refuse.
    """
    rows = text.translate(ALIASES).split("\n")
    side = len(rows)
    width = max(side, *map(len, rows))
    if side > 1 and trimmed(rows):
        rows = [row.ljust(width) for row in rows]
    between = set("".join([row[1::2] for row in rows]))
    if between == {","} or (between in ({" "}, {"\t"}) and width == 2 * side - 1):
        rows = [row[::2] for row in rows]
    elif 1 < side < width and not "".join(row[: width - side] for row in rows).strip():
        rows = [row[width - side :] for row in rows]
    text = "\n".join(rows)
    if "G" not in text:
        text = text.replace("E", "G")
    if not set(text) & set("# ."):
        text = text.replace("1", "#").replace("0", " ")
    return text
