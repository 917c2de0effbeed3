"""What is in a Milvus collection, read without a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymilvus import DataType, MilvusClient

from .errors import StoreError
from .milvus_connection import BUILT_WITH, check_uri, connect
from .milvus_errors import plain_errors

#: Values of a metadata key that are counted one by one; of more, only their number is told.
MOST_VALUES = 8

_SAMPLED_ROWS = 200
_ROWS_AT_ONCE = 1000
_BOOKKEEPING = {"_node_content", "_node_type", "document_id", "ref_doc_id", "digest", "chunks"}
_SPARSE = DataType.SPARSE_FLOAT_VECTOR
_DENSE = (DataType.FLOAT_VECTOR, DataType.FLOAT16_VECTOR, DataType.BFLOAT16_VECTOR)


@dataclass(frozen=True)
class IndexInfo:
    """One vector field's index; `state` is Milvus's own word for it."""

    kind: str
    metric: str
    state: str
    indexed_rows: int
    pending_rows: int


@dataclass(frozen=True)
class KeyInfo:
    """A metadata key: rows that have it, different values, and how often the few are."""

    rows: int
    distinct: int
    values: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CollectionInfo:
    """What a collection holds and how it was built.

    `built_with` is what this package noted at its creation; empty where another program made it.
    """

    uri: str
    name: str
    server: str
    rows: int
    documents: dict[str, int]
    dimensions: int | None
    dense: IndexInfo | None
    words: IndexInfo | None
    consistency_level: str
    partition_key: str | None
    built_with: dict[str, Any]
    metadata: dict[str, KeyInfo]


def collection_info(
    uri: str,
    name: str,
    token: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> CollectionInfo:
    """Describe a collection; nothing is created, changed or loaded but the collection itself.

    Args:
        uri: A path ending in .db, or the address of a server.
        name: The collection.
        token: "user:password" or an API key.
        on_progress: Called with rows read and rows in all.

    Raises:
        StoreError: There is no such collection, or the store cannot be reached.
    """
    uri = check_uri(uri)
    is_lite = "://" not in uri
    if is_lite and not Path(uri).exists():
        raise StoreError(
            f"There is no database {uri!r}. Store something in it first: qwen3-rag ingest PATH"
        )
    with plain_errors(uri):
        client = connect(uri, token)
        if not client.has_collection(name):
            others = ", ".join(sorted(client.list_collections())) or "none"
            raise StoreError(f"There is no collection {name!r} at {uri!r}; there are: {others}.")
        client.load_collection(name)
        return _read(client, uri, name, is_lite, on_progress or (lambda read, total: None))


def _read(
    client: MilvusClient,
    uri: str,
    name: str,
    is_lite: bool,
    on_progress: Callable[[int, int], None],
) -> CollectionInfo:
    described = client.describe_collection(name)
    fields = {each["name"]: each for each in described["fields"]}
    indexes = {
        each: _index(client.describe_index(name, index))
        for each in fields
        for index in client.list_indexes(name, field_name=each)
    }
    dense = next((each for each in fields if fields[each]["type"] in _DENSE), None)
    sparse = next((each for each in fields if fields[each]["type"] == _SPARSE), None)
    rows = int(client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"])
    keys = _metadata_keys(client, name, fields)
    # Milvus Lite has no iterator, and gives all rows that meet a condition at once.
    key = next(each for each in fields.values() if each.get("is_primary")) if is_lite else None
    documents, metadata = _count(
        _rows(client, name, ["doc_id", *keys] if "doc_id" in fields else keys, key),
        keys,
        lambda read: on_progress(read, rows),
    )
    return CollectionInfo(
        uri=uri,
        name=name,
        server="Milvus Lite" if is_lite else f"Milvus {client.get_server_version()}",
        rows=rows,
        documents=documents,
        dimensions=int(fields[dense]["params"]["dim"]) if dense else None,
        dense=indexes.get(dense or ""),
        words=indexes.get(sparse or ""),
        consistency_level=str(described.get("consistency_level_name") or ""),
        partition_key=next((n for n in fields if fields[n].get("is_partition_key")), None),
        built_with=json.loads((described.get("properties") or {}).get(BUILT_WITH) or "{}"),
        metadata=metadata,
    )


def _index(described: Mapping[str, Any]) -> IndexInfo:
    return IndexInfo(
        kind=str(described.get("index_type", "")),
        metric=str(described.get("metric_type", "")),
        state=str(described.get("state", "")),
        indexed_rows=int(described.get("indexed_rows") or 0),
        pending_rows=int(described.get("pending_index_rows") or 0),
    )


def _metadata_keys(
    client: MilvusClient, name: str, fields: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return the keys that the first rows have, without what every collection has."""
    vectors = {n for n, each in fields.items() if each["type"] in (*_DENSE, _SPARSE)}
    keys = {n for n, each in fields.items() if each.get("is_primary")}
    own = {"doc_id", "text", "$meta", *keys, *vectors, *_BOOKKEEPING}
    sample = client.query(name, filter="", limit=_SAMPLED_ROWS, output_fields=["*"])
    return sorted({key for row in sample for key in row} - own)


def _rows(
    client: MilvusClient, name: str, fields: Sequence[str], lite_key: Mapping[str, Any] | None
) -> Iterator[Mapping[str, Any]]:
    if lite_key is not None:
        least = '""' if lite_key["type"] == DataType.VARCHAR else str(-(2**63))
        condition = f"{lite_key['name']} >= {least}"
        yield from client.query(name, filter=condition, output_fields=list(fields))
        return
    rows = client.query_iterator(
        name, batch_size=_ROWS_AT_ONCE, filter="", output_fields=list(fields)
    )
    try:
        while batch := rows.next():
            yield from batch
    finally:
        rows.close()


def _count(
    rows: Iterator[Mapping[str, Any]], keys: Sequence[str], on_read: Callable[[int], None]
) -> tuple[dict[str, int], dict[str, KeyInfo]]:
    """Count the rows of each document, and the values of each metadata key."""
    documents: Counter[str] = Counter()
    values: dict[str, Counter[str]] = {key: Counter() for key in keys}
    for read, row in enumerate(rows, 1):
        if document := row.get("doc_id"):
            documents[str(document)] += 1
        for key in keys:
            if row.get(key) is not None:
                values[key][str(row[key])] += 1
        if read % _ROWS_AT_ONCE == 0:
            on_read(read)
    metadata = {
        key: KeyInfo(
            rows=counts.total(),
            distinct=len(counts),
            values=dict(counts.most_common()) if len(counts) <= MOST_VALUES else {},
        )
        for key, counts in values.items()
    }
    return dict(sorted(documents.items())), metadata
