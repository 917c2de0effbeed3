"""Text of documents on a terminal."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore


def count(number: int, what: str) -> str:
    """Return a number of things: "1 file", "2 files"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def title(node: NodeWithScore) -> Text:
    """Name a passage by its section, or else by how it begins."""
    return Text(clean(node.metadata.get("section") or node.node.get_content()[:60]))


def clean(text: str) -> str:
    """Drop control characters, with which a stored text could drive the reader's terminal."""
    return "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("Cc"))
