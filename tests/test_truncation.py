"""What is cut when a text is too long, and how that is reported."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import Shape
from components import (
    COSINE_TOLERANCE,
    SCORE_TOLERANCE,
    candidates,
    cosine_distance,
    embedder,
    length,
    reranker,
)
from llama_index.core.schema import MetadataMode
from reference import ReferenceEmbedder, ReferenceReranker

from llamaindex_qwen3.errors import (
    InputTooLongError,
    InvalidArgumentError,
    Qwen3Error,
    TruncationWarning,
)

LONG = "Gravity is a force that attracts two bodies. 重力是使两个物体 Столица России " * 6
QUERY = "What attracts two bodies?"
Factory = Callable[..., Path]


def truncations(work: Callable[[], object]) -> list[str]:
    """Return the messages of the truncation warnings while `work` runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    assert all(issubclass(warning.category, TruncationWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("kind", ["query", "document"])
@pytest.mark.parametrize("spare", [-40, -1, 0, 1])
def test_embedder_cuts_the_end_of_the_text(make_embedding: Factory, kind: str, spare: int) -> None:
    """Cut only what exceeds max_length, and keep the prompt and the end token."""
    directory = make_embedding()
    reference = ReferenceEmbedder(directory)
    ids = reference.query_ids if kind == "query" else reference.document_ids
    limit = len(ids(LONG)) + spare
    model = embedder(directory, max_length=limit)
    vectors: list[list[float]] = []
    embed = model.get_query_embedding if kind == "query" else model.get_text_embedding
    messages = truncations(lambda: vectors.append(embed(LONG)))
    assert len(messages) == (1 if spare < 0 else 0)
    expected = reference.vector(ids(LONG, max_length=limit))
    assert cosine_distance(vectors[0], expected) < COSINE_TOLERANCE
    assert length(vectors[0]) == pytest.approx(1.0, abs=1e-6)
    if spare < 0:
        assert cosine_distance(vectors[0], reference.vector(ids(LONG))) > 1e-4


def test_embedder_cuts_each_text_of_a_batch(make_embedding: Factory) -> None:
    """Cut the long texts of a batch and leave the others whole."""
    directory = make_embedding()
    reference = ReferenceEmbedder(directory)
    texts = ["short", LONG, "", LONG + "tail", "also short"]
    model = embedder(directory, max_length=50)
    with pytest.warns(TruncationWarning):
        vectors = model.get_text_embedding_batch(texts)
    for text, vector in zip(texts, vectors, strict=True):
        expected = reference.vector(reference.document_ids(text, max_length=50))
        assert cosine_distance(vector, expected) < COSINE_TOLERANCE


def test_embedder_keeps_the_text_instruction(make_embedding: Factory) -> None:
    """Cut the text behind its instruction, not the instruction."""
    directory = make_embedding()
    reference = ReferenceEmbedder(directory)
    model = embedder(directory, max_length=40, text_instruction="Group texts by topic")
    with pytest.warns(TruncationWarning):
        vector = model.get_text_embedding(LONG)
    expected = reference.vector(reference.query_ids(LONG, "Group texts by topic", 40))
    assert cosine_distance(vector, expected) < COSINE_TOLERANCE


def test_embedder_needs_room_for_its_prompt(make_embedding: Factory) -> None:
    """Refuse a max_length that the prompt of a query does not fit in."""
    with pytest.raises((InputTooLongError, InvalidArgumentError)):
        embedder(make_embedding(), max_length=8).get_query_embedding("a")


def test_embedder_warns_once(make_embedding: Factory) -> None:
    """Warn of the first cut of a model, with the limit, and of no other."""
    model = embedder(make_embedding(), max_length=50)

    def work() -> None:
        model.get_text_embedding(LONG)
        model.get_text_embedding_batch([LONG, LONG + "x"])
        model.get_query_embedding(LONG)
        asyncio.run(model.aget_text_embedding(LONG))

    messages = truncations(work)
    assert len(messages) == 1
    assert "50" in messages[0]


@pytest.mark.parametrize("spare", [-40, -1, 0, 1])
def test_reranker_cuts_the_end_of_the_document(make_reranker: Factory, spare: int) -> None:
    """Cut only what exceeds max_length, from the document, and keep the suffix."""
    directory = make_reranker()
    reference = ReferenceReranker(directory)
    limit = reference.length(QUERY, LONG) + spare
    model = reranker(directory, max_length=limit)
    scores: list[float] = []
    messages = truncations(lambda: scores.extend(model.score(QUERY, ["short", LONG, ""])))
    assert len(messages) == (1 if spare < 0 else 0)
    expected = [
        reference.probability(reference.ids(QUERY, text, max_length=limit))
        for text in ("short", LONG, "")
    ]
    assert scores == pytest.approx(expected, abs=SCORE_TOLERANCE)
    if spare < 0:
        assert abs(scores[1] - reference.score(QUERY, LONG)) > SCORE_TOLERANCE


def test_reranker_warns_once(make_reranker: Factory) -> None:
    """Warn of the first cut of a model, with the limit, and of no other."""
    directory = make_reranker()
    limit = ReferenceReranker(directory).length(QUERY, "") + 20
    model = reranker(directory, max_length=limit)

    def work() -> None:
        model.score(QUERY, [LONG, LONG])
        model.postprocess_nodes(candidates([LONG, "b"]), query_str=QUERY)
        asyncio.run(model.ascore(QUERY, [LONG]))

    messages = truncations(work)
    assert len(messages) == 1
    assert str(limit) in messages[0]


def test_reranker_reports_what_it_cut(make_reranker: Factory) -> None:
    """Store on a cut node, and only there, how many document tokens are missing."""
    directory = make_reranker()
    reference = ReferenceReranker(directory)
    limit = reference.length(QUERY, LONG) - 25
    texts = ["short", LONG, LONG + "a tail", ""]
    nodes = candidates(texts)
    model = reranker(directory, max_length=limit, top_n=9)
    with pytest.warns(TruncationWarning):
        results = model.postprocess_nodes(nodes, query_str=QUERY)
    assert len(results) == len(texts)
    for result in results:
        text = result.node.get_content(metadata_mode=MetadataMode.NONE)
        excess = reference.length(QUERY, text) - limit
        if excess <= 0:
            assert "truncated_tokens" not in result.node.metadata
            continue
        assert result.node.metadata["truncated_tokens"] == excess
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert "truncated_tokens" not in result.node.get_content(metadata_mode=mode)
    assert all(node.node.metadata == {} for node in nodes)
    assert all(node.node.excluded_llm_metadata_keys == [] for node in nodes)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_query_must_leave_the_document_room(make_reranker: Factory, room: int) -> None:
    """Refuse a query that leaves no token for the document, and never cut the query."""
    directory = make_reranker()
    reference = ReferenceReranker(directory)
    head = reference.tokenizer.text(f"<Instruct>: find it\n<Query>: {LONG}\n<Document>:")
    limit = len(reference.prefix) + len(head) + len(reference.suffix) + room
    model = reranker(directory, max_length=limit, instruction="find it")
    documents = [LONG, "bodies"]
    if room == 0:
        for work in (
            lambda: model.score(LONG, documents),
            lambda: asyncio.run(model.ascore(LONG, documents)),
            lambda: model.postprocess_nodes(candidates(documents), query_str=LONG),
        ):
            with pytest.raises(InputTooLongError, match=str(limit)):
                work()
        assert model.score("short", ["d"]) == pytest.approx(
            [reference.score("short", "d", "find it")], abs=SCORE_TOLERANCE
        )
        return
    with pytest.warns(TruncationWarning):
        scores = model.score(LONG, documents)
    expected = [
        reference.probability(reference.ids(LONG, text, "find it", limit)) for text in documents
    ]
    assert scores == pytest.approx(expected, abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("limit", [0, -1])
def test_max_length_must_be_positive(embedding_dir: Path, reranker_dir: Path, limit: int) -> None:
    """Refuse a limit that nothing fits in."""
    with pytest.raises(ValueError, match=r"max_length"):
        embedder(embedding_dir, max_length=limit).get_text_embedding("a")
    with pytest.raises(ValueError, match=r"max_length"):
        reranker(reranker_dir, max_length=limit).score("a", ["b"])


def test_max_length_must_fit_the_checkpoint(
    make_embedding: Factory, make_reranker: Factory
) -> None:
    """Refuse a limit beyond the checkpoint's positions, naming both numbers."""
    shape = Shape(max_position_embeddings=200)
    embedding, reranking = make_embedding(shape=shape), make_reranker(shape=shape)
    for limit in (201, 1000):
        with pytest.raises(InvalidArgumentError, match=rf"(?s)({limit}.*200|200.*{limit})"):
            embedder(embedding, max_length=limit).get_text_embedding("a")
        with pytest.raises(InvalidArgumentError, match=rf"(?s)({limit}.*200|200.*{limit})"):
            reranker(reranking, max_length=limit).score("a", ["b"])
    assert len(embedder(embedding, max_length=200).get_text_embedding("a")) == shape.hidden_size
    assert len(reranker(reranking, max_length=200).score("a", ["b"])) == 1


def test_default_max_length_is_what_the_checkpoint_holds(
    make_embedding: Factory, make_reranker: Factory
) -> None:
    """Cut at the checkpoint's positions when the caller gave no limit."""
    shape = Shape(max_position_embeddings=200)
    embedding, reranking = make_embedding(shape=shape), make_reranker(shape=shape)
    reference = ReferenceEmbedder(embedding)
    with pytest.warns(TruncationWarning):
        vector = embedder(embedding).get_text_embedding(LONG * 4)
    expected = reference.vector(reference.document_ids(LONG * 4, max_length=200))
    assert cosine_distance(vector, expected) < COSINE_TOLERANCE
    scorer = ReferenceReranker(reranking)
    with pytest.warns(TruncationWarning):
        scores = reranker(reranking).score(QUERY, [LONG * 4])
    ids = scorer.ids(QUERY, LONG * 4, max_length=200)
    assert scores == pytest.approx([scorer.probability(ids)], abs=SCORE_TOLERANCE)


def test_too_long_is_a_package_error() -> None:
    """Let a caller catch it as the package's error and as a ValueError."""
    assert issubclass(InputTooLongError, Qwen3Error)
    assert issubclass(InputTooLongError, ValueError)
    assert issubclass(TruncationWarning, UserWarning)
