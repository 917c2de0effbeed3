"""Candidates before and after reranking, and the passages themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .text import clean, title

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from ..pipeline import Ranking

PASSAGE_CHARACTERS = 400
# Below this, two lists side by side leave too little room for their titles.
NARROW = 76
VERY_NARROW = 52


def rankings(ranking: Ranking, kept: int, width: int = 80) -> Table:
    """Show the candidates and the best `kept` of the reranked ones, and who moved how far.

    Args:
        ranking: Of one question.
        kept: How many of the reranked ones to show.
        width: Columns of the terminal; on few, the reranked ones are shown alone.
    """
    places = {node.node_id: place for place, node in enumerate(ranking.candidates)}
    if width < NARROW:
        return _reranked(ranking, kept, places, width)
    table = _table(ranking)
    searched = "By embedding" if ranking.search == "dense" else "By vector and words"
    table.add_column(searched, ratio=1, overflow="fold")
    table.add_column("Score", justify="right")
    table.add_column("After reranking", ratio=1, overflow="fold")
    table.add_column("Score", justify="right")
    table.add_column("Moved", justify="right")
    for row, candidate in enumerate(ranking.candidates):
        right: tuple[RenderableType, ...] = ("", "", "")
        if row < kept:
            node = ranking.reranked[row]
            right = (title(node), _score(node), _moved(places[node.node_id] - row))
        table.add_row(str(row + 1), title(candidate), f"{candidate.score:.4f}", *right)
    return table


def _reranked(ranking: Ranking, kept: int, places: dict[str, int], width: int) -> Table:
    with_places = width >= VERY_NARROW
    table = _table(ranking)
    table.add_column("Reranked", ratio=1, overflow="fold")
    table.add_column("Score", justify="right", no_wrap=True)
    if with_places:
        table.add_column("Before", justify="right")
    table.add_column("Moved", justify="right")
    for row, node in enumerate(ranking.reranked[:kept]):
        before = places[node.node_id]
        place = [str(before + 1)] if with_places else []
        table.add_row(str(row + 1), title(node), _score(node), *place, _moved(before - row))
    return table


def passages(nodes: Sequence[NodeWithScore]) -> Group:
    """Show the text of the best passages, numbered, with where they stand."""
    blocks: list[RenderableType] = []
    for number, node in enumerate(nodes, 1):
        text = node.node.get_content().partition("\n")[2] or node.node.get_content()
        text = clean(" ".join(text.split()))
        if len(text) > PASSAGE_CHARACTERS:
            text = text[:PASSAGE_CHARACTERS].rsplit(" ", 1)[0] + " …"
        source = Text.assemble(
            (f"[{number}] ", "bold cyan"), (title(node).plain, "bold"),
            (f"  {clean(str(node.metadata.get('file', '')))}", "dim"),
        )  # fmt: skip
        blocks += [source, Padding(Text(text), (0, 0, 1, 4), expand=False)]
    return Group(*blocks)


def _table(ranking: Ranking) -> Table:
    question = escape(clean(ranking.question))
    table = Table(title=question, title_style="bold", title_justify="left")
    table.add_column("", justify="right", style="dim")
    return table


def _score(node: NodeWithScore) -> str:
    # Reranked scores crowd near 0 and 1: five decimals tell them apart.
    return f"{node.score:.5f}"


def _moved(places: int) -> Text:
    if places == 0:
        return Text("=", style="dim")
    return Text(f"↑{places}", style="green") if places > 0 else Text(f"↓{-places}", style="red")
