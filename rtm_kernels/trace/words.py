"""The viewer of a text: one HTML file in which the shade of each word says how many rounds it took."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rtm_kernels.text.generate import Word
from rtm_kernels.trace.page import fill


def write_words_page(words: Sequence[Word], most: int, path: str | os.PathLike[str]) -> None:
    """Write the page of `words` that took at most `most` rounds each to `path`; it loads nothing."""
    counts = Counter(word.rounds for word in words)
    mean = sum(rounds * count for rounds, count in counts.items()) / max(1, len(words))
    spans = (
        f'<span title="{word.rounds} of {most} rounds" style="background: rgb(32 112 208 / '
        f'{70 * word.rounds // most}%)">{html.escape(word.content.decode(errors="replace"))}</span>'
        for word in words
    )
    rows = (f"<tr><td>{n}</td><td>{counts[n]}</td><td>{100 * counts[n] / len(words):.1f} %</td></tr>"
            for n in sorted(counts))  # fmt: skip
    about = f"{len(words)} words, {mean:.2f} of {most} rounds in the mean; darker words took more"
    Path(path).write_text(fill("words.html", ABOUT=about, WORDS="".join(spans), TABLE="".join(rows)), encoding="utf-8")
