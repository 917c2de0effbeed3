"""Answers with their citations and sources: printed as they are written, or as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from .. import show
from .app import out, shows_links, working

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore


class AnswerPrinter:
    """Prints the pieces of one answer.

    Args:
        nodes: The passages it was given, in the order of their numbers.
        silent: Keep the text and print nothing.
    """

    def __init__(self, nodes: Sequence[NodeWithScore], silent: bool = False) -> None:
        from ..citations import MarkSplitter, citations

        self.text, self.nodes, self._silent = "", nodes, silent
        self._sources = citations(nodes)
        self._splitter = MarkSplitter()
        self._links = shows_links()

    def add(self, piece: str) -> None:
        """Print what can be printed after one more piece."""
        self.text += piece
        self._print(self._splitter.feed(piece))

    def end(self) -> None:
        """End the last line."""
        self._print(self._splitter.rest())
        if not self._silent:
            out.print()

    def print_sources(self) -> None:
        """List the passages, those that the answer names marked."""
        from ..citations import cited

        if self._silent:
            return
        used = cited(self.text, len(self._sources))
        out.print()
        out.print("[bold]Sources[/]")
        out.print(show.source_list(self._sources, used, self._links), soft_wrap=True)

    def _print(self, parts: Iterator[tuple[str, int | None]]) -> None:
        text = show.marked(parts, self._sources, self._links)
        if text and not self._silent:
            out.print(text, end="", soft_wrap=True)


def print_answer(pieces: Iterator[str], nodes: Sequence[NodeWithScore]) -> None:
    """Print an answer while it is written, and its sources.

    Raises:
        GenerationError: The language model failed; what it had written is shown.
    """
    printer = AnswerPrinter(nodes)
    with working("Waiting for the answer"):
        first = next(pieces, "")
    try:
        for piece in chain([first], pieces):
            printer.add(piece)
    finally:
        printer.end()
    printer.print_sources()


def passages_as_data(nodes: Sequence[NodeWithScore]) -> list[dict[str, Any]]:
    """Describe numbered passages: where they stand, their score and their text."""
    from ..citations import citations

    return [
        {
            "number": source.number,
            "section": source.section,
            "file": source.file,
            "path": str(source.path) if source.path else None,
            "line": source.line,
            "score": node.score,
            "id": node.node_id,
            "text": node.node.get_content(),
        }
        for source, node in zip(citations(nodes), nodes, strict=True)
    ]


def with_cited(rows: list[dict[str, Any]], answer: str) -> list[dict[str, Any]]:
    """Note of each passage whether an answer names it."""
    from ..citations import cited

    used = cited(answer, len(rows))
    return [{**row, "cited": row["number"] in used} for row in rows]
