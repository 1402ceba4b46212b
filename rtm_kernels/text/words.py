"""Text to words, by the rules of the package hat-splitter."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from rtm_kernels.errors import BackendUnavailable


def splitter(max_bytes: int) -> Callable[[str], list[bytes]]:
    """The splitter of HAT (arXiv 2501.10322, appendix), for words of at most `max_bytes` bytes of UTF-8.

    Boundaries are those of words in Unicode (UAX 29), and one before each capital that follows a small letter and
    after each underscore. A word then takes in the single space before it and the punctuation that follows it; other
    white space is words of its own, each run of spaces, each tab and each line end. What is longer than `max_bytes` is
    cut there, also within a character. `"def foo(self):\\n"` is `def`, ` foo(`, `self):`, `\\n`.

    Errors: `BackendUnavailable` without the package.
    """
    if importlib.util.find_spec("hat_splitter") is None:
        raise BackendUnavailable("text needs the package hat-splitter: pip install 'rtm-kernels[text]'")
    own = importlib.import_module("hat_splitter").HATSplitter()
    return lambda text: own.split_with_limit(text, max_bytes)
