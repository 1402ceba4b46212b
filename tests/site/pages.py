"""Hooks of `make docs`: the site has the layout of the repository, from README.md along every link inside it.

So the links of a page work in the repository and on the site. Pages are Markdown; pictures, figures and whatever else
a page links to is copied. The reference of the API is made from the public names, the demo from the bundled model.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import rtm_kernels
from rtm_kernels import interop, ops
from rtm_kernels.interop.export import export
from rtm_kernels.model import RecursiveReasoner
from tests.site import demo

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")
API = "docs/api.md"


def linked() -> list[Path]:
    """README.md, the pages of `docs`, and every file that a page among them links to."""
    todo = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found: list[Path] = []
    while todo:
        path = todo.pop(0)
        if path in found or not path.is_file():  # a link to nothing is mkdocs' to report
            continue
        found.append(path)
        if path.suffix == ".md":
            links = LINK.findall(re.sub(r"`[^`]*`", "", path.read_text("utf-8")))
            todo += [(path.parent / link).resolve() for link in links]
    return found


def public() -> dict[str, list[Any]]:
    """Title of a part of the API -> what it lists."""
    apis = [f"{ops.__name__}.{found.name}.api" for found in pkgutil.iter_modules(ops.__path__) if found.ispkg]
    functions = []
    for name in apis:
        if (ROOT / (name.replace(".", "/") + ".py")).exists():
            module = import_module(name)
            functions += [f for n, f in vars(module).items() if n[0] != "_" and getattr(f, "__module__", "") == name]
    return {
        "Models, tasks, solving": [getattr(rtm_kernels, name) for name in rtm_kernels.__all__],
        "Official models": [*(getattr(interop, name) for name in interop.__all__), export],
        "Ops": [f for f in functions if inspect.isfunction(f)],
    }


def api() -> str:
    """The page of the API as mkdocstrings reads it."""
    parts = ["# API"]
    seen: set[str] = set()
    for title, things in public().items():
        names = [f"{thing.__module__}.{thing.__qualname__}" for thing in things]
        parts += [f"## {title}", *(f"::: {name}" for name in names if name not in seen)]
        seen |= set(names)
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """The files of the site instead of those of `docs` alone."""
    made = [file for file in files if not file.is_documentation_page() and "demo/" not in file.src_uri]
    for path in linked():
        place = path.relative_to(ROOT).as_posix()
        made.append(File(place, str(ROOT), config.site_dir, config.use_directory_urls))
    made.append(File.generated(config, API, content=api()))
    return Files(made)


def on_post_build(config: Any) -> None:
    """The demo in its place; the option `extra.onnx` names a model that was exported before."""
    onnx = config.extra.get("onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(onnx or Path(folder) / "sudoku.onnx")
        if not onnx:
            export(RecursiveReasoner.from_pretrained("sudoku"), path)
        (Path(config.site_dir) / "docs" / "demo" / "index.html").write_text(demo.page(path.read_bytes()), "utf-8")
