"""A MilvusVectorStore that loads, checks and flushes."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryResult
from llama_index.vector_stores.milvus import MilvusVectorStore
from llama_index.vector_stores.milvus.utils import BM25BuiltInFunction
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from .errors import InvalidArgumentError, StoreError

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

METRICS = ("IP", "COSINE", "L2")
CONSISTENCY_LEVELS = ("Strong", "Bounded", "Session", "Eventually")
_WAY_OUT = (
    "Open it with the model and settings it was built with, choose another collection_name, or "
)
_WAY_OUT += "rebuild it with overwrite=True (this deletes what it holds)."

_FLOAT32_MAX = 3.4028234663852886e38

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
    **kwargs: Any,
) -> CheckedMilvusVectorStore:
    """Open or create a Milvus collection for the vectors of an embedding model.

    Args:
        embed_model: The model whose vectors the collection holds; only its dimension is asked.
        uri: A path ending in .db (Milvus Lite), or the address of a server or of Zilliz Cloud.
        collection_name: Letters, digits and underscores.
        token: "user:password" or an API key; empty for Milvus Lite and open servers.
        metric: "IP" (for unit vectors the cosine), "COSINE" or "L2".
        consistency_level: "Strong", "Bounded", "Session" or "Eventually".
        hybrid: Index the text for BM25 as well, for queries of mode "hybrid".
        overwrite: Drop an existing collection of this name first.
        kwargs: Passed on to MilvusVectorStore.

    Returns:
        A MilvusVectorStore for `VectorStoreIndex` and `StorageContext`, loaded and checked.

    Raises:
        InvalidArgumentError: An argument is outside what Milvus allows.
        StoreError: The store cannot be reached, or an existing collection does not fit.
    """
    _check_choice("metric", metric, METRICS)
    _check_choice("consistency_level", consistency_level, CONSISTENCY_LEVELS)
    if not collection_name.isidentifier() or not collection_name.isascii():
        raise InvalidArgumentError(
            f"collection_name={collection_name!r}: use letters, digits and underscores, not "
            "beginning with a digit."
        )
    dim = getattr(embed_model, "dim", None) or len(embed_model.get_text_embedding("dimension"))
    if hybrid:
        kwargs.setdefault("enable_sparse", True)
        kwargs.setdefault("sparse_embedding_function", BM25BuiltInFunction())
    return CheckedMilvusVectorStore(
        uri=_check_uri(uri),
        token=token,
        collection_name=collection_name,
        dim=dim,
        similarity_metric=metric,
        consistency_level=consistency_level,
        overwrite=overwrite,
        **kwargs,
    )


def collection_has_rows(uri: str, collection_name: str, token: str = "") -> bool:
    """Say whether a collection exists and holds something, without creating anything.

    Raises:
        StoreError: The store cannot be reached.
    """
    uri = _check_uri(uri)
    if "://" not in uri and not Path(uri).exists():
        return False
    with _plain_errors(uri):
        client = MilvusClient(uri=uri, token=token)
        if not client.has_collection(collection_name):
            return False
        client.load_collection(collection_name)
        return bool(client.query(collection_name, filter="", limit=1, output_fields=["id"]))


class CheckedMilvusVectorStore(MilvusVectorStore):  # type: ignore[misc]
    """MilvusVectorStore that is ready after opening and keeps bad vectors out.

    Its async methods run the sync ones in a thread: the async client of pymilvus belongs to one
    event loop, and a store is often used from several.
    """

    _writer: Any = PrivateAttr(default=nullcontext())
    _is_lite: bool = PrivateAttr(default=False)

    def __init__(self, uri: str, collection_name: str, dim: int, **kwargs: Any) -> None:
        kwargs["use_async_client"] = False
        is_lite = "://" not in uri
        writer = _lite_writers[str(Path(uri).resolve())] if is_lite else nullcontext()
        with _plain_errors(uri), writer:
            super().__init__(uri=uri, collection_name=collection_name, dim=dim, **kwargs)
            self.uri, self._is_lite, self._writer = uri, is_lite, writer
            self._check_collection()
            # An existing collection is not loaded by itself, and every search would fail.
            self.client.load_collection(collection_name)

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Add nodes with their embeddings; nothing is written if one of them is unfit.

        Raises:
            StoreError: A node has no embedding, one of another length, or one that is not finite.
        """
        for node in nodes:
            self._check_vector(node.embedding, f"Node {node.node_id}")
        with _plain_errors(self.uri), self._writer:
            ids: list[str] = super().add(list(nodes), **add_kwargs)
            # Milvus Lite searches unflushed rows many times slower. A server seals segments by
            # itself and limits how often it may be asked to.
            if self._is_lite and nodes:
                self.client.flush(self.collection_name)
        return ids

    async def async_add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Do as `add` does, without blocking the event loop."""
        return await asyncio.to_thread(self.add, nodes, **add_kwargs)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search the collection.

        Raises:
            StoreError: The query vector has another length, or is not finite.
        """
        if query.query_embedding is not None:
            self._check_vector(query.query_embedding, "The query")
        with _plain_errors(self.uri):
            result: VectorStoreQueryResult = super().query(query, **kwargs)
        return result

    def select(self, condition: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return these fields of all rows that meet a condition of Milvus's own language."""
        with _plain_errors(self.uri):
            rows: list[dict[str, Any]] = self.client.query(
                self.collection_name, filter=condition, output_fields=list(fields)
            )
        return rows

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Do as `query` does, without blocking the event loop."""
        return await asyncio.to_thread(self.query, query, **kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        with _plain_errors(self.uri), self._writer:
            super().delete(ref_doc_id, **delete_kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Do as `delete` does, without blocking the event loop."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    def delete_nodes(self, *args: Any, **kwargs: Any) -> None:
        """Delete nodes by id or by filter."""
        with _plain_errors(self.uri), self._writer:
            super().delete_nodes(*args, **kwargs)

    async def adelete_nodes(self, *args: Any, **kwargs: Any) -> None:
        """Do as `delete_nodes` does, without blocking the event loop."""
        await asyncio.to_thread(self.delete_nodes, *args, **kwargs)

    async def aget_nodes(self, *args: Any, **kwargs: Any) -> list[BaseNode]:
        """Do as `get_nodes` does, without blocking the event loop."""
        return await asyncio.to_thread(self.get_nodes, *args, **kwargs)

    async def aclear(self) -> None:
        """Drop the collection without blocking the event loop."""
        await asyncio.to_thread(self.clear)

    def _check_collection(self) -> None:
        """Refuse a collection that was built for other vectors."""
        name = self.collection_name
        described = self.client.describe_collection(name)
        fields = {field["name"]: field for field in described["fields"]}
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
        has = int(fields[self.embedding_field]["params"].get("dim", 0))
        if has != self.dim:
            raise StoreError(
                f"Collection {name!r} holds vectors of {has} dimensions, and the embedding model "
                f"gives {self.dim}. {_WAY_OUT}"
            )
        for index in self.client.list_indexes(name, field_name=self.embedding_field):
            metric = self.client.describe_index(name, index).get("metric_type")
            if metric and metric != self.similarity_metric:
                raise StoreError(
                    f"Collection {name!r} was built with metric {metric}, and "
                    f"{self.similarity_metric} was asked for. {_WAY_OUT}"
                )

    def _check_vector(self, vector: Sequence[float] | None, owner: str) -> None:
        if vector is None:
            raise StoreError(
                f"{owner} has no embedding. Embed nodes first, or insert them through VectorStoreIndex."
            )
        if len(vector) != self.dim:
            raise StoreError(
                f"{owner} has a vector of {len(vector)} dimensions; collection "
                f"{self.collection_name!r} holds {self.dim}. Nothing was written."
            )
        # A comparison with NaN is false; above this a float32 is infinite.
        if not all(abs(value) <= _FLOAT32_MAX for value in vector):
            raise StoreError(
                f"{owner} has a vector with NaN or infinity in it, which Milvus could never find "
                "again. Nothing was written."
            )


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InvalidArgumentError(f"{name}={value!r} is unknown. Use one of {', '.join(allowed)}.")


def _check_uri(uri: str) -> str:
    """Return a usable uri, with ~ expanded in the path of a Milvus Lite database."""
    uri = str(uri)
    if "://" in uri:
        return uri
    path = Path(uri).expanduser()
    if path.suffix != ".db":
        raise InvalidArgumentError(
            f"uri={uri!r} is neither an address (http://localhost:19530) nor a path that ends in .db "
            "(./milvus_qwen3.db)."
        )
    if not path.parent.is_dir():
        raise StoreError(
            f"uri={uri!r}: the directory {str(path.parent)!r} does not exist. Create it first."
        )
    return str(path)


@contextmanager
def _plain_errors(uri: str) -> Iterator[None]:
    """Turn what Milvus and its transport raise into a StoreError in plain words."""
    try:
        yield
    except (MilvusException, ConnectionError, OSError) as error:
        raise StoreError(_plain_reason(uri, error)) from error


def _plain_reason(uri: str, error: BaseException) -> str:
    if "://" not in uri and "Open local milvus failed" in str(error):
        return (
            f"Cannot open the Milvus Lite database {uri!r}: {error}. Either another process has it "
            "open (one at a time may), or it was written by Milvus Lite 2 or is not a database; "
            "then give another path."
        )
    # A wrong token and a dead server have the same message; the gRPC status tells them apart.
    cause: BaseException | None = error
    while cause is not None:
        code = getattr(cause, "code", None)
        status = code() if callable(code) else None
        if getattr(status, "name", "") == "UNAUTHENTICATED":
            return f"Milvus at {uri!r} refused the token. Give token='user:password' or an API key."
        if getattr(status, "name", "") == "UNAVAILABLE" or "Fail connecting" in str(cause):
            return f"Milvus at {uri!r} cannot be reached. Check the address and that it runs."
        cause = cause.__cause__ or cause.__context__
    return f"Milvus at {uri!r} refused: {error}"
