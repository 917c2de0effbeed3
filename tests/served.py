"""Components of fake model servers, and the vectors these servers give."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from components import embedder, reranker
from reference import TASK, ReferenceTokenizer
from servers.fake_servers import FakeServer, hashed_vector

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker

# Ends a test that would otherwise hang; no test measures time by it.
WAIT_S = 45.0
T = TypeVar("T")


def served_embedder(
    servers: FakeServer | Sequence[FakeServer], directory: Path, **options: Any
) -> Qwen3Embedding:
    """Return an embedder of one or several servers, which waits less long than by default."""
    return embedder(directory, **{**_served(servers), **options})


def served_reranker(
    servers: FakeServer | Sequence[FakeServer], directory: Path, **options: Any
) -> Qwen3Reranker:
    """Return a reranker of one or several servers, which waits less long than by default."""
    return reranker(directory, **{**_served(servers), **options})


def _served(servers: FakeServer | Sequence[FakeServer]) -> dict[str, Any]:
    url = servers.url if isinstance(servers, FakeServer) else [server.url for server in servers]
    return {"base_url": url, "timeout_s": 10.0, "retry_s": 30.0}


class HashedVectors:
    """What a server of `vectors="hashed"` gives for texts that are read rightly."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = ReferenceTokenizer(directory)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.size: int = config["hidden_size"]

    def ids(self, text: str, max_length: int = 8192) -> list[int]:
        """Return the ids of a text, cut before the end token."""
        return [*self.tokenizer.text(text)[: max_length - 1], self.tokenizer.end]

    def document(self, text: str, max_length: int = 8192) -> list[float]:
        """Return the vector of a document."""
        return hashed_vector(self.ids(text, max_length), self.size)

    def query(self, query: str, task: str = TASK) -> list[float]:
        """Return the vector of a query."""
        return self.document(f"Instruct: {task}\nQuery:{query}")

    def wrong(self, texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> list[str]:
        """Return the documents whose vectors are wrong, of vectors for all of them, in order."""
        assert len(vectors) == len(texts)
        return [
            text
            for text, vector in zip(texts, vectors, strict=True)
            if not close(vector, self.document(text))
        ]


def close(vector: Sequence[float], expected: Sequence[float]) -> bool:
    """Say whether two vectors differ by rounding only."""
    assert len(vector) == len(expected)
    return max(abs(a - b) for a, b in zip(vector, expected, strict=True)) < 1e-6


def in_time(work: Awaitable[T]) -> T:
    """Run a coroutine in a loop of its own, for a while at most."""

    async def limited() -> T:
        return await asyncio.wait_for(work, WAIT_S)

    return asyncio.run(limited())


def asked(records: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the method and path of each request."""
    return [(record["method"], record["path"]) for record in records]
