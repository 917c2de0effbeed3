"""Qwen3Reranker as a node postprocessor: which nodes it returns, and what it leaves alone."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from components import SCORE_TOLERANCE, candidates, reranker
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from reference import ReferenceReranker
from texts import random_texts

from llamaindex_qwen3.errors import InvalidArgumentError

QUERY = "How is data stored?"
TEXTS = random_texts(200, 12)
Factory = Callable[..., Path]


def ids_of(nodes: list[NodeWithScore]) -> list[str]:
    """Return the ids of nodes, in order."""
    return [node.node.node_id for node in nodes]


@pytest.mark.parametrize("top_n", [1, 3, 12, 13, 1000])
def test_best_nodes_first(
    reranker_dir: Path, reference_reranker: ReferenceReranker, top_n: int
) -> None:
    """Return the top_n best, by score, or all there are."""
    nodes = candidates(TEXTS)
    results = reranker(reranker_dir, top_n=top_n).postprocess_nodes(nodes, query_str=QUERY)
    expected = {f"n{i}": reference_reranker.score(QUERY, text) for i, text in enumerate(TEXTS)}
    order = sorted(expected, key=lambda name: -expected[name])
    assert ids_of(results) == order[:top_n]
    for result in results:
        assert type(result.score) is float
        assert result.score == pytest.approx(expected[result.node.node_id], abs=SCORE_TOLERANCE)


def test_query_in_every_form(reranker_dir: Path) -> None:
    """Take a query as a string or a bundle, sync and async, with the same result."""
    model, nodes = reranker(reranker_dir), candidates(TEXTS)
    bundle = QueryBundle(query_str=QUERY, custom_embedding_strs=["something else"])
    results = [
        model.postprocess_nodes(nodes, query_str=QUERY),
        model.postprocess_nodes(nodes, query_bundle=bundle),
        asyncio.run(model.apostprocess_nodes(nodes, query_str=QUERY)),
        asyncio.run(model.apostprocess_nodes(nodes, query_bundle=bundle)),
    ]
    for result in results:
        assert ids_of(result) == ids_of(results[0])
        assert [node.score for node in result] == [node.score for node in results[0]]


def test_no_query(reranker_dir: Path) -> None:
    """Refuse to rerank for no query."""
    model, nodes = reranker(reranker_dir), candidates(["a"])
    with pytest.raises(InvalidArgumentError, match="query"):
        model.postprocess_nodes(nodes)
    with pytest.raises(InvalidArgumentError, match="query"):
        asyncio.run(model.apostprocess_nodes(nodes))


def test_ties_keep_retrieval_order(reranker_dir: Path) -> None:
    """Leave nodes of one text in the order they came."""
    nodes = candidates(["same text", "other", "same text", "", "same text", "same text"])
    results = reranker(reranker_dir, top_n=6).postprocess_nodes(nodes, query_str=QUERY)
    same = [node for node in results if node.node.get_content() == "same text"]
    assert ids_of(same) == ["n0", "n2", "n4", "n5"]
    assert len({node.score for node in same}) == 1


@pytest.mark.parametrize("score_type", ["probability", "logit"])
def test_score_threshold(reranker_dir: Path, score_type: str) -> None:
    """Leave out nodes below the threshold, which is on the scale of the scores."""
    scores = sorted(reranker(reranker_dir, score_type=score_type).score(QUERY, TEXTS))
    for kept in (0, 1, 5, len(TEXTS)):
        widest = (0.0, 1.0) if score_type == "probability" else (-40.0, 40.0)
        bounds = [widest[0], *scores, widest[1]]
        below = len(TEXTS) - kept
        threshold = (bounds[below] + bounds[below + 1]) / 2
        model = reranker(
            reranker_dir, score_type=score_type, score_threshold=threshold, top_n=len(TEXTS)
        )
        results = model.postprocess_nodes(candidates(TEXTS), query_str=QUERY)
        assert [node.score for node in results] == pytest.approx(scores[below:][::-1], abs=1e-6)


def test_threshold_zero_is_a_threshold(reranker_dir: Path) -> None:
    """Not take a threshold of zero for none."""
    model = reranker(reranker_dir, score_type="logit", score_threshold=0.0, top_n=len(TEXTS))
    results = model.postprocess_nodes(candidates(TEXTS), query_str=QUERY)
    assert 0 < len(results) < len(TEXTS)
    assert all(node.score is not None and node.score >= 0.0 for node in results)


@pytest.mark.parametrize("keep", [False, True])
def test_callers_nodes_are_untouched(reranker_dir: Path, keep: bool) -> None:
    """Return copies, and change nothing of what came in, metadata included."""
    nodes = candidates(TEXTS, metadata={"tags": ["a"], "file": "b.md"})
    before = copy.deepcopy(nodes)
    model = reranker(reranker_dir, keep_retrieval_score=keep)
    results = model.postprocess_nodes(nodes, query_str=QUERY)
    assert nodes == before
    inputs = {id(node) for node in nodes} | {id(node.node) for node in nodes}
    for result in results:
        assert id(result) not in inputs
        assert id(result.node) not in inputs
        result.node.metadata["mine"] = 1
        result.node.metadata["file"] = "changed"
        result.node.excluded_llm_metadata_keys.append("mine")
        result.node.relationships.clear()
    assert nodes == before


def test_keep_retrieval_score(reranker_dir: Path) -> None:
    """Store the retriever's score where no prompt and no embedding shows it."""
    nodes = candidates(TEXTS, metadata={"file": "b.md"})
    retrieved = {node.node.node_id: node.score for node in nodes}
    model = reranker(reranker_dir, keep_retrieval_score=True, top_n=len(TEXTS))
    for result in model.postprocess_nodes(nodes, query_str=QUERY):
        assert result.node.metadata["retrieval_score"] == retrieved[result.node.node_id]
        assert "retrieval_score" in result.node.excluded_embed_metadata_keys
        assert "retrieval_score" in result.node.excluded_llm_metadata_keys
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            content = result.node.get_content(metadata_mode=mode)
            assert "retrieval_score" not in content
            assert "file: b.md" in content


def test_retrieval_score_is_kept_only_when_asked(reranker_dir: Path) -> None:
    """Add no metadata by default."""
    results = reranker(reranker_dir).postprocess_nodes(candidates(TEXTS), query_str=QUERY)
    assert len(results) == 3
    assert all(node.node.metadata == {} for node in results)
    assert all(node.node.excluded_embed_metadata_keys == [] for node in results)


def test_reranking_twice_gives_the_same_scores(reranker_dir: Path) -> None:
    """Not let what a first reranking stored change a second one."""
    model = reranker(reranker_dir, keep_retrieval_score=True)
    first = model.postprocess_nodes(candidates(TEXTS), query_str=QUERY)
    second = model.postprocess_nodes(first, query_str=QUERY)
    assert ids_of(second) == ids_of(first)
    assert [n.score for n in second] == pytest.approx([n.score for n in first], abs=1e-6)
    for node in second:
        assert node.node.excluded_llm_metadata_keys.count("retrieval_score") == 1


def test_nodes_without_a_score(reranker_dir: Path) -> None:
    """Rerank nodes that no retriever scored."""
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    model = reranker(reranker_dir, keep_retrieval_score=True)
    results = model.postprocess_nodes(nodes, query_str=QUERY)
    assert len(results) == 3
    assert all(node.score is not None for node in results)


@pytest.mark.parametrize("mode", list(MetadataMode))
def test_metadata_mode(
    reranker_dir: Path, reference_reranker: ReferenceReranker, mode: MetadataMode
) -> None:
    """Score the text that LlamaIndex gives for the mode."""
    nodes = candidates(
        TEXTS[:4],
        metadata={"title": "On storage", "for_llm": "x y z", "for_embed": "u v w"},
        excluded_embed_metadata_keys=["for_llm"],
        excluded_llm_metadata_keys=["for_embed"],
    )
    model = reranker(reranker_dir, metadata_mode=mode, top_n=4)
    for result in model.postprocess_nodes(nodes, query_str=QUERY):
        text = result.node.get_content(metadata_mode=mode)
        expected = reference_reranker.score(QUERY, text)
        assert result.score == pytest.approx(expected, abs=SCORE_TOLERANCE)
