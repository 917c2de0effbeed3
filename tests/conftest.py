"""Fixtures: a tokenizer like Qwen's, tiny random checkpoints, and what they must compute."""

from __future__ import annotations

import os
import secrets
import signal

# Before anything imports a library that reads them: tests take nothing from the network, and
# worker processes do not inherit a tokenizer's threads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Ray keeps the first token that it meets for the life of a process, so all tests have the same; without
# one it would leave one in the home directory.
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import build_tokenizer, save_embedding, save_reranker
from passes import ForwardPasses
from reference import ReferenceEmbedder, ReferenceReranker
from servers.fake_servers import FakeServer, FakeServers, running
from tokenizers import Tokenizer
from transformers import Qwen3Model

Factory = Callable[..., Path]

# What a shell starts in the background ignores Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Return a small tokenizer of Qwen3's kind."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def make_embedding(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Factory:
    """Return a function that saves a random embedding checkpoint in a new directory."""

    def make(**options: Any) -> Path:
        return save_embedding(tmp_path_factory.mktemp("embedding"), tokenizer, **options)

    return make


@pytest.fixture(scope="session")
def make_reranker(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Factory:
    """Return a function that saves a random reranker checkpoint in a new directory."""

    def make(**options: Any) -> Path:
        return save_reranker(tmp_path_factory.mktemp("reranker"), tokenizer, **options)

    return make


@pytest.fixture(scope="session")
def embedding_dir(make_embedding: Factory) -> Path:
    """Return an embedding checkpoint that no test changes."""
    return make_embedding()


@pytest.fixture(scope="session")
def reranker_dir(make_reranker: Factory) -> Path:
    """Return a reranker checkpoint that no test changes."""
    return make_reranker()


@pytest.fixture(scope="session")
def reference_embedder(embedding_dir: Path) -> ReferenceEmbedder:
    """Return the reference of `embedding_dir`."""
    return ReferenceEmbedder(embedding_dir)


@pytest.fixture(scope="session")
def reference_reranker(reranker_dir: Path) -> ReferenceReranker:
    """Return the reference of `reranker_dir`."""
    return ReferenceReranker(reranker_dir)


@pytest.fixture(scope="session")
def fake_servers() -> Iterator[FakeServers]:
    """Return the process that fake model servers run in."""
    with running() as servers:
        yield servers


@pytest.fixture
def serve(fake_servers: FakeServers) -> Iterator[Callable[..., FakeServer]]:
    """Return a function that starts a fake model server, which ends with the test."""
    started: list[FakeServer] = []

    def start(kind: str, directory: Path, **settings: Any) -> FakeServer:
        started.append(fake_servers.start(kind, directory, **settings))
        return started[-1]

    yield start
    for server in started:
        server.end()


@pytest.fixture
def passes() -> Iterator[ForwardPasses]:
    """Return a counter of the forward passes of every Qwen3 model in this process."""
    with ForwardPasses() as counter:
        yield counter


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one whenever a Qwen3 model is made, by a test as well."""
    made: list[int] = []
    build = Qwen3Model.__init__

    def count(self: Qwen3Model, *args: Any, **kwargs: Any) -> None:
        made.append(len(made))
        build(self, *args, **kwargs)

    monkeypatch.setattr(Qwen3Model, "__init__", count)
    return made
