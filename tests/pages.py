"""The pages people read, with the parts they include, and the fenced blocks in them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
#: What a block may be written in; another one fails the tests until something is done with it.
RUN = {"python", "sh", "diff"}
READ = {"text", "json", ""}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, and the header it stands under."""

    page: str
    line: int
    language: str
    text: str
    section: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}, line {self.line}"


def hooks() -> ModuleType:
    """Return the module that puts the parts into the pages of the site."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages() -> list[str]:
    """Return the path of every page with code in it."""
    files = [ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted(
        str(file.relative_to(ROOT))
        for file in files
        if "data" not in file.relative_to(ROOT).parts and any(blocks(str(file.relative_to(ROOT))))
    )


def text_of(page: str) -> str:
    """Return a page as its readers see it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.startswith("docs/"):
        return str(hooks().with_parts(text, page.removeprefix("docs/")))
    return text


def blocks(page: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page in order."""
    section = ""
    tokens = MarkdownIt().parse(text_of(page))
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            section = tokens[i + 1].content
        if token.type == "fence":
            assert token.map
            language = token.info.split()[0] if token.info.strip() else ""
            yield Block(page, token.map[0] + 1, language, token.content, section)
