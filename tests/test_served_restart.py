"""A real vLLM that is killed in the middle of an ingest, and comes back or does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from components import embedder
from milvus_lite.server_manager import server_manager_instance
from real_servers import SHAPE, check_vectors, texts, vllm
from servers.model_servers import Server

from llamaindex_qwen3 import Qwen3Embedding, milvus_vector_store
from llamaindex_qwen3.errors import ServerError
from llamaindex_qwen3.milvus import CheckedMilvusVectorStore
from llamaindex_qwen3.pipeline import IngestReport, ingest

pytestmark = pytest.mark.server

Factory = Callable[..., Path]
OpenStore = Callable[[Qwen3Embedding, str], CheckedMilvusVectorStore]
FILES = 120


@pytest.fixture(scope="module")
def directory(make_embedding: Factory) -> Path:
    return make_embedding(shape=SHAPE)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder of small files."""
    folder = tmp_path / "files"
    folder.mkdir()
    for index, text in enumerate(texts(FILES, seed=4, longest=20)):
        letters = text.replace("\x00", " ")
        (folder / f"{index:03}.txt").write_text(f"{index} {letters}", encoding="utf-8")
    return folder


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[OpenStore]:
    """Return a function that opens collections of one database."""
    uri = str(tmp_path / "store.db")
    yield lambda model, name: milvus_vector_store(model, uri, name)
    server_manager_instance.release_server(uri)


def served(directory: Path, server: Server, retry_s: float) -> Qwen3Embedding:
    """Return an embedder that sends many small requests, two at a time."""
    return embedder(
        directory, base_url=server.base_url, retry_s=retry_s, max_in_flight=2,
        max_batch_tokens=64, embed_batch_size=30,
    )  # fmt: skip


def answered(server: Server) -> int:
    """Return the requests for vectors that a server has answered so far."""
    return server.log.read_text(errors="replace").count('"POST /v1/embeddings')


def crash_in_the_middle(server: Server, work: Future[IngestReport], before: int) -> None:
    """Kill a server that has answered a part of an ingest's requests, and others before."""
    while answered(server) - before < FILES // 2:
        assert not work.done()
        time.sleep(0.002)
    server.crash()
    assert not work.done()


def rows(store: CheckedMilvusVectorStore) -> dict[str, tuple[str, list[float]]]:
    """Return the text and the vector of every row, by id."""
    found = store.select('id != ""', ["*"])
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: (row["text"], row["embedding"]) for row in found}


def check_rows(given: CheckedMilvusVectorStore, expected: CheckedMilvusVectorStore) -> None:
    """Assert that two collections hold the same."""
    one, other = rows(given), rows(expected)
    assert one.keys() == other.keys()
    assert [one[id_][0] for id_ in other] == [text for text, _ in other.values()]
    check_vectors([one[id_][1] for id_ in other], [vector for _, vector in other.values()])


def test_nothing_is_lost_when_a_server_dies_in_the_middle(
    directory: Path, files: Path, open_store: OpenStore, tmp_path: Path
) -> None:
    """Wait for a server that comes back; give up on one that does not, and go on later."""
    local = embedder(directory)
    undisturbed = open_store(local, "undisturbed")
    assert ingest([files], local, undisturbed).added >= FILES
    with ExitStack() as running, ThreadPoolExecutor(1) as thread:
        server = running.enter_context(vllm(directory, "embedding", tmp_path / "first"))
        model = served(directory, server, retry_s=120)
        store = open_store(model, "comes_back")
        work = thread.submit(ingest, [files], model, store)
        crash_in_the_middle(server, work, before=0)
        port = urlsplit(server.base_url).port
        server = running.enter_context(vllm(directory, "embedding", tmp_path / "second", port=port))
        assert work.result(timeout=120).added == len(rows(undisturbed))
        check_rows(store, undisturbed)

        model = served(directory, server, retry_s=1)
        store = open_store(model, "stays_away")
        before = answered(server)
        work = thread.submit(ingest, [files], model, store)
        crash_in_the_middle(server, work, before)
        with pytest.raises(ServerError, match=server.base_url):
            work.result(timeout=60)
        kept = rows(store)
        assert 0 < len(kept) < len(rows(undisturbed))
        # The same model, here: its vectors are as good.
        assert ingest([files], local, open_store(local, "stays_away")).added == len(
            rows(undisturbed)
        ) - len(kept)
        check_rows(store, undisturbed)
