"""What is in a collection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .text import clean, count

if TYPE_CHECKING:
    from ..collection_info import CollectionInfo, IndexInfo, KeyInfo


def collection(info: CollectionInfo, files: bool = False) -> Group:
    """Show a collection's size, its indexes, what it was built with, and its metadata.

    Args:
        info: The collection.
        files: List its files as well, with the chunks of each.
    """
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(info):
        facts.add_row(name, clean(value))
    blocks: list[RenderableType] = [Text(f"{info.name} at {info.uri}", "bold"), facts]
    if info.metadata:
        table = Table(title="Metadata", title_style="bold", title_justify="left")
        table.add_column("Key")
        table.add_column("Rows", justify="right")
        table.add_column("Values", overflow="fold")
        for key, about in info.metadata.items():
            table.add_row(clean(key), str(about.rows), clean(_values(about)))
        blocks += ["", table]
    if files:
        table = Table(title="Files", title_style="bold", title_justify="left")
        table.add_column("File", overflow="fold")
        table.add_column("Chunks", justify="right")
        for document, chunks in info.documents.items():
            table.add_row(clean(document), str(chunks))
        blocks += ["", table]
    return Group(*blocks)


def _facts(info: CollectionInfo) -> Iterator[tuple[str, str]]:
    yield "Holds", f"{count(info.rows, 'row')} of {count(len(info.documents), 'document')}"
    metric = f", metric {info.dense.metric}" if info.dense else ""
    yield "Vectors", f"{info.dimensions} dimensions{metric}"
    yield "Index", _index(info.dense) if info.dense else "none"
    yield "Words", _index(info.words) if info.words else "not indexed: no hybrid search"
    built = info.built_with
    if built:
        task = built.get("document task")
        yield "Model", f"{built.get('name', built.get('model', '?'))}"
        yield "Weights", str(built.get("model", "?"))
        yield "Documents", f"embedded for the task {task!r}" if task else "embedded bare"
        if not built.get("normalize", True):
            yield "", "vectors are not scaled to unit length"
    else:
        yield "Model", "not noted: another program made this collection"
    if info.partition_key:
        yield "Partitions", f"by {info.partition_key}"
    yield "Store", f"{info.server}, consistency {info.consistency_level}"


def _index(index: IndexInfo) -> str:
    pending = f", {index.pending_rows:,} pending" if index.pending_rows else ""
    return f"{index.kind}, {index.state.lower() or 'state unknown'}{pending}"


def _values(about: KeyInfo) -> str:
    if not about.values:
        return f"{about.distinct:,} different"
    return ", ".join(f"{value} ({n:,})" for value, n in about.values.items())
