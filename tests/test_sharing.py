"""One copy of the weights a process and configuration, loaded at first use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from components import (
    COSINE_TOLERANCE,
    SCORE_TOLERANCE,
    candidates,
    cosine_distance,
    embedder,
    reranker,
)
from reference import ReferenceEmbedder, ReferenceReranker

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.errors import CheckpointError

Factory = Callable[..., Path]


def test_nothing_is_loaded_before_use(
    make_embedding: Factory, make_reranker: Factory, loads: list[int]
) -> None:
    """Read no weights for making, describing, copying or serialising a component."""
    model, ranker = embedder(make_embedding()), reranker(make_reranker())
    loads.clear()
    model.with_task("a task").to_dict()
    ranker.with_task("a task").to_dict()
    assert model.dim == 64
    assert repr(model)
    assert repr(ranker)
    assert ranker.postprocess_nodes([]) == []
    assert loads == []
    model.get_text_embedding("a")
    assert len(loads) == 1
    ranker.score("a", ["b"])
    assert len(loads) == 2


def test_load_loads_once(make_embedding: Factory, make_reranker: Factory, loads: list[int]) -> None:
    """Load when asked to, return the component, and not load again at use."""
    model, ranker = embedder(make_embedding()), reranker(make_reranker())
    loads.clear()
    assert model.load() is model
    assert ranker.load() is ranker
    assert len(loads) == 2
    assert model.load() is model
    model.get_query_embedding("a")
    ranker.postprocess_nodes(candidates(["a"]), query_str="b")
    assert len(loads) == 2


def test_embedders_share(make_embedding: Factory, loads: list[int]) -> None:
    """Share between components that differ in what does not touch the weights."""
    directory = make_embedding()
    loads.clear()
    model = embedder(directory).load()
    for other in (
        embedder(directory),
        embedder(directory, dimensions=40, max_length=100, normalize=False),
        embedder(directory, query_instruction="a", text_instruction="b", embed_batch_size=3),
        model.with_task("c"),
    ):
        other.get_text_embedding("a")
    assert len(loads) == 1


def test_rerankers_share(make_reranker: Factory, loads: list[int]) -> None:
    """Share between components that differ in what does not touch the weights."""
    directory = make_reranker()
    loads.clear()
    model = reranker(directory).load()
    for other in (
        reranker(directory),
        reranker(directory, top_n=9, max_length=200, score_type="logit", score_threshold=0.1),
        model.with_task("c"),
    ):
        other.score("a", ["b"])
    assert len(loads) == 1


def test_configurations_do_not_share(make_embedding: Factory, loads: list[int]) -> None:
    """Keep another dtype and another checkpoint apart."""
    directory, other = make_embedding(), make_embedding()
    loads.clear()
    exact = embedder(directory).get_text_embedding("a")
    rounded = embedder(directory, dtype="bfloat16").get_text_embedding("a")
    embedder(other).get_text_embedding("a")
    assert len(loads) == 3
    assert exact != rounded
    assert embedder(directory).get_text_embedding("a") == exact


def test_first_use_from_many_threads(
    make_embedding: Factory, make_reranker: Factory, loads: list[int]
) -> None:
    """Load once when several threads use a model for the first time together."""
    embedding, reranking = make_embedding(), make_reranker()
    vector = ReferenceEmbedder(embedding).document("a")
    score = ReferenceReranker(reranking).score("a", "b")
    loads.clear()
    together = threading.Barrier(6)
    # Held to the end: a model whose last component is gone is let go, and loaded anew.
    pairs = [(embedder(embedding), reranker(reranking)) for _ in range(6)]

    def work(pair: tuple[Qwen3Embedding, Qwen3Reranker]) -> tuple[list[float], list[float]]:
        model, ranker = pair
        together.wait()
        return model.get_text_embedding("a"), ranker.score("a", ["b"])

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(work, pairs))
    assert len(loads) == 2
    for vectors, scores in results:
        assert cosine_distance(vectors, vector) < COSINE_TOLERANCE
        assert scores == pytest.approx([score], abs=SCORE_TOLERANCE)


def test_close_leaves_other_components_usable(
    make_embedding: Factory, make_reranker: Factory
) -> None:
    """Let go of the model without taking it from those who share it; twice is once."""
    embedding, reranking = make_embedding(), make_reranker()
    model, other = embedder(embedding), embedder(embedding)
    before = other.get_text_embedding("a")
    model.get_text_embedding("a")
    model.close()
    model.close()
    assert other.get_text_embedding("a") == before
    ranker, sharing = reranker(reranking), reranker(reranking)
    scores = sharing.score("a", ["b"])
    ranker.score("a", ["b"])
    ranker.close()
    ranker.close()
    assert sharing.score("a", ["b"]) == pytest.approx(scores, abs=1e-6)


def test_close_before_use(make_embedding: Factory, make_reranker: Factory) -> None:
    """Close what was never loaded."""
    embedder(make_embedding()).close()
    reranker(make_reranker()).close()


def test_failed_load_can_be_tried_again(make_embedding: Factory) -> None:
    """Load a checkpoint that has been mended since the first try."""
    directory = make_embedding()
    reference = ReferenceEmbedder(directory)
    weights = directory / "model.safetensors"
    weights.rename(directory / "aside")
    model = embedder(directory)
    for _ in range(2):
        with pytest.raises(CheckpointError):
            model.get_text_embedding("a")
    (directory / "aside").rename(weights)
    assert cosine_distance(model.get_text_embedding("a"), reference.document("a")) < 1e-6
