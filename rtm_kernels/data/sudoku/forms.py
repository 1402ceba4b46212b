"""One line or one field of a Sudoku, in the forms that people post, as plain cells."""

from __future__ import annotations

import math
import re

from rtm_kernels.data.sudoku import rules

SEPARATORS = " \t|"
RULER = re.compile(r"[\s|*+=-]*[+=-][\s|*+=-]*")
ROW_NUMBER = re.compile(r"\s*\d{1,2}\s*[:)]\s+")
LIST = re.compile(r"[\[({]([^\[\](){}]*)[\])}]")
ABSENT = ("", "nan", "none", "null")
"""A field without a value, as pandas and others write it."""

_BETWEEN = str.maketrans(dict.fromkeys(SEPARATORS + ",()[]{}\"'\r\n"))
_TO_PLAIN = str.maketrans({**dict.fromkeys(rules.BLANKS, "."), **{d.lower(): d for d in rules.DIGITS}})


def cells(line: str, size: int) -> str | None:
    """The cells of one row or one puzzle of this size with `.` for blanks, or None where a line is neither.

    Between cells may stand spaces, tabs, `|`, commas, semicolons, and the brackets and quotes of code. Blanks are those
    of `rules`, also `-` beside digits, and spaces where the columns make them cells. A `+` before a digit marks a
    solved cell.
    """
    if rules.illegal_column(line, size) is None and len(line) == size * size:
        return line.translate(_TO_PLAIN)
    if len(line) > 6 * size * size:
        return None
    text = ROW_NUMBER.sub("", line, count=1)
    for form in (_fields, _compact, _columns, _joined):
        found = form(text, size)
        if found is not None and len(found) in (size, size * size) and rules.illegal_column(found, size) is None:
            return found.translate(_TO_PLAIN)
    return None


def field(text: str, size: int) -> str:
    """The cells of a field of a table, or the field itself where it holds none.

    Excel and pandas write a number that is a text as ="53007", '53007 and 53007.0.
    """
    text = text.strip(" =\"'\t\r\n")
    text = text[:-2] if text.endswith(".0") and text[:-2].isdigit() else text
    text = "" if text.lower() in ABSENT else text
    found = cells(text.translate(str.maketrans("\r\n", "  ")), size) or ""
    return found if len(found) == size * size else text


def _compact(text: str, size: int) -> str | None:
    """Cells one after the other, whatever separates them."""
    text = re.sub(r"\+(?=\w)", "", text.translate(_BETWEEN))
    return text.replace("-", ".") if re.search(r"\w", text) else text


def _fields(text: str, size: int) -> str | None:
    """One cell per field, empty ones blank: `5,3,,7`, `[[5, 3], [None, "7"]]` or `| 5 | 3 |  | 7 |`."""
    lists = LIST.findall(text) or [text.strip(" \r\n").strip("|")]
    parts = [part.strip(" '\"") for within in lists for part in re.split(r"[,;\t|]", within)]
    parts = ["." if part.lower() in ABSENT else part for part in parts]
    return "".join(parts) if all(len(part) == 1 for part in parts) else None


def _columns(text: str, size: int) -> str | None:
    """Spaces as blanks: a line of exactly as many characters as cells, or of boxes of equal width between `|`."""
    if len(text) not in (size, size * size):
        inner = text.strip().removeprefix("|").removesuffix("|") if text.strip().startswith("|") else text
        parts, width = inner.split("|"), math.isqrt(size)
        if len(parts) != width or any(len(part) != width for part in parts):
            return None
        text = "".join(parts)
    return text.replace(" ", ".") if text.strip() else None


def _joined(text: str, size: int) -> str | None:
    """Rows with a dot, slash, semicolon or written line end between them."""
    parts = (text.strip().split(separator) for separator in (".", "/", ";", "\\n"))
    return next(("".join(rows) for rows in parts if len(rows) == size and all(len(row) == size for row in rows)), None)
