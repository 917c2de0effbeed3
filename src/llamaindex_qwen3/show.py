"""How the command line presents rankings, passages and figures on a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from .evaluate import Quality
    from .pipeline import Ranking

__all__ = ["DEMO_NOTICE", "NO_KEY", "clean", "escape", "passages", "quality", "rankings"]

DEMO_NOTICE = (
    "[yellow]Demo models:[/] a tiny English pair that shows how things work, not how well. "
    "For real results add [bold]--models 0.6b[/] (downloads Qwen3, 2.4 GB)."
)
NO_KEY = (
    "[dim]For an answer written from these passages, set OPENAI_API_KEY, or give --llm-base-url for "
    "a server of your own.[/]"
)
PASSAGE_CHARACTERS = 400


def rankings(ranking: Ranking, kept: int) -> Table:
    """Show the candidates beside the best `kept` of the reranked ones, and who moved how far."""
    table = Table(title=escape(ranking.question), title_style="bold", title_justify="left")
    table.add_column("", justify="right", style="dim")
    table.add_column("By embedding", ratio=1, overflow="fold")
    table.add_column("Score", justify="right")
    table.add_column("After reranking", ratio=1, overflow="fold")
    table.add_column("Score", justify="right")
    table.add_column("Moved", justify="right")
    places = {node.node_id: place for place, node in enumerate(ranking.candidates)}
    for row, candidate in enumerate(ranking.candidates):
        right: tuple[RenderableType, ...] = ("", "", "")
        if row < kept:
            node = ranking.reranked[row]
            # Reranked scores crowd near 0 and 1: five decimals tell them apart.
            score = f"{node.score:.5f}"
            right = (title(node), score, _moved(places[node.node_id] - row))
        table.add_row(str(row + 1), title(candidate), f"{candidate.score:.4f}", *right)
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
            (f"  {node.metadata.get('file', '')}", "dim"),
        )  # fmt: skip
        blocks += [source, Padding(Text(text), (0, 0, 1, 4))]
    return Group(*blocks)


def quality(before: Quality, after: Quality) -> Table:
    """Show figures before and after reranking, and the difference."""
    table = Table(title=f"{before.questions} questions", title_style="bold", title_justify="left")
    for column in ("", "by embedding", "after reranking", "change"):
        table.add_column(column, justify="left" if not column else "right")
    rows = [(f"recall@{k}", before.recall[k], after.recall[k]) for k in before.recall]
    rows += [("MRR@10", before.mrr, after.mrr), ("nDCG@10", before.ndcg, after.ndcg)]
    for name, old, new in rows:
        table.add_row(name, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
    return table


def title(node: NodeWithScore) -> Text:
    """Name a passage by its section, or else by how it begins."""
    return Text(clean(node.metadata.get("section") or node.node.get_content()[:60]))


def clean(text: str) -> str:
    """Drop control characters, with which a stored text could drive the reader's terminal."""
    return "".join(c for c in text if c in "\n\t" or not unicodedata.category(c).startswith("Cc"))


def _moved(places: int) -> Text:
    if places == 0:
        return Text("=", style="dim")
    return Text(f"↑{places}", style="green") if places > 0 else Text(f"↓{-places}", style="red")
