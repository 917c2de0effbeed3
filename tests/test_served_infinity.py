"""A real infinity gives the local engine's vectors, and is no reranker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoints import edit_json
from components import embedder, length, reranker
from real_servers import CUSTOM_TASK, SHAPE, check_vectors, quietly, texts
from servers import model_servers
from servers.model_servers import Server

from llamaindex_qwen3.errors import (
    AlteredTextWarning,
    ServerAccessError,
    ServerMismatchError,
    TruncationWarning,
)

pytestmark = pytest.mark.server

Factory = Callable[..., Path]

KEY = "a-key-for-tests"
# It strips white space, so texts that begin or end with it are tried apart.
DOCUMENTS = [f"[{text}]" for text in texts(60, seed=5, longest=14)]


@pytest.fixture(scope="module")
def directory(make_embedding: Factory) -> Path:
    """Return a checkpoint that infinity's transformers 4 reads as well."""
    directory = make_embedding(shape=SHAPE)
    edit_json(directory / "config.json", rope_theta=1_000_000.0)
    return directory


@pytest.fixture(scope="module")
def server(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if reason := model_servers.unavailable("infinity"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("infinity")
    with model_servers.infinity(directory, folder, api_key=KEY) as running:
        yield running


@pytest.mark.parametrize("kind", ["auto", "infinity", "openai"])
def test_vectors_are_the_local_ones(directory: Path, server: Server, kind: str) -> None:
    """Embed documents and queries, with a task, at full width and at less."""
    for options in ({}, {"query_instruction": CUSTOM_TASK}, {"dimensions": 32}):
        local = embedder(directory, **options)
        served = embedder(directory, base_url=server.base_url, server=kind, api_key=KEY, **options)
        expected = local.get_text_embedding_batch(DOCUMENTS)
        given = served.get_text_embedding_batch(DOCUMENTS)
        check_vectors(given, expected)
        check_vectors(asyncio.run(served.aget_text_embedding_batch(DOCUMENTS)), expected)
        assert [length(vector) for vector in given] == pytest.approx([1.0] * 60, abs=1e-6)
        queries = DOCUMENTS[:6]
        check_vectors(
            [served.get_query_embedding(query) for query in queries],
            [local.get_query_embedding(query) for query in queries],
        )


def test_texts_are_cut_here(directory: Path, server: Server) -> None:
    """Cut at max_length, which the server is not told, with a warning."""
    batch = ["ein Wort", "wort," * 100, "ещё слово"]
    served = embedder(directory, base_url=server.base_url, api_key=KEY, max_length=64)
    with pytest.warns(TruncationWarning, match="64"):
        given = served.get_text_embedding_batch(batch)
    with quietly():
        expected = embedder(directory, max_length=64).get_text_embedding_batch(batch)
    check_vectors(given, expected)


@pytest.mark.parametrize("text", ["a <|im_end|> b", " leading", "trailing \n\n"])
def test_a_text_that_cannot_be_sent_as_it_is_is_reported(
    directory: Path, server: Server, text: str
) -> None:
    """Say so, since it takes no ids, obeys control tokens and strips white space."""
    served = embedder(directory, base_url=server.base_url, api_key=KEY)
    with pytest.warns(AlteredTextWarning):
        given = served.get_text_embedding(text)
    sent = text.strip().replace("<|im_end|>", "< |im_end|>")
    check_vectors([given], [embedder(directory).get_text_embedding(sent)])


@pytest.mark.parametrize("kind", ["auto", "infinity", "openai", "vllm"])
def test_it_is_no_reranker(server: Server, kind: str, reranker_dir: Path) -> None:
    model = reranker(reranker_dir, base_url=server.base_url, server=kind, api_key=KEY)
    with pytest.raises(ServerMismatchError) as caught:
        model.score("a", ["b", "c"])
    assert caught.value.url == server.base_url


def test_the_key_must_be_right(directory: Path, server: Server) -> None:
    model = embedder(directory, base_url=server.base_url, api_key="another-key")
    with pytest.raises(ServerAccessError, match="key") as caught:
        model.get_query_embedding("a")
    assert caught.value.status == 401
