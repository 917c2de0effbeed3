"""A running inspector: the real server, models and collection, in a thread of the tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from milvus_lite.server_manager import server_manager_instance

from llamaindex_qwen3 import Qwen3Embedding, milvus_vector_store
from llamaindex_qwen3.inspector import Inspector, create_app, listen
from llamaindex_qwen3.milvus import CheckedMilvusVectorStore
from llamaindex_qwen3.pipeline import ingest

Stages = dict[str, dict[str, Any]]


@contextmanager
def stored(
    folder: Path, pages: dict[str, str], embed_model: Qwen3Embedding, **options: Any
) -> Iterator[CheckedMilvusVectorStore]:
    """Yield a collection that holds these pages."""
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    uri = str(folder / "pages.db")
    store = milvus_vector_store(embed_model, uri, **options)
    ingest([folder], embed_model, store)
    yield store
    server_manager_instance.release_server(uri)


@contextmanager
def running(inspector: Inspector, **options: Any) -> Iterator[str]:
    """Yield the address of the page, and end the server afterwards."""
    listener = listen("127.0.0.1", 0)
    app = create_app(inspector, **options)
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def stages(url: str, path: str, **body: Any) -> Stages:
    """Return the stages of a stream by name; pieces of an answer are joined."""
    response = httpx.post(f"{url}/api/{path}", json=body, timeout=60)
    assert response.status_code == 200, response.text
    found: Stages = {}
    for line in response.text.splitlines():
        stage = json.loads(line)
        if stage["stage"] == "piece" and "piece" in found:
            stage["text"] = found["piece"]["text"] + stage["text"]
        found[stage["stage"]] = stage
    return found
