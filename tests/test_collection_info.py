"""What is said of a collection without a model, and that nothing is created by asking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from components import embedder
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from milvus_lite.server_manager import server_manager_instance
from passes import ForwardPasses
from pymilvus import DataType, MilvusClient
from shell import Shell

from llamaindex_qwen3 import milvus_vector_store
from llamaindex_qwen3.collection_info import MOST_VALUES, collection_info
from llamaindex_qwen3.errors import InvalidArgumentError, StoreError

TASK = "Retrieve semantically similar text"


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    """Return a place for a database, which is closed in the end."""
    uri = str(tmp_path / "a.db")
    yield uri
    server_manager_instance.release_server(uri)


def fill(uri: str, directory: Path, rows: int, **options: object) -> None:
    """Store nodes of two documents in two languages."""
    model = embedder(directory, text_instruction=TASK)
    nodes = [
        TextNode(
            id_=f"n{i}",
            text=f"text {i}",
            metadata={"language": "en" if i % 3 else "de", "serial": i, "maybe": None},
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"d{i % 2}")},
        )
        for i in range(rows)
    ]
    milvus_vector_store(model, uri, "c", **options).add(model(nodes))  # type: ignore[arg-type]


def test_what_is_in_a_collection(uri: str, embedding_dir: Path, passes: ForwardPasses) -> None:
    """Count rows, documents and values, and give what was noted, without running a model."""
    rows = MOST_VALUES + 1
    fill(uri, embedding_dir, rows)
    ran = passes.count
    info = collection_info(uri, "c")
    assert passes.count == ran
    assert (info.rows, info.dimensions) == (rows, 64)
    assert info.documents == {"d0": (rows + 1) // 2, "d1": rows // 2}
    german = len(range(0, rows, 3))
    assert info.metadata["language"].values == {"en": rows - german, "de": german}
    # Too many to list: their number is enough.
    assert (info.metadata["serial"].distinct, info.metadata["serial"].values) == (rows, {})
    assert set(info.metadata) == {"language", "serial"}
    assert info.built_with["document task"] == TASK
    assert info.built_with["name"] == str(embedding_dir)
    assert info.dense is not None
    assert (info.dense.metric, info.dense.kind) == ("IP", "FLAT")
    assert info.dense.indexed_rows + info.dense.pending_rows == rows
    assert (info.words, info.partition_key) == (None, None)


def test_words_partitions_and_metrics(uri: str, embedding_dir: Path) -> None:
    """Say what else a collection was made with."""
    fill(uri, embedding_dir, 4, hybrid=True, partition_key="language", metric="COSINE")
    info = collection_info(uri, "c")
    assert info.dense is not None
    assert info.dense.metric == "COSINE"
    assert info.words is not None
    assert info.words.metric == "BM25"
    assert info.partition_key == "language"
    assert info.metadata["language"].values == {"de": 2, "en": 2}


@pytest.mark.parametrize("type_", [DataType.INT64, DataType.VARCHAR])
def test_a_collection_of_another_program(uri: str, type_: DataType) -> None:
    """Describe one that was made without this package as far as it goes."""
    client = MilvusClient(uri=uri)
    schema = client.create_schema(enable_dynamic_field=True)
    schema.add_field("key", type_, is_primary=True, max_length=8)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
    client.create_collection("other", schema=schema)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="L2")
    client.create_index("other", index)
    rows = [
        {
            "key": key if type_ == DataType.INT64 else str(key),
            "vector": [0.0, 1.0],
            "colour": colour,
        }
        for key, colour in ((-1, "red"), (0, "blue"))
    ]
    client.insert("other", rows)
    info = collection_info(uri, "other")
    assert (info.rows, info.dimensions, info.built_with) == (2, 2, {})
    assert info.metadata["colour"].values == {"red": 1, "blue": 1}
    assert (set(info.metadata), info.documents) == ({"colour"}, {})


def test_nothing_is_created(tmp_path: Path, uri: str, embedding_dir: Path) -> None:
    """Name what there is instead of making what was asked for."""
    with pytest.raises(StoreError, match="There is no database"):
        collection_info(uri, "c")
    assert not Path(uri).exists()
    with pytest.raises(InvalidArgumentError, match=r"ends in \.db"):
        collection_info(str(tmp_path), "c")
    fill(uri, embedding_dir, 1)
    with pytest.raises(StoreError, match=r"no collection 'd'.*there are: c"):
        collection_info(uri, "d")
    assert MilvusClient(uri=uri).list_collections() == ["c"]


def test_the_command(tmp_path: Path, uri: str, embedding_dir: Path) -> None:
    """Show it to people, and the same as JSON to programs."""
    fill(uri, embedding_dir, 3)
    shell = Shell(tmp_path)
    done = shell.run("info", "--uri", uri, "--collection", "c", "--files")
    assert done.code == 0, done.err
    for told in ("3 rows of 2 documents", "64 dimensions, metric IP", TASK, "en (2), de (1)", "d1"):
        assert told in done.out
    data = json.loads(shell.run("info", "--uri", uri, "--collection", "c", "--json").out)
    assert data["rows"] == 3
    assert data["metadata"]["language"]["values"] == {"en": 2, "de": 1}
    assert shell.run("info", "--uri", str(tmp_path / "no.db")).code == 1
    lines = shell.run("info", "--uri", uri, "--collection", "c", COLUMNS="50").out.splitlines()
    assert max(map(len, lines)) <= max(50, len(f"c at {uri}"))
