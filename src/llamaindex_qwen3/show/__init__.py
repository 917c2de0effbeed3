"""How the command line presents what the other modules compute, on a terminal."""

from __future__ import annotations

from rich.markup import escape

from .checks import check, check_summary
from .collection import collection
from .ranking import passages, rankings
from .sources import marked, source_list
from .text import clean, count, title

__all__ = [
    "DEMO_NOTICE",
    "NO_KEY",
    "check",
    "check_summary",
    "clean",
    "collection",
    "count",
    "escape",
    "marked",
    "passages",
    "rankings",
    "source_list",
    "title",
]

DEMO_NOTICE = (
    "[yellow]Demo models:[/] a tiny English pair that shows how things work, not how well. "
    "For real results use [bold]--models 0.6b[/] instead (downloads Qwen3, 2.4 GB)."
)
NO_KEY = (
    "[dim]For an answer written from these passages, set OPENAI_API_KEY, or give --llm-base-url for "
    "a server of your own.[/]"
)
