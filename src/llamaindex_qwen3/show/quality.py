"""Figures before and after reranking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ..evaluate import Quality


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
