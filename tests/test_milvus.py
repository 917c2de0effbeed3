"""The checked store on a real Milvus Lite."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from components import embedder
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from milvus_lite.server_manager import server_manager_instance

from llamaindex_qwen3 import Qwen3Embedding, milvus_vector_store
from llamaindex_qwen3.errors import InvalidArgumentError, StoreError
from llamaindex_qwen3.milvus import CheckedMilvusVectorStore

TEXTS = ["storage in buckets", "flushing segments", "강한 일관성", "индексы и память", "向量检索"]


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    """Return a new database path, and stop its server afterwards."""
    path = str(tmp_path / "test.db")
    yield path
    server_manager_instance.release_server(path)


@pytest.fixture
def model(embedding_dir: Path) -> Qwen3Embedding:
    return embedder(embedding_dir)


def filled(model: Qwen3Embedding, uri: str, **options: object) -> CheckedMilvusVectorStore:
    """Return a store that holds TEXTS."""
    store = milvus_vector_store(model, uri, **options)
    nodes = [TextNode(id_=f"n{i}", text=text) for i, text in enumerate(TEXTS)]
    store.add(list(model(nodes)))
    return store


def rows(store: CheckedMilvusVectorStore) -> set[str]:
    found = store.client.query(store.collection_name, filter="", limit=1000, output_fields=["id"])
    return {row["id"] for row in found}


def search(store: CheckedMilvusVectorStore, vector: list[float], k: int = 1) -> list[str]:
    return store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=k)).ids or []


def run_python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the tests' helpers importable."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment
    )


def test_defaults_are_inner_product_and_strong(model: Qwen3Embedding, uri: str) -> None:
    """Build the collection as the contract says: IP, Strong, the model's dimension."""
    store = milvus_vector_store(model, uri)
    described = store.client.describe_collection("qwen3_docs")
    assert described["consistency_level"] in ("Strong", 0)
    index = store.client.describe_index("qwen3_docs", "embedding")
    assert index["metric_type"] == "IP"
    assert store.dim == model.dim


def test_each_text_finds_itself(model: Qwen3Embedding, uri: str) -> None:
    """Return the row whose vector is asked for, with its inner product."""
    store = filled(model, uri)
    for i, text in enumerate(TEXTS):
        result = store.query(
            VectorStoreQuery(query_embedding=model.get_text_embedding(text), similarity_top_k=1)
        )
        assert result.ids == [f"n{i}"]
        assert result.similarities[0] == pytest.approx(1.0, abs=1e-5)


REOPEN = """
import sys
from components import embedder
from pathlib import Path
from llama_index.core.vector_stores.types import VectorStoreQuery
from llamaindex_qwen3 import milvus_vector_store
model = embedder(Path(sys.argv[1]))
store = milvus_vector_store(model, sys.argv[2])
query = VectorStoreQuery(query_embedding=model.get_text_embedding(sys.argv[3]), similarity_top_k=1)
print(store.query(query).ids)
"""


def test_reopens_in_a_new_process(embedding_dir: Path, uri: str) -> None:
    """Find what another process stored, without being told to load the collection."""
    filled(embedder(embedding_dir), uri)
    server_manager_instance.release_server(uri)
    done = run_python(REOPEN, str(embedding_dir), uri, TEXTS[3])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['n3']"


def test_a_database_in_use_is_a_clear_error(embedding_dir: Path, uri: str) -> None:
    """Say that one process at a time may open a Milvus Lite database."""
    filled(embedder(embedding_dir), uri)
    done = run_python(REOPEN, str(embedding_dir), uri, "x")
    assert "StoreError" in done.stderr
    assert "another process" in done.stderr


def test_another_dimension_is_refused(model: Qwen3Embedding, uri: str, embedding_dir: Path) -> None:
    """Name both dimensions, and leave the collection as it was."""
    store = filled(model, uri)
    with pytest.raises(StoreError, match=rf"(?s){model.dim}.*\b32\b"):
        milvus_vector_store(embedder(embedding_dir, dimensions=32), uri)
    assert rows(store) == {f"n{i}" for i in range(len(TEXTS))}


def test_another_metric_is_refused(model: Qwen3Embedding, uri: str) -> None:
    """Name both metrics, and leave the collection as it was."""
    store = filled(model, uri)
    with pytest.raises(StoreError, match=r"(?s)IP.*COSINE"):
        milvus_vector_store(model, uri, metric="COSINE")
    assert rows(store) == {f"n{i}" for i in range(len(TEXTS))}


def test_reopening_keeps_and_overwriting_drops(model: Qwen3Embedding, uri: str) -> None:
    """Drop an existing collection only when told to."""
    filled(model, uri)
    assert len(rows(milvus_vector_store(model, uri))) == len(TEXTS)
    assert rows(milvus_vector_store(model, uri, overwrite=True)) == set()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_vectors_write_nothing(model: Qwen3Embedding, uri: str, bad: float) -> None:
    """Reject the whole batch, naming the node, when one vector is not finite."""
    store = milvus_vector_store(model, uri)
    good = [0.1] * model.dim
    nodes = [TextNode(id_=f"n{i}", text="t", embedding=list(good)) for i in range(3)]
    nodes[2].embedding[5] = bad
    with pytest.raises(StoreError, match="n2"):
        store.add(nodes)
    assert rows(store) == set()


@pytest.mark.parametrize("vector", [None, [0.1] * 3, []])
def test_unfit_vectors_write_nothing(
    model: Qwen3Embedding, uri: str, vector: list[float] | None
) -> None:
    """Reject a missing vector and one of another length; so does the async path."""
    store = milvus_vector_store(model, uri)
    nodes = [
        TextNode(id_="good", text="t", embedding=[0.1] * model.dim),
        TextNode(id_="bad", text="t", embedding=vector),
    ]
    with pytest.raises(StoreError, match="bad"):
        store.add(nodes)
    with pytest.raises(StoreError, match="bad"):
        asyncio.run(store.async_add(nodes))
    assert rows(store) == set()


def test_a_query_of_another_length_is_refused(model: Qwen3Embedding, uri: str) -> None:
    """Name the length in words instead of failing in a matrix product."""
    store = filled(model, uri)
    with pytest.raises(StoreError, match="3 dimensions"):
        search(store, [0.1] * 3)
    with pytest.raises(StoreError, match="NaN"):
        search(store, [math.nan] * model.dim)


def test_flushes_after_adding(
    model: Qwen3Embedding, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flush once an add, since Milvus Lite searches unflushed rows slowly."""
    store = milvus_vector_store(model, uri)
    flushed: list[str] = []
    flush = store.client.flush
    monkeypatch.setattr(
        store.client, "flush", lambda name, **kw: (flushed.append(name), flush(name, **kw))
    )
    store.add([TextNode(text="t", embedding=[0.1] * model.dim)])
    assert flushed == ["qwen3_docs"]


def test_two_event_loops(model: Qwen3Embedding, uri: str) -> None:
    """Serve two asyncio.run calls from one store."""
    store = filled(model, uri)
    query = VectorStoreQuery(query_embedding=model.get_text_embedding(TEXTS[0]), similarity_top_k=1)
    for _ in range(2):
        assert asyncio.run(store.aquery(query)).ids == ["n0"]


def test_writers_take_turns(model: Qwen3Embedding, uri: str) -> None:
    """Keep every row of several threads that write through two stores on one file."""
    stores = [milvus_vector_store(model, uri), milvus_vector_store(model, uri)]
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for i in range(5):
                node = TextNode(id_=f"{number}-{i}", text="t", embedding=[0.1] * model.dim)
                stores[number % 2].add([node])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(rows(stores[0])) == 20


def test_hybrid_finds_by_words(model: Qwen3Embedding, uri: str) -> None:
    """Fuse BM25 with the vectors: a word that only one text has brings it up."""
    store = filled(model, uri, hybrid=True)
    index = VectorStoreIndex.from_vector_store(store, embed_model=model)
    retriever = index.as_retriever(
        vector_store_query_mode=VectorStoreQueryMode.HYBRID, similarity_top_k=2
    )
    assert "n1" in [node.node_id for node in retriever.retrieve("flushing")]


def test_through_a_vector_store_index(model: Qwen3Embedding, uri: str) -> None:
    """Serve LlamaIndex's own way of building and asking an index."""
    store = milvus_vector_store(model, uri)
    index = VectorStoreIndex(
        [TextNode(text=text) for text in TEXTS],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=model,
    )
    assert len(index.as_retriever(similarity_top_k=3).retrieve("storage")) == 3


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"metric": "cos"}, InvalidArgumentError, "IP, COSINE, L2"),
        ({"consistency_level": "strong"}, InvalidArgumentError, "Strong"),
        ({"collection_name": "my docs"}, InvalidArgumentError, "underscores"),
        ({"uri": "data"}, InvalidArgumentError, r"\.db"),
        ({"uri": "./no/such/folder/x.db"}, StoreError, "does not exist"),
    ],
)
def test_wrong_arguments(
    model: Qwen3Embedding, options: dict[str, str], error: type[Exception], told: str
) -> None:
    """Say what is allowed."""
    with pytest.raises(error, match=told):
        milvus_vector_store(model, **options)


def test_a_file_that_is_no_database(model: Qwen3Embedding, tmp_path: Path) -> None:
    """Name the path and what it may be instead of a raw error."""
    path = tmp_path / "old.db"
    path.write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(StoreError, match=r"old\.db"):
        milvus_vector_store(model, str(path))
