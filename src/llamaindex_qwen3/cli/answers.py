"""Print an answer as it is written, with its citations and their sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from .. import show
from .app import out, shows_links, working

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore


class AnswerPrinter:
    """Prints the pieces of one answer.

    Args:
        nodes: The passages it was given, in the order of their numbers.
    """

    def __init__(self, nodes: Sequence[NodeWithScore]) -> None:
        from ..citations import MarkSplitter, citations

        self.text = ""
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
        out.print()

    def print_sources(self) -> None:
        """List the passages, those that the answer names marked."""
        from ..citations import cited

        used = cited(self.text, len(self._sources))
        out.print()
        out.print("[bold]Sources[/]")
        out.print(show.source_list(self._sources, used, self._links), soft_wrap=True)

    def _print(self, parts: Iterator[tuple[str, int | None]]) -> None:
        text = show.marked(parts, self._sources, self._links)
        if text:
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
