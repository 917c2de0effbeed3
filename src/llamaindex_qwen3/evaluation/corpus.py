"""A stored collection as the corpus of an evaluation, and copies of it with other vectors."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.utils import metadata_dict_to_node
from milvus_lite.server_manager import server_manager_instance

from ..embedding import Qwen3Embedding
from ..errors import InvalidArgumentError
from ..milvus import CheckedMilvusVectorStore, milvus_vector_store, rows_in
from ..milvus_connection import BUILT_WITH, collection_has_rows, connect
from ..milvus_errors import plain_errors

_ROWS_AT_ONCE = 1000

Progress = Callable[[int, int], None]
Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Collection:
    """Where a collection is and what it is made of, known without a model."""

    uri: str
    name: str
    token: str
    dimensions: int
    metric: str
    hybrid: bool
    built_with: dict[str, Any]

    @classmethod
    def find(cls, uri: str, name: str, token: str = "") -> Collection:
        """Look at a collection.

        Raises:
            InvalidArgumentError: It does not exist or is empty.
            StoreError: The store cannot be reached.
        """
        if not collection_has_rows(uri, name, token):
            raise InvalidArgumentError(
                f"Collection {name!r} at {uri!r} does not exist or is empty. Store something in it "
                "first: qwen3-rag ingest PATH"
            )
        with plain_errors(uri):
            client = connect(uri, token)
            described = client.describe_collection(name)
            fields = {field["name"]: field for field in described["fields"]}
            if "embedding" not in fields:
                raise InvalidArgumentError(
                    f"Collection {name!r} has no field 'embedding'; its fields are "
                    f"{', '.join(fields)}. Evaluate one that was stored by this package."
                )
            [vectors] = client.list_indexes(name, field_name="embedding")[:1] or [""]
            metric = client.describe_index(name, vectors).get("metric_type") if vectors else None
        record = (described.get("properties") or {}).get(BUILT_WITH) or "{}"
        return cls(
            uri=uri,
            name=name,
            token=token,
            dimensions=int(fields["embedding"]["params"]["dim"]),
            metric=metric or "IP",
            hybrid="sparse_embedding" in fields,
            built_with=json.loads(record),
        )

    def fits(self, embed_model: Qwen3Embedding) -> bool:
        """Say whether its vectors are those of a model, at any dimension."""
        mine, noted = embed_model.built_with(), self.built_with
        # Of models on servers, the name is all that is known.
        key = "model" if "model" in mine and "model" in noted else "name"
        same = all(noted.get(each) == mine[each] for each in (key, "document task"))
        # Vectors that were not scaled to unit length can be: what counts is their direction.
        return bool(noted) and same and self.dimensions <= width(embed_model)

    def open(self) -> CheckedMilvusVectorStore:
        """Open it as it is, whatever model it was built with."""
        return CheckedMilvusVectorStore(
            uri=self.uri,
            collection_name=self.name,
            dim=self.dimensions,
            token=self.token,
            similarity_metric=self.metric,
        )

    def missing(self, places: Sequence[str]) -> list[str]:
        """Return those of sections or ids of nodes that no row has."""
        store, wanted = self.open(), list(dict.fromkeys(places))
        known: set[str] = set()
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            part = wanted[start : start + _ROWS_AT_ONCE]
            for row in store.scan(rows_in("section_id", part), ["section_id"]):
                known.add(row["section_id"])
            rest = [place for place in part if place not in known]
            known |= {row["id"] for row in store.select(rows_in("id", rest), ["id"])}
        return [place for place in wanted if place not in known]


@dataclass(frozen=True)
class Corpus:
    """The nodes of a collection, and their vectors [nodes, dimensions] of one model."""

    nodes: list[BaseNode]
    vectors: Vectors


def read_corpus(collection: Collection) -> Corpus:
    """Read all rows of a collection into memory.

    A thousand floats a passage are 4 KB.
    """
    store = collection.open()
    nodes, vectors = [], []
    for row in store.scan('id != ""', ["*"]):
        vectors.append(np.asarray(row.pop(store.embedding_field), dtype=np.float32))
        nodes.append(metadata_dict_to_node(row, text=row[store.text_key]))
    return Corpus(nodes, np.stack(vectors))


def embed_corpus(corpus: Corpus, embed_model: Qwen3Embedding, on_progress: Progress) -> Corpus:
    """Return the same nodes with the vectors of another model."""
    texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in corpus.nodes]
    size, vectors = embed_model.embed_batch_size, []
    for start in range(0, len(texts), size):
        batch = embed_model.get_text_embedding_batch(texts[start : start + size])
        vectors.append(np.asarray(batch, dtype=np.float32))
        on_progress(min(start + size, len(texts)), len(texts))
    return Corpus(corpus.nodes, np.concatenate(vectors))


def shorten(vectors: Vectors, dimensions: int) -> Vectors:
    """Return the leading values of vectors [..., d] at unit length again.

    For models trained by Matryoshka learning that is what embedding at `dimensions` gives, also
    when the vectors have been shortened before.
    """
    if not 1 <= dimensions <= vectors.shape[-1]:
        raise InvalidArgumentError(
            f"dimensions={dimensions} is outside 1 to {vectors.shape[-1]}, the length of the vectors."
        )
    cut = vectors[..., :dimensions]
    lengths = np.linalg.norm(cut, axis=-1, keepdims=True)
    return np.asarray(cut / np.maximum(lengths, 1e-12), dtype=np.float32)


@contextmanager
def copies() -> Iterator[Callable[[Corpus, Qwen3Embedding, int, bool], CheckedMilvusVectorStore]]:
    """Give a function that stores a corpus at some dimension in a database for a while.

    It takes the corpus, its model, the dimension and whether words are indexed for hybrid search.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        uri = str(Path(folder) / "copies.db")

        def copy(
            corpus: Corpus, embed_model: Qwen3Embedding, dimensions: int, hybrid: bool
        ) -> CheckedMilvusVectorStore:
            model = embed_model.model_copy(update={"dimensions": dimensions})
            name = f"dimensions_{dimensions}"
            store = milvus_vector_store(model, uri, name, hybrid=hybrid, overwrite=True)
            vectors = shorten(corpus.vectors, dimensions)
            for start in range(0, len(vectors), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                nodes = [
                    node.model_copy(update={"embedding": vector.tolist()})
                    for node, vector in zip(corpus.nodes[part], vectors[part], strict=True)
                ]
                store.add(nodes, flush=False)
            store.flush()
            return store

        try:
            yield copy
        finally:
            server_manager_instance.release_server(uri)


def width(embed_model: Qwen3Embedding) -> int:
    """Return the length of a model's whole vectors."""
    return embed_model.model_copy(update={"dimensions": None}).dim
