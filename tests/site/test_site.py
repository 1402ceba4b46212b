"""The documentation site: built without a warning, every link and picture of its pages is there, nothing is loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

import rtm_kernels
from rtm_kernels import interop
from tests.site.demo import SOURCE

ROOT = Path(__file__).resolve().parents[2]

for package in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(package, reason=f"no {package} here (make docs installs it): the site is unproven")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The site as `make docs` builds it, with a few bytes instead of the exported model."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    (folder / "model.onnx").write_bytes(b"model")
    config = load_config(
        str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder / "site"), extra={"onnx": str(folder / "model.onnx")}
    )
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        build(config)
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    assert warnings == []
    yield folder / "site"


def targets(page: Path) -> list[str]:
    """What a page links to or shows."""
    text = re.sub(r"<script.*?</script>", "", page.read_text("utf-8"), flags=re.S)
    return re.findall(r'(?:href|src)="?([^"\s>]+)', text)


def test_every_link_and_picture_is_there(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 35
    for page in pages:
        for target in targets(page):
            place, _, anchor = unquote(target).partition("#")
            if re.match(r"[a-z]+:", place):
                continue
            file = (page.parent / place).resolve() if place else page
            assert file.is_file(), f"{page.relative_to(site)}: {target}"
            if anchor and file.suffix == ".html":
                assert re.search(rf'id="?{re.escape(anchor)}["\s>]', file.read_text("utf-8")), f"{page.name}: {target}"


def test_the_pages_of_the_repository_are_in_it(site: Path) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "DESIGN.md"]
    for page in pages:
        place = "index.html" if page.name == "README.md" else page.relative_to(ROOT).with_suffix(".html")
        assert (site / place).is_file()
        pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text("utf-8"))
        shown = targets(site / place)
        assert all(picture in shown for picture in pictures)
    assert 'src="profiles/images/viewer.png"' in (site / "index.html").read_text("utf-8")


def test_the_api_has_every_public_name_with_its_text(site: Path) -> None:
    text = (site / "docs" / "api.html").read_text("utf-8")
    for home in (rtm_kernels, interop):
        for name in home.__all__:
            thing = getattr(home, name)
            assert f'id="{thing.__module__}.{thing.__qualname__}"' in text
    assert "swiglu_norm" in text and "Errors:" in text and "push_to_hub" in text


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.search(r'(?:src|<link[^>]*href)="?(?:https?:)?//', text), page
    demo = (site / "docs" / "demo" / "index.html").read_text("utf-8")
    assert "<!-- model -->" not in demo and (SOURCE / "onnx.js").read_text("utf-8") in demo
