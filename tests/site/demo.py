"""The browser demo of `docs/demo` as one file: the page, its scripts, and the bundled Sudoku model as ONNX."""

from __future__ import annotations

import base64
import gzip
import re
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "docs" / "demo"


def page(onnx: bytes) -> str:
    """The page that solves with this model; it loads nothing else."""
    text = (SOURCE / "index.html").read_text("utf-8")
    packed = base64.b64encode(gzip.compress(onnx, 9, mtime=0)).decode()
    text = text.replace("<!-- model -->", packed)
    return re.sub(
        r'<script src="(\w+\.js)">', lambda match: f"<script>\n{(SOURCE / match[1]).read_text('utf-8')}", text
    )
