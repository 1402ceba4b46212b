"""The viewer of a text: one HTML file in which the shade of each word says how many rounds it took."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from rtm_kernels.text.generate import Word

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>Rounds of each word</title>
<style>
{style}
main {{ display: block; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font: 15px/1.7 ui-monospace, monospace; }}
pre span {{ border-radius: 3px; }}
</style>
</head>
<body>
<header><h1>Rounds of each word</h1><p id="about">{about}</p></header>
<main>
<section><pre>{words}</pre></section>
<section><table><thead><tr><th>rounds</th><th>words</th><th>share</th></tr></thead><tbody>{table}</tbody></table></section>
</main>
</body>
</html>
"""


def write_words_page(words: Sequence[Word], most: int, path: str | os.PathLike[str]) -> None:
    """Write the page of `words` that took at most `most` rounds each to `path`; it loads nothing."""
    counts = Counter(word.rounds for word in words)
    mean = sum(rounds * count for rounds, count in counts.items()) / max(1, len(words))
    spans = (
        f'<span title="{word.rounds} of {most} rounds" style="background: rgb(32 112 208 / '
        f'{70 * word.rounds // most}%)">{html.escape(word.content.decode(errors="replace"))}</span>'
        for word in words
    )
    rows = (
        f"<tr><td>{rounds}</td><td>{count}</td><td>{100 * count / len(words):.1f} %</td></tr>"
        for rounds, count in sorted(counts.items())
    )
    style = (files("rtm_kernels") / "assets" / "viewer" / "style.css").read_text("utf-8")
    about = f"{len(words)} words, {mean:.2f} of {most} rounds in the mean; darker words took more"
    page = PAGE.format(style=style, about=about, words="".join(spans), table="".join(rows))
    Path(path).write_text(page, encoding="utf-8")
