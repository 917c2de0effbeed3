"""Bulk work on model servers: they are kept busy, queries pass by, and memory stays flat."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from milvus_lite.server_manager import server_manager_instance
from observe import recorded_events
from served import HashedVectors, served_embedder
from servers.fake_servers import FakeServer

from llamaindex_qwen3 import milvus_vector_store
from llamaindex_qwen3.engine.server import ServedEncoder
from llamaindex_qwen3.errors import ServerAccessError
from llamaindex_qwen3.ingestion import IngestReport, ingest

Serve = Callable[..., FakeServer]

BATCH = 4
TEXTS = [f"Text of number {i}." for i in range(30 * BATCH)]


@pytest.fixture
def server(serve: Serve, embedding_dir: Path) -> FakeServer:
    return serve("vllm", embedding_dir, vectors="hashed")


@pytest.fixture
def model(server: FakeServer, embedding_dir: Path) -> Any:
    """Return an embedder that has met its server."""
    found = served_embedder(server, embedding_dir, embed_batch_size=BATCH, max_in_flight=6)
    return found.load()


class Held:
    """A server that answers nothing until its time has come, and a call that waits for it."""

    def __init__(self, server: FakeServer, call: Callable[[], Any]) -> None:
        server.change(hold_from=1)
        self.server, self.result = server, None
        self.thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self.thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        self.result = call()

    def finish(self) -> Any:
        self.server.release()
        self.thread.join(30)
        return self.result


def test_a_list_longer_than_a_batch(server: FakeServer, model: Any, embedding_dir: Path) -> None:
    """Have as many requests on the wire as are allowed, though LlamaIndex asks batch by batch."""
    held = Held(server, lambda: model.get_text_embedding_batch(TEXTS))
    server.until(6, "held")
    vectors = held.finish()
    assert HashedVectors(embedding_dir).wrong(TEXTS, vectors) == []


def test_events_of_each_batch(model: Any) -> None:
    """Tell observers of each batch in order, with its own texts and vectors."""
    with recorded_events() as events:
        vectors = model.get_text_embedding_batch(TEXTS)
    ends = [event for event in events.events if event.class_name() == "EmbeddingEndEvent"]
    assert [event.chunks for event in ends] == [TEXTS[i : i + BATCH] for i in range(0, 120, BATCH)]
    assert [vector for event in ends for vector in event.embeddings] == vectors


def test_an_error_ends_all(server: FakeServer, model: Any) -> None:
    """Ask for nothing more after the error that the call ends with."""
    before = server.counts()["posts"]
    server.change(instead={"status": 401, "body": {"error": "no"}})
    with ThreadPoolExecutor(1) as threads:
        server.change(hold_from=1)
        call = threads.submit(model.get_text_embedding_batch, TEXTS)
        server.until(6, "held")
        # The first batch is refused, and another request may have taken its place on the wire.
        server.release(1)
        with pytest.raises(ServerAccessError):
            call.result(30)
    server.change(instead=None)
    server.release()
    model.get_text_embedding("again")
    time.sleep(0.3)  # for more requests, of which there must be none
    assert server.counts()["posts"] <= before + 6 + 1 + 1


def test_texts_wait_as_texts(
    server: FakeServer, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenize no more than a little ahead of what is on the wire, for any number of calls."""
    tokenized: list[int] = []
    rows = ServedEncoder._rows

    def counted(self: ServedEncoder, texts: Any, request: Any) -> Any:
        tokenized.append(len(texts))
        return rows(self, texts, request)

    monkeypatch.setattr(ServedEncoder, "_rows", counted)
    calls = (
        lambda: model.get_text_embedding_batch(TEXTS),
        lambda: asyncio.run(model.aget_text_embedding_batch(TEXTS)),
    )
    for call in calls:
        tokenized.clear()
        held = Held(server, call)
        server.until(6, "held")
        assert len(tokenized) <= 2 * 6 + 1
        assert sum(tokenized) <= (2 * 6 + 1) * BATCH
        assert len(held.finish()) == len(TEXTS)
        assert sum(tokenized) == len(TEXTS)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.md").write_text("".join(f"# Part {j}\nof {i}\n\n" for j in range(BATCH)))
    return folder


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "store.db")
    server_manager_instance.release_server(str(tmp_path / "store.db"))


def test_ingest_reads_on(server: FakeServer, model: Any, docs: Path, uri: str) -> None:
    """Read and split the next files while servers work on the first ones."""
    store = milvus_vector_store(model, uri)
    held = Held(server, lambda: ingest([docs], model, store))
    server.until(3, "held")
    assert held.finish() == IngestReport(files=10, added=40)


def test_a_stopped_ingest_asks_no_more(
    server: FakeServer, model: Any, docs: Path, uri: str
) -> None:
    """Give up the batches that are under way; the next run has the rest."""
    store = milvus_vector_store(model, uri)
    report = ingest([docs], model, store, should_stop=lambda: True)
    assert report.stopped
    assert report.added == BATCH
    model.get_text_embedding("after it")
    before = server.counts()["posts"]
    assert ingest([docs], model, store).added == 40 - BATCH
    assert server.counts()["posts"] - before == 10 - 1
