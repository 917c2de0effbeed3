"""Citations: marks in an answer, and the list of what they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from .text import clean

if TYPE_CHECKING:
    from ..citations import Citation


def marked(
    parts: Iterable[tuple[str, int | None]], sources: Sequence[Citation], links: bool
) -> Text:
    """Return parts of an answer with its marks set off, as links to their files if `links`."""
    text = Text()
    for part, number in parts:
        if number is None or not 1 <= number <= len(sources):
            text.append(clean(part))
        else:
            text.append(part, _style("bold cyan", sources[number - 1], links))
    return text


def source_list(sources: Sequence[Citation], used: Sequence[int], links: bool) -> Text:
    """List passages by number, section and file; those the answer names have a dot."""
    text = Text()
    width = max((len(source.section) for source in sources), default=0)
    for source in sources:
        is_used = source.number in used
        if source.number > 1:
            text.append("\n")
        text.append(
            f"{'•' if is_used else ' '} [{source.number}]", "bold cyan" if is_used else "dim"
        )
        section = clean(source.section).ljust(min(width, 40))
        text.append(f" {section}  ", "bold" if is_used else "dim")
        text.append(clean(source.place), _style("" if is_used else "dim", source, links))
    return text


def _style(style: str, source: Citation, links: bool) -> Style:
    return Style.parse(style) + Style(link=source.uri if links else None)
