"""Numbered passages, and the numbers by which an answer names them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

from .splitting import slug

NUMBER_KEY = "passage"

# [1], and as some models write it: [1, 2].
_MARK = re.compile(r"\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]")
_BEGUN_MARK = re.compile(r"\[[\d\s,;]{0,24}$")


class PassageNumbers(BaseNodePostprocessor):
    """Number nodes from 1 in the metadata that a language model reads, so that it can cite them."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised components carry."""
        return "PassageNumbers"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return [_numbered(scored, number) for number, scored in enumerate(nodes, 1)]


@dataclass(frozen=True)
class Citation:
    """Where a numbered passage stands.

    `path` is None where the file it was read from is not here; `line` is that of its header.
    """

    number: int
    section: str
    file: str
    path: Path | None = None
    line: int | None = None

    @property
    def uri(self) -> str | None:
        """Address of the file, for a link."""
        return self.path.as_uri() if self.path else None

    @property
    def place(self) -> str:
        """File and line, from the current folder where it is inside."""
        if self.path is None:
            return self.file
        here = Path.cwd()
        path = self.path.relative_to(here) if self.path.is_relative_to(here) else self.path
        return f"{path}:{self.line}" if self.line else str(path)


def citations(nodes: Sequence[NodeWithScore]) -> list[Citation]:
    """Say where nodes come from, numbered from 1 in their order."""
    return [_citation(scored, number) for number, scored in enumerate(nodes, 1)]


def cited(answer: str, passages: int) -> list[int]:
    """Return the numbers of the passages that an answer names, in order, each once."""
    numbers = [number for _, number in split_marks(answer) if number is not None]
    return [number for number in dict.fromkeys(numbers) if 1 <= number <= passages]


def split_marks(text: str) -> Iterator[tuple[str, int | None]]:
    """Yield the parts of a text: plain ones with None, marks such as [1] with their number."""
    end = 0
    for mark in _MARK.finditer(text):
        if plain := text[end : mark.start()]:
            yield plain, None
        for number in re.findall(r"\d+", mark[1]):
            yield f"[{int(number)}]", int(number)
        end = mark.end()
    if text[end:]:
        yield text[end:], None


class MarkSplitter:
    """`split_marks` for a text that comes in pieces, where a mark may be cut in two."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> Iterator[tuple[str, int | None]]:
        """Yield the parts that are whole now."""
        text = self._held + piece
        begun = _BEGUN_MARK.search(text)
        cut = begun.start() if begun else len(text)
        self._held = text[cut:]
        yield from split_marks(text[:cut])

    def rest(self) -> Iterator[tuple[str, int | None]]:
        """Yield what was held back."""
        text, self._held = self._held, ""
        yield from split_marks(text)


def _numbered(scored: NodeWithScore, number: int) -> NodeWithScore:
    node = scored.node
    hidden = [key for key in node.excluded_llm_metadata_keys if key != NUMBER_KEY]
    unread = list(dict.fromkeys([*node.excluded_embed_metadata_keys, NUMBER_KEY]))
    others = {key: value for key, value in node.metadata.items() if key != NUMBER_KEY}
    copy = node.model_copy(
        update={
            "metadata": {NUMBER_KEY: number, **others},
            "excluded_llm_metadata_keys": hidden,
            "excluded_embed_metadata_keys": unread,
        }
    )
    return NodeWithScore(node=copy, score=scored.score)


def _citation(scored: NodeWithScore, number: int) -> Citation:
    metadata = scored.node.metadata
    section = str(metadata.get("section") or " ".join(scored.node.get_content()[:60].split()))
    file = str(metadata.get("file") or metadata.get("file_name") or scored.node.ref_doc_id or "")
    for candidate in (scored.node.ref_doc_id, metadata.get("file_path")):
        path = Path(str(candidate or ""))
        if path.is_absolute() and path.is_file():
            return Citation(number, section, file, path, _line(path, section))
    return Citation(number, section, file)


def _line(path: Path, section: str) -> int | None:
    """Return the number of the line where a section begins in a text file."""
    if path.suffix.lower() not in (".md", ".markdown", ".txt"):
        return None
    wanted = slug(section)
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if line.startswith("#") and slug(line.lstrip("#")) == wanted:
                    return number
    except OSError:
        pass
    return None
