"""A MilvusVectorStore that loads, checks and flushes."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node
from llama_index.vector_stores.milvus import MilvusVectorStore
from llama_index.vector_stores.milvus.utils import BM25BuiltInFunction
from pymilvus import AnnSearchRequest, DataType, RRFRanker, WeightedRanker
from pymilvus.exceptions import MilvusException

from .errors import InvalidArgumentError, StoreError
from .milvus_connection import BUILT_WITH, check_uri, connect, patient
from .milvus_errors import plain_errors
from .milvus_filters import filter_expression, string_literal

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

METRICS = ("IP", "COSINE", "L2")
CONSISTENCY_LEVELS = ("Strong", "Bounded", "Session", "Eventually")
# Each with what a server asks for and MilvusVectorStore does not fill in.
INDEX_TYPES: dict[str, dict[str, int]] = {
    "FLAT": {},
    "AUTOINDEX": {},
    "HNSW": {"M": 16, "efConstruction": 200},
    "HNSW_SQ": {"M": 16, "efConstruction": 200},
    "HNSW_PQ": {"M": 16, "efConstruction": 200},
    "IVF_FLAT": {"nlist": 1024},
    "IVF_SQ8": {"nlist": 1024},
    "IVF_PQ": {"nlist": 1024},
    "IVF_RABITQ": {"nlist": 1024},
    "SCANN": {"nlist": 1024},
    "DISKANN": {},
    "GPU_BRUTE_FORCE": {},
    "GPU_CAGRA": {},
    "GPU_IVF_FLAT": {"nlist": 1024},
    "GPU_IVF_PQ": {"nlist": 1024},
}
_WAY_OUT = (
    "Open it with the model and settings it was built with, choose another collection_name, or "
    "rebuild it with overwrite=True (this deletes what it holds)."
)

_VARCHAR_MAX = 65_535
_DYNAMIC_MAX_BYTES = 65_536
_TOP_K_MAX = 16_384
# A server takes 64 MB in one call; its encoding of a row is not exactly ours.
_CALL_BYTES = 32 * 2**20
# Of the dynamic fields, those without which a node cannot be made again.
_NODE_FIELDS = ("_node_content", "_node_type")

# Milvus Lite fails when two writers meet, so every store on one file takes the same lock.
_lite_writers: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def milvus_vector_store(
    embed_model: BaseEmbedding,
    uri: str = "./milvus_qwen3.db",
    collection_name: str = "qwen3_docs",
    *,
    token: str = "",
    metric: str = "IP",
    consistency_level: str = "Strong",
    hybrid: bool = False,
    overwrite: bool = False,
    partition_key: str | None = None,
    analyzer: str | dict[str, Any] | None = None,
    **kwargs: Any,
) -> CheckedMilvusVectorStore:
    """Open or create a Milvus collection for the vectors of an embedding model.

    What the collection is built with is noted in it, and another model, dimension, document task or
    metric is refused later.

    Args:
        embed_model: The model whose vectors the collection holds.
        uri: A path ending in .db (Milvus Lite), or the address of a server or of Zilliz Cloud.
        collection_name: Letters, digits and underscores.
        token: "user:password" or an API key; empty for Milvus Lite and open servers.
        metric: "IP" (for unit vectors the cosine), "COSINE" or "L2".
        consistency_level: "Strong", "Bounded", "Session" or "Eventually".
        hybrid: Index the text for BM25 as well, for queries of mode "hybrid".
        overwrite: Drop an existing collection of this name first.
        partition_key: Metadata key, of a text each node has, by whose value Milvus keeps rows
            apart: the tenant, for instance. Filters on it search that part only.
        analyzer: How BM25 splits text: a built-in analyzer of the server ("english", "chinese",
            "icu", …) or its parameters; None is "standard", which Milvus Lite knows.
        kwargs: Passed on to MilvusVectorStore: `index_config`, `upsert_mode`, `batch_size`,
            `hybrid_ranker`, …. Nodes are upserted unless `upsert_mode` is False.

    Returns:
        A MilvusVectorStore for `VectorStoreIndex` and `StorageContext`, loaded and checked.

    Raises:
        InvalidArgumentError: An argument is outside what Milvus allows.
        StoreError: The store cannot be reached, or an existing collection does not fit.
    """
    _check_choice("metric", metric, METRICS)
    _check_choice("consistency_level", consistency_level, CONSISTENCY_LEVELS)
    _check_name("collection_name", collection_name)
    if partition_key is not None:
        _check_name("partition_key", partition_key)
    dim = getattr(embed_model, "dim", None) or len(embed_model.get_text_embedding("dimension"))
    if hybrid:
        kwargs.setdefault("enable_sparse", True)
        if "sparse_embedding_function" not in kwargs:
            kwargs["sparse_embedding_function"] = _bm25(analyzer)
    elif analyzer is not None:
        raise InvalidArgumentError(f"analyzer={analyzer!r} is for hybrid=True, which is not set.")
    kwargs.setdefault("upsert_mode", True)
    if kwargs.get("index_config"):
        kwargs["index_config"] = _index_config(kwargs["index_config"], metric)
    return CheckedMilvusVectorStore(
        uri=check_uri(uri),
        token=token,
        collection_name=collection_name,
        dim=dim,
        similarity_metric=metric,
        consistency_level=consistency_level,
        overwrite=overwrite,
        partition_key=partition_key,
        built_with={**_describe_model(embed_model), "dimensions": dim, "metric": metric},
        **kwargs,
    )


class CheckedMilvusVectorStore(MilvusVectorStore):  # type: ignore[misc]
    """MilvusVectorStore that is ready after opening and keeps bad rows out.

    Its async methods run the sync ones in a thread: the async client of pymilvus belongs to one
    event loop, and a store is often used from several.
    """

    partition_key: str | None = None

    _writer: Any = PrivateAttr(default=nullcontext())
    _is_lite: bool = PrivateAttr(default=False)
    _fields: set[str] = PrivateAttr(default_factory=set)

    def __init__(
        self,
        uri: str,
        collection_name: str,
        dim: int,
        partition_key: str | None = None,
        built_with: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["use_async_client"] = False
        is_lite = "://" not in uri
        writer = _lite_writers[str(Path(uri).resolve())] if is_lite else nullcontext()
        asked_index = (kwargs.get("index_config") or {}).get("index_type")
        if partition_key is not None:
            kwargs["scalar_field_names"] = [
                *(kwargs.get("scalar_field_names") or []),
                partition_key,
            ]
            types = [*(kwargs.get("scalar_field_types") or []), DataType.VARCHAR]
            kwargs["scalar_field_types"] = types
        _creating.partition_key = partition_key
        with writer:
            self._create(uri, collection_name, dim, patient(uri, kwargs))
        with plain_errors(uri), writer:
            self.uri, self._is_lite, self._writer = uri, is_lite, writer
            self.partition_key = partition_key
            self._check_collection(asked_index)
            self._check_record(dict(built_with or {}))
            # An existing collection is not loaded by itself, and every search would fail.
            self.client.load_collection(collection_name)

    def _create(self, uri: str, name: str, dim: int, options: dict[str, Any]) -> None:
        """Run MilvusVectorStore's own opening, and leave no half-made collection behind."""
        existed = True
        hybrid = bool(options.get("enable_sparse"))
        try:
            with plain_errors(uri):
                # What MilvusVectorStore does not know itself it hands to the client.
                own = inspect.signature(MilvusVectorStore.__init__).parameters
                connection = {key: value for key, value in options.items() if key not in own}
                token = options.get("token", "")
                client = connect(uri, token, **connection)
                existed = client.has_collection(name)
            # What an existing collection lacks is said by the checks that follow.
            with plain_errors(uri, hybrid=hybrid and not existed):
                super().__init__(uri=uri, collection_name=name, dim=dim, **options)
        except StoreError:
            if not existed:
                with contextlib.suppress(MilvusException, grpc.RpcError):
                    client.drop_collection(name)
            raise

    # --- writing ------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Add nodes with their embeddings; nothing is written if one of them is unfit.

        Args:
            nodes: Nodes, of any number: calls to the server are cut by rows and by bytes.
            add_kwargs: `milvus_partition_name`; `upsert` in place of `upsert_mode`; `force_flush` to flush on a server as well; `flush`
                False to leave it to a later `flush()`, when there is much to add.

        Raises:
            StoreError: A node has no embedding, one of another length, or one that is not finite;
                its id, text or metadata is too long; two different nodes have the same id. Or the
                server failed: what was written before that stays, and adding again doubles nothing
                unless `upsert_mode` is False.
        """
        rows = self._rows(nodes)
        upsert = add_kwargs.get("upsert", self.upsert_mode)
        # Milvus 2.3 upserts into the wrong partition where there is a partition key.
        replaces = upsert and self.partition_key is not None and not self._is_lite
        write = self.client.upsert if upsert and not replaces else self.client.insert
        with plain_errors(self.uri), self._writer:
            for batch in self._calls(rows):
                if replaces:
                    condition = rows_in("id", [row["id"] for row in batch])
                    self.client.delete(self.collection_name, filter=condition)
                write(
                    self.collection_name,
                    batch,
                    partition_name=add_kwargs.get("milvus_partition_name"),
                )
            # Milvus Lite searches unflushed rows many times slower. A server seals segments by
            # itself and limits how often it may be asked to.
            if rows and (add_kwargs.get("flush", self._is_lite) or add_kwargs.get("force_flush")):
                self.client.flush(self.collection_name)
        return [node.node_id for node in nodes]

    async def async_add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Do as `add` does, without blocking the event loop."""
        return await asyncio.to_thread(self.add, nodes, **add_kwargs)

    def flush(self) -> None:
        """Flush what was added, after which Milvus Lite searches it many times faster."""
        if self._is_lite:
            with plain_errors(self.uri), self._writer:
                self.client.flush(self.collection_name)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        ids = ref_doc_id if isinstance(ref_doc_id, list) else [ref_doc_id]
        self._delete(rows_in(self.doc_id_field, ids), delete_kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Do as `delete` does, without blocking the event loop."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    def delete_nodes(
        self,
        node_ids: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes by id, by filter, or those of the ids that meet the filter.

        Raises:
            InvalidArgumentError: Neither is given; to delete everything there is `clear`.
        """
        condition = filter_expression(filters, self._fields)
        if node_ids is None and not condition:
            raise InvalidArgumentError(
                "delete_nodes() without node_ids and filters would delete nothing or everything. "
                "Use clear() to drop the collection."
            )
        if node_ids is None:
            self._delete(condition, delete_kwargs)
            return
        for start in range(0, len(node_ids), 1000):
            ids = rows_in("id", node_ids[start : start + 1000])
            self._delete(f"({ids}) and ({condition})" if condition else ids, delete_kwargs)

    async def adelete_nodes(self, *args: Any, **kwargs: Any) -> None:
        """Do as `delete_nodes` does, without blocking the event loop."""
        await asyncio.to_thread(self.delete_nodes, *args, **kwargs)

    async def aclear(self) -> None:
        """Drop the collection without blocking the event loop."""
        await asyncio.to_thread(self.clear)

    def clear(self) -> None:
        """Drop the collection."""
        with plain_errors(self.uri), self._writer:
            super().clear()

    # --- reading ------------------------------------------------------------------------------

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search the collection.

        In mode "hybrid" `similarity_top_k` candidates are found by vector and `sparse_top_k` by
        BM25, and `hybrid_top_k` of both are returned; each is `similarity_top_k` when not given.
        They are fused by `hybrid_ranker`, or by weights when `alpha` (the vectors' share) is given.
        Similarities of metric "L2" are 1 / (1 + distance).

        Raises:
            InvalidArgumentError: A filter cannot be translated, or the query is empty.
            StoreError: The query vector has another length, or is not finite.
        """
        if query.query_embedding is not None:
            self._check_vectors([query.query_embedding], ["The query"])
        elif query.mode not in (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH):
            raise InvalidArgumentError(
                "The query has no vector: its text is empty. Give a question."
            )
        if query.similarity_top_k > _TOP_K_MAX:
            raise InvalidArgumentError(
                f"similarity_top_k={query.similarity_top_k} is more than Milvus's {_TOP_K_MAX}."
            )
        if not self.enable_sparse and query.mode in _SPARSE_MODES:
            raise StoreError(
                f"Collection {self.collection_name!r} was opened without hybrid=True, which queries of "
                f"mode {VectorStoreQueryMode(query.mode).value!r} need."
            )
        # Under a name of ours: MilvusVectorStore drops it where there are filters.
        kwargs["own_expression"] = kwargs.pop("string_expr", "")
        with plain_errors(self.uri):
            result: VectorStoreQueryResult = super().query(query, **kwargs)
        if self.similarity_metric == "L2" and query.mode == VectorStoreQueryMode.DEFAULT:
            result.similarities = [1 / (1 + distance) for distance in result.similarities or []]
        return result

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Do as `query` does, without blocking the event loop."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def select(self, condition: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return these fields of all rows that meet a condition of Milvus's own language."""
        with plain_errors(self.uri):
            rows: list[dict[str, Any]] = self.client.query(
                self.collection_name, filter=condition, output_fields=list(fields)
            )
        return rows

    def scan(self, condition: str, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield what `select` returns, a thousand rows at a time: from a server, for any number.

        A row whose id has a quotation mark ends it with an error: so pymilvus goes on from row to row.
        """
        if self._is_lite:
            yield from self.select(condition, fields)
            return
        with plain_errors(self.uri):
            rows = self.client.query_iterator(
                self.collection_name, batch_size=1000, filter=condition, output_fields=list(fields)
            )
            try:
                while batch := rows.next():
                    yield from batch
            finally:
                rows.close()

    def get_nodes(
        self,
        node_ids: Sequence[str] | None = None,
        filters: MetadataFilters | None = None,
        **kwargs: Any,
    ) -> list[BaseNode]:
        """Return nodes by id or by filter, with their embeddings.

        Raises:
            ValueError: Neither or both are given.
        """
        condition = filter_expression(filters, self._fields)
        if (node_ids is None) == (not condition):
            raise ValueError("Give either node_ids or filters.")
        if node_ids is not None:
            condition = rows_in("id", node_ids)
        nodes = []
        for row in self.select(condition, ["*"]) if condition else ():
            node = metadata_dict_to_node(row, text=row.get(self.text_key))
            node.embedding = row.get(self.embedding_field)
            nodes.append(node)
        return nodes

    async def aget_nodes(self, *args: Any, **kwargs: Any) -> list[BaseNode]:
        """Do as `get_nodes` does, without blocking the event loop."""
        return await asyncio.to_thread(self.get_nodes, *args, **kwargs)

    # --- what MilvusVectorStore calls -----------------------------------------------------------

    def _add_fields_to_schema(self, schema: Any) -> Any:
        schema = super()._add_fields_to_schema(schema)
        for field in schema.fields:
            if field.name == _creating.partition_key:
                field.is_partition_key = True
        return schema

    def _prepare_before_search(
        self, query: VectorStoreQuery, **kwargs: Any
    ) -> tuple[str, list[str]]:
        """Return the filter and the fields to return."""
        parts = [filter_expression(query.filters, self._fields), kwargs["own_expression"]]
        if "milvus_scalar_filters" in kwargs:
            plain = VectorStoreQuery(filters=None)
            parts.append(super()._prepare_before_search(plain, **kwargs)[0])
        # An empty list restricts nothing, as elsewhere in LlamaIndex.
        parts += [rows_in(self.doc_id_field, query.doc_ids)] if query.doc_ids else []
        parts += [rows_in("id", query.node_ids)] if query.node_ids else []
        expression = " and ".join(f"({part})" for part in parts if part.strip())
        asked = query.output_fields or self.output_fields
        if not asked or "*" in asked:
            return expression, ["*"]
        return expression, list(dict.fromkeys([*asked, self.text_key, *_NODE_FIELDS]))

    def _sparse_search(
        self, query: VectorStoreQuery, expression: str, output_fields: list[str], **kwargs: Any
    ) -> Any:
        found = self.client.search(
            collection_name=self.collection_name,
            data=[self._sparse_query(query)],
            anns_field=self.sparse_embedding_field,
            limit=query.sparse_top_k or query.similarity_top_k,
            filter=expression,
            output_fields=output_fields,
            search_params={"params": {}},
            partition_names=kwargs.get("milvus_partition_names"),
        )
        return self._parse_from_milvus_results(found)

    def _hybrid_search(
        self, query: VectorStoreQuery, expression: str, output_fields: list[str], **kwargs: Any
    ) -> Any:
        built_in = isinstance(self.sparse_embedding_function, BM25BuiltInFunction)
        dense = AnnSearchRequest(
            data=[query.query_embedding],
            anns_field=self.embedding_field,
            param={"metric_type": self.similarity_metric, "params": self.search_config},
            limit=query.similarity_top_k,
            expr=expression,
        )
        sparse = AnnSearchRequest(
            data=[self._sparse_query(query)],
            anns_field=self.sparse_embedding_field,
            param={"metric_type": "BM25" if built_in else "IP"},
            limit=query.sparse_top_k or query.similarity_top_k,
            expr=expression,
        )
        found = self.client.hybrid_search(
            self.collection_name,
            [dense, sparse],
            ranker=self._ranker(query),
            limit=query.hybrid_top_k or query.similarity_top_k,
            output_fields=output_fields,
            partition_names=kwargs.get("milvus_partition_names"),
        )
        return self._parse_from_milvus_results(found)

    def _sparse_query(self, query: VectorStoreQuery) -> Any:
        if isinstance(self.sparse_embedding_function, BM25BuiltInFunction):
            return query.query_str
        return self.sparse_embedding_function.encode_queries([query.query_str])[0]

    def _ranker(self, query: VectorStoreQuery) -> Any:
        if query.alpha is not None:
            return WeightedRanker(query.alpha, 1 - query.alpha)
        if self.hybrid_ranker == "WeightedRanker":
            return WeightedRanker(*self.hybrid_ranker_params.get("weights", [1.0, 1.0]))
        if self.hybrid_ranker == "RRFRanker":
            return RRFRanker(self.hybrid_ranker_params.get("k", 60))
        raise InvalidArgumentError(
            f"hybrid_ranker={self.hybrid_ranker!r} is unknown. Use 'RRFRanker' or 'WeightedRanker'."
        )

    # --- checks ---------------------------------------------------------------------------------

    def _rows(self, nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
        """Return what Milvus stores of each node, equal ones once."""
        self._check_vectors(
            [node.embedding for node in nodes], [f"Node {node.node_id!r}" for node in nodes]
        )
        rows: dict[str, dict[str, Any]] = {}
        for node in nodes:
            row = self._row(node)
            if rows.setdefault(node.node_id, row) != row:
                raise StoreError(
                    f"Two different nodes have the id {node.node_id!r}, and Milvus would keep one or "
                    "both of them. Give each its own id. Nothing was written."
                )
        return list(rows.values())

    def _row(self, node: BaseNode) -> dict[str, Any]:
        # What node_to_metadata_dict of LlamaIndex makes, without writing the vector out as JSON.
        content = node.model_dump(mode="json", exclude={"embedding", "text", "text_resource"})
        text, metadata = node.get_content(MetadataMode.NONE), content["metadata"]
        content["embedding"] = None
        if "text" in type(node).model_fields:
            content["text"] = ""
        document = node.ref_doc_id or "None"
        # None and [] stay in the node and out of what can be filtered by: Milvus Lite and servers
        # compare them differently.
        row = {key: value for key, value in metadata.items() if value is not None and value != []}
        row |= {
            "_node_content": json.dumps(content, ensure_ascii=False),
            "_node_type": node.class_name(),
            "document_id": document,
            "ref_doc_id": document,
        }
        self._check_sizes(node.node_id, text, document, row)
        row |= {
            "id": node.node_id,
            self.doc_id_field: document,
            self.text_key: text,
            self.embedding_field: node.embedding,
        }
        if self.enable_sparse and not isinstance(
            self.sparse_embedding_function, BM25BuiltInFunction
        ):
            encode = self.sparse_embedding_function.encode_documents
            row[self.sparse_embedding_field] = encode([text])[0]
        return row

    def _check_sizes(self, node_id: str, text: str, document: str, dynamic: dict[str, Any]) -> None:
        # Milvus Lite counts characters, servers count bytes.
        unit = "characters" if self._is_lite else "bytes"
        for what, value in (("id", node_id), ("text", text), ("document id", document)):
            try:
                size = len(value) if self._is_lite else len(value.encode("utf-8"))
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise StoreError(
                    f"The {what} of node {node_id!r} is not valid Unicode: it has a lone surrogate at "
                    f"character {error.start}. Repair it, for instance with "
                    "text.encode('utf-8', 'replace').decode(). Nothing was written."
                ) from None
            if what == "id" and not value:
                raise StoreError("A node has an empty id. Nothing was written.")
            if size > _VARCHAR_MAX:
                raise StoreError(
                    f"The {what} of node {node_id!r} has {size} {unit}, and Milvus takes "
                    f"{_VARCHAR_MAX}. Split it smaller. Nothing was written."
                )
        if self.partition_key and not isinstance(dynamic.get(self.partition_key), str):
            raise StoreError(
                f"Node {node_id!r} has no text as metadata[{self.partition_key!r}], by which this "
                "collection keeps rows apart. Nothing was written."
            )
        try:
            size = len(json.dumps(dynamic, ensure_ascii=False).encode("utf-8"))
        except UnicodeEncodeError:
            raise StoreError(
                f"The metadata of node {node_id!r} is not valid Unicode: it has a lone surrogate. "
                "Nothing was written."
            ) from None
        if not self._is_lite and size > _DYNAMIC_MAX_BYTES:
            raise StoreError(
                f"The metadata of node {node_id!r} takes {size} bytes, and a Milvus server takes "
                f"{_DYNAMIC_MAX_BYTES}; metadata is stored twice, and once more for each related node. "
                "Keep less in it. Nothing was written."
            )

    def _check_vectors(
        self, vectors: Sequence[Sequence[float] | None], owners: Sequence[str]
    ) -> None:
        for vector, owner in zip(vectors, owners, strict=True):
            if vector is None:
                raise StoreError(
                    f"{owner} has no embedding. Embed nodes first, or insert them through "
                    "VectorStoreIndex."
                )
            if len(vector) != self.dim:
                raise StoreError(
                    f"{owner} has a vector of {len(vector)} dimensions; collection "
                    f"{self.collection_name!r} holds {self.dim}. Nothing was written."
                )
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.asarray(vectors, dtype=np.float32)).reshape(len(vectors), -1)
        if not finite.all():
            owner = owners[int(np.argmin(finite.all(axis=1)))]
            raise StoreError(
                f"{owner} has a vector with NaN or infinity in it, which Milvus could never find "
                "again. Nothing was written."
            )

    def _calls(self, rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Cut rows into calls by their number and by bytes."""
        call: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            bytes_ = 4 * int(self.dim) + 4 * len(row[self.text_key]) + 2 * len(row["_node_content"])
            if call and (len(call) >= self.batch_size or size + bytes_ > _CALL_BYTES):
                yield call
                call, size = [], 0
            call.append(row)
            size += bytes_
        if call:
            yield call

    def _delete(self, condition: str, options: Mapping[str, Any]) -> None:
        with plain_errors(self.uri), self._writer:
            self.client.delete(
                collection_name=self.collection_name,
                filter=condition,
                partition_name=options.get("milvus_partition_name"),
            )

    def _check_collection(self, asked_index: str | None) -> None:
        """Refuse a collection that was built for other vectors."""
        name = self.collection_name
        described = self.client.describe_collection(name)
        fields = {field["name"]: field for field in described["fields"]}
        self._fields = set(fields)
        if self.embedding_field not in fields:
            raise StoreError(
                f"Collection {name!r} has no field {self.embedding_field!r} for dense vectors; its "
                f"fields are {', '.join(fields)}. {_WAY_OUT}"
            )
        if self.enable_sparse and self.sparse_embedding_field not in fields:
            raise StoreError(
                f"Collection {name!r} was built without an index of its words, which hybrid search "
                f"needs. {_WAY_OUT}"
            )
        key = self.partition_key
        if key and not (key in fields and fields[key].get("is_partition_key")):
            raise StoreError(
                f"Collection {name!r} was built without the partition key {key!r}. {_WAY_OUT}"
            )
        has = int(fields[self.embedding_field]["params"].get("dim", 0))
        if has != self.dim:
            raise StoreError(
                f"Collection {name!r} holds vectors of {has} dimensions, and the embedding model "
                f"gives {self.dim}. {_WAY_OUT}"
            )
        for index in self.client.list_indexes(name, field_name=self.embedding_field):
            built = self.client.describe_index(name, index)
            metric, kind = built.get("metric_type"), built.get("index_type")
            if metric and metric != self.similarity_metric:
                raise StoreError(
                    f"Collection {name!r} was built with metric {metric}, and "
                    f"{self.similarity_metric} was asked for. {_WAY_OUT}"
                )
            if asked_index and kind and kind != asked_index:
                raise StoreError(
                    f"Collection {name!r} has an index of type {kind}, and {asked_index} was asked "
                    f"for. Leave index_config out to take it as it is. {_WAY_OUT}"
                )

    def _check_record(self, built_with: dict[str, Any]) -> None:
        """Refuse vectors of another model than the collection was built with; note a new one's."""
        name = self.collection_name
        properties = self.client.describe_collection(name).get("properties") or {}
        noted = json.loads(properties.get(BUILT_WITH) or "{}")
        if not noted:
            # One that others have filled is taken as it is.
            if built_with and not self.client.query(name, filter="", limit=1, output_fields=["id"]):
                record = json.dumps(built_with, ensure_ascii=False)
                self.client.alter_collection_properties(name, {BUILT_WITH: record})
            return
        for key, value in built_with.items():
            if key != "name" and key in noted and noted[key] != value:
                old, new = noted[key], value
                if key == "model":
                    old, new = noted.get("name", old), built_with.get("name", value)
                raise StoreError(
                    f"Collection {name!r} was built with {key.replace('_', ' ')} {old!r}, and now it is "
                    f"{new!r}: their vectors cannot be compared. {_WAY_OUT}"
                )


class _Creating(threading.local):
    # Read by a method that the base class calls before the instance has any field of its own.
    partition_key: str | None = None


_creating = _Creating()
_SPARSE_MODES = (
    VectorStoreQueryMode.HYBRID,
    VectorStoreQueryMode.SPARSE,
    VectorStoreQueryMode.TEXT_SEARCH,
)


def _describe_model(embed_model: BaseEmbedding) -> dict[str, Any]:
    describe = getattr(embed_model, "built_with", None)
    if callable(describe):
        described: dict[str, Any] = describe()
        return described
    return {"model": embed_model.model_name, "name": embed_model.model_name}


def _bm25(analyzer: str | dict[str, Any] | None) -> BM25BuiltInFunction:
    parameters = {"type": analyzer} if isinstance(analyzer, str) else analyzer
    return BM25BuiltInFunction(analyzer_params=parameters)


def _index_config(config: Mapping[str, Any], metric: str) -> dict[str, Any]:
    kind = config.get("index_type", "FLAT")
    _check_choice("index_config['index_type']", kind, tuple(INDEX_TYPES))
    if config.get("metric_type", metric) != metric:
        raise InvalidArgumentError(
            f"index_config['metric_type']={config['metric_type']!r} and metric={metric!r} differ. Give "
            "metric alone."
        )
    return {**INDEX_TYPES[kind], **config}


def rows_in(field: str, values: Sequence[str]) -> str:
    """Return a condition, in Milvus's own language, that a declared field has one of these texts."""
    return f"{field} in [{', '.join(map(string_literal, values))}]"


def _check_name(name: str, value: str) -> None:
    if not value.isidentifier() or not value.isascii() or len(value) > 255:
        raise InvalidArgumentError(
            f"{name}={value!r}: use letters, digits and underscores, not beginning with a digit, at "
            "most 255."
        )


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InvalidArgumentError(f"{name}={value!r} is unknown. Use one of {', '.join(allowed)}.")
