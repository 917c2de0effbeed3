"""Events and callbacks, in pairs, once each and without secrets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit_weights
from components import candidates, embedder, reranker
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.schema import QueryBundle
from observe import Callbacks, recorded_events
from reference import ReferenceReranker

from llamaindex_qwen3.errors import InputTooLongError, InvalidArgumentError, NonFiniteError

EMBEDDING = ["EmbeddingStartEvent", "EmbeddingEndEvent"]
RERANKING = ["ReRankStartEvent", "ReRankEndEvent"]
Factory = Callable[..., Path]

EMBED_CALLS: dict[str, Callable[[Any], Any]] = {
    "query": lambda model: model.get_query_embedding("a"),
    "text": lambda model: model.get_text_embedding("a"),
    "texts": lambda model: model.get_text_embedding_batch(["a", "b"]),
    "async query": lambda model: asyncio.run(model.aget_query_embedding("a")),
    "async text": lambda model: asyncio.run(model.aget_text_embedding("a")),
    "async texts": lambda model: asyncio.run(model.aget_text_embedding_batch(["a", "b"])),
}
RERANK_CALLS: dict[str, Callable[[Any, Any, str], Any]] = {
    "sync": lambda model, nodes, query: model.postprocess_nodes(nodes, query_str=query),
    "async": lambda model, nodes, query: asyncio.run(
        model.apostprocess_nodes(nodes, query_bundle=QueryBundle(query))
    ),
}
embed_calls = pytest.mark.parametrize("call", EMBED_CALLS.values(), ids=EMBED_CALLS)
rerank_calls = pytest.mark.parametrize("call", RERANK_CALLS.values(), ids=RERANK_CALLS)


@embed_calls
def test_embedding_events(embedding_dir: Path, call: Callable[[Any], Any]) -> None:
    """Emit one pair a call, with the vectors."""
    callbacks = Callbacks()
    model = embedder(embedding_dir, callback_manager=callbacks.manager(), api_key="sekrit-1")
    with recorded_events() as recorded:
        result = call(model)
    assert [name for name in recorded.names() if name.startswith("Embedding")] == EMBEDDING
    assert callbacks.pairs() == [CBEventType.EMBEDDING]
    vectors = result if isinstance(result[0], list) else [result]
    (_, payload, _) = callbacks.ends[0]
    assert payload[EventPayload.EMBEDDINGS] == vectors
    assert "sekrit-1" not in str(recorded.events) + str(callbacks.starts)
    end = next(e for e in recorded.events if e.class_name() == "EmbeddingEndEvent")
    assert end.embeddings == vectors


@rerank_calls
def test_reranking_events(reranker_dir: Path, call: Callable[..., Any]) -> None:
    """Emit one pair a call, with what came in and what goes out."""
    callbacks = Callbacks()
    model = reranker(
        reranker_dir, top_n=2, callback_manager=callbacks.manager(), api_key="sekrit-1"
    )
    nodes = candidates(["a", "b", "c"])
    with recorded_events() as recorded:
        results = call(model, nodes, "what?")
    events = [event for event in recorded.events if "ReRank" in event.class_name()]
    assert [event.class_name() for event in events] == RERANKING
    start, end = events
    query = start.query.query_str if isinstance(start.query, QueryBundle) else start.query
    assert (query, start.top_n, start.model_name) == ("what?", 2, str(reranker_dir))
    assert [node.node.node_id for node in start.nodes] == ["n0", "n1", "n2"]
    assert [node.node.node_id for node in end.nodes] == [node.node.node_id for node in results]
    assert [node.score for node in end.nodes] == [node.score for node in results]

    assert callbacks.pairs() == [CBEventType.RERANKING]
    (_, started, _), (_, ended, _) = callbacks.starts[0], callbacks.ends[0]
    assert len(started[EventPayload.NODES]) == 3
    assert started[EventPayload.MODEL_NAME] == str(reranker_dir)
    assert started[EventPayload.QUERY_STR] == "what?"
    assert started[EventPayload.TOP_K] == 2
    assert [node.score for node in ended[EventPayload.NODES]] == [n.score for n in results]
    assert "sekrit-1" not in str(recorded.events) + str(callbacks.starts)


@rerank_calls
def test_no_nodes_no_events(reranker_dir: Path, call: Callable[..., Any]) -> None:
    """Emit nothing where there is nothing to rerank."""
    callbacks = Callbacks()
    model = reranker(reranker_dir, callback_manager=callbacks.manager())
    with recorded_events() as recorded:
        assert call(model, [], "what?") == []
    assert not [name for name in recorded.names() if name.startswith("ReRank")]
    assert callbacks.pairs() == []


@rerank_calls
def test_failed_scoring_leaves_no_start_alone(
    make_reranker: Factory, call: Callable[..., Any]
) -> None:
    """Emit as many ends as starts when the model gives no number."""
    directory = make_reranker()
    edit_weights(directory, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    callbacks = Callbacks()
    model = reranker(directory, callback_manager=callbacks.manager())
    with recorded_events() as recorded, pytest.raises(NonFiniteError):
        call(model, candidates(["a", "b"]), "what?")
    names = recorded.names()
    assert names.count("ReRankStartEvent") == names.count("ReRankEndEvent")
    callbacks.pairs()


@rerank_calls
def test_refused_query_leaves_no_start_alone(
    reranker_dir: Path, reference_reranker: ReferenceReranker, call: Callable[..., Any]
) -> None:
    """Emit as many ends as starts when the query is too long, or is no text."""
    limit = reference_reranker.length("a", "") + 5
    callbacks = Callbacks()
    model = reranker(reranker_dir, max_length=limit, callback_manager=callbacks.manager())
    for query, error in (
        ("far too long " * 50, InputTooLongError),
        ("\ud800", InvalidArgumentError),
    ):
        with recorded_events() as recorded, pytest.raises(error):
            call(model, candidates(["a"]), query)
        names = recorded.names()
        assert names.count("ReRankStartEvent") == names.count("ReRankEndEvent")
        callbacks.pairs()


def test_missing_query_leaves_no_start_alone(reranker_dir: Path) -> None:
    """Check the query before the first event."""
    callbacks = Callbacks()
    model = reranker(reranker_dir, callback_manager=callbacks.manager())
    with recorded_events() as recorded, contextlib.suppress(InvalidArgumentError):
        model.postprocess_nodes(candidates(["a"]))
    assert not [name for name in recorded.names() if name.startswith("ReRank")]
    assert callbacks.pairs() == []


def test_score_emits_no_reranking(reranker_dir: Path) -> None:
    """Keep events for reranking: plain scores have no nodes to report."""
    with recorded_events() as recorded:
        reranker(reranker_dir).score("a", ["b"])
    assert not [name for name in recorded.names() if name.startswith("ReRank")]
