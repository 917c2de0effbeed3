"""Vectors and scores equal the reference's, whatever is computed together with what."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from checkpoints import Shape
from components import (
    COSINE_TOLERANCE,
    SCORE_TOLERANCE,
    cosine_distance,
    embedder,
    length,
    reranker,
)
from reference import ReferenceEmbedder, ReferenceReranker
from texts import EDGE_TEXTS, SCRIPTS, random_pairs, random_text, random_texts

Factory = Callable[..., Path]

BATCH_SIZES = (1, 2, 3, 5, 8, 16, 33, 64)
# One that holds no text at all, so that each goes alone, to one that holds everything.
BATCH_TOKENS = (1, 128, 400, 1500, 65_536, None)
SHAPES = {
    "tied, 1 layer, one head each": Shape(layers=1, heads=4, kv_heads=4, seed=1),
    "untied, wide heads": Shape(tied=False, heads=4, kv_heads=2, head_dim=32, seed=2),
    "untied, 3 layers, narrow heads": Shape(
        tied=False, hidden_size=96, layers=3, heads=6, kv_heads=3, head_dim=8, seed=3
    ),
    "tied, 4 layers, one key head": Shape(
        hidden_size=48, layers=4, heads=8, kv_heads=1, head_dim=16, seed=4
    ),
    "saved in bfloat16": Shape(dtype=torch.bfloat16, seed=5),
}


def check_vectors(
    vectors: list[list[float]], texts: list[str], expected: Callable[[str], torch.Tensor]
) -> None:
    """Assert that vectors are the reference's and of unit length."""
    assert len(vectors) == len(texts)
    for text, vector in zip(texts, vectors, strict=True):
        assert cosine_distance(vector, expected(text)) < COSINE_TOLERANCE, repr(text)
        assert length(vector) == pytest.approx(1.0, abs=1e-6), repr(text)


def check_scores(
    scores: list[float], reference: ReferenceReranker, query: str, documents: list[str]
) -> None:
    """Assert that scores are the reference's, in the order of the documents."""
    expected = [reference.score(query, document) for document in documents]
    assert scores == pytest.approx(expected, abs=SCORE_TOLERANCE), repr(query)


def test_scripts() -> None:
    """Draw from many scripts, with whatever stands between words."""
    assert len(SCRIPTS) >= 10
    text = "".join(random_texts(0, 60))
    for first, last in SCRIPTS.values():
        assert any(chr(first) <= letter <= chr(last) for letter in text)
    assert "\n\n" in text


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_scores_of_random_pairs(
    reranker_dir: Path, reference_reranker: ReferenceReranker, batch_size: int
) -> None:
    """Agree on 660 pairs of 40 queries and up to 64 documents at once."""
    model = reranker(reranker_dir)
    for seed in range(5):
        pairs = random_pairs(100 * batch_size + seed, batch_size)
        query, documents = pairs[0][0], [document for _, document in pairs]
        check_scores(model.score(query, documents), reference_reranker, query, documents)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_vectors_of_random_texts(
    embedding_dir: Path, reference_embedder: ReferenceEmbedder, batch_size: int
) -> None:
    """Agree on 660 documents, up to 64 at once, and on as many queries."""
    model = embedder(embedding_dir, embed_batch_size=batch_size)
    texts = random_texts(batch_size, 5 * batch_size)
    check_vectors(model.get_text_embedding_batch(texts), texts, reference_embedder.document)
    queries = texts[:12]
    vectors = [model.get_query_embedding(query) for query in queries]
    check_vectors(vectors, queries, reference_embedder.query)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_of_shapes(make_reranker: Callable[..., Path], shape: Shape) -> None:
    """Agree for tied and untied outputs, and for any ratio and width of heads."""
    directory = make_reranker(shape=shape)
    model, reference = reranker(directory), ReferenceReranker(directory)
    documents = random_texts(30 + shape.seed, 44)
    check_scores(model.score("what is it?", documents), reference, "what is it?", documents)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_vectors_of_shapes(make_embedding: Callable[..., Path], shape: Shape) -> None:
    """Agree for any depth, and for any ratio and width of heads."""
    directory = make_embedding(shape=shape)
    model, reference = embedder(directory), ReferenceEmbedder(directory)
    texts = random_texts(40 + shape.seed, 44)
    check_vectors(model.get_text_embedding_batch(texts), texts, reference.document)


@pytest.mark.parametrize("layout", ["card", "model", "causal", "bare"])
def test_vectors_of_layouts(make_embedding: Callable[..., Path], layout: str) -> None:
    """Agree for every way such a checkpoint is saved, sentence-transformers' files or not."""
    directory = make_embedding(layout=layout, shape=Shape(tied=layout != "causal"))
    model, reference = embedder(directory), ReferenceEmbedder(directory)
    texts = random_texts(50, 22)
    check_vectors(model.get_text_embedding_batch(texts), texts, reference.document)
    check_vectors([model.get_query_embedding("a")], ["a"], reference.query)


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
@pytest.mark.parametrize("appends", [None, "<|endoftext|>", "<|im_end|>"])
def test_end_token_whatever_the_tokenizer_appends(
    make_embedding: Callable[..., Path], appends: str | None, tokenizer_class: str
) -> None:
    """Append `<|endoftext|>` once."""
    directory = make_embedding(appends=appends, tokenizer_class=tokenizer_class)
    model, reference = embedder(directory), ReferenceEmbedder(directory)
    texts = ["", *random_texts(60, 11)]
    check_vectors(model.get_text_embedding_batch(texts), texts, reference.document)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations(
    embedding_dir: Path,
    reranker_dir: Path,
    reference_embedder: ReferenceEmbedder,
    reference_reranker: ReferenceReranker,
    attention: str,
) -> None:
    """Agree whichever attention implementation is asked for."""
    texts = random_texts(65, 22)
    model = embedder(embedding_dir, attn_implementation=attention)
    check_vectors(model.get_text_embedding_batch(texts), texts, reference_embedder.document)
    scores = reranker(reranker_dir, attn_implementation=attention).score("why?", texts)
    check_scores(scores, reference_reranker, "why?", texts)


@pytest.mark.parametrize("max_batch_tokens", BATCH_TOKENS)
def test_batch_layout_changes_nothing(
    embedding_dir: Path,
    reranker_dir: Path,
    reference_embedder: ReferenceEmbedder,
    reference_reranker: ReferenceReranker,
    max_batch_tokens: int | None,
) -> None:
    """Agree however many tokens go through the model at once."""
    rng = random.Random(7)
    long = [random_text(rng, script, 120) for script in ("latin", "arabic", "han")]
    texts = [*random_texts(70, 44), *long, *EDGE_TEXTS]
    rng.shuffle(texts)
    model = embedder(embedding_dir, max_batch_tokens=max_batch_tokens, embed_batch_size=2048)
    check_vectors(model.get_text_embedding_batch(texts), texts, reference_embedder.document)
    ranker = reranker(reranker_dir, max_batch_tokens=max_batch_tokens)
    check_scores(ranker.score("where?", texts), reference_reranker, "where?", texts)


def test_order_and_duplicates_change_nothing(
    embedding_dir: Path,
    reranker_dir: Path,
    reference_embedder: ReferenceEmbedder,
    reference_reranker: ReferenceReranker,
) -> None:
    """Give each place its own text's result, repeated texts the same one."""
    texts = random_texts(80, 22) * 2 + ["", "", " ", "  "]
    random.Random(1).shuffle(texts)
    vectors = embedder(embedding_dir).get_text_embedding_batch(texts)
    check_vectors(vectors, texts, reference_embedder.document)
    scores = reranker(reranker_dir).score("when?", texts)
    check_scores(scores, reference_reranker, "when?", texts)
    first = {text: texts.index(text) for text in texts}
    for index, text in enumerate(texts):
        assert vectors[index] == pytest.approx(vectors[first[text]], abs=1e-6)
        assert scores[index] == pytest.approx(scores[first[text]], abs=1e-6)


@pytest.mark.parametrize("query", EDGE_TEXTS)
def test_edge_texts(
    embedding_dir: Path,
    reranker_dir: Path,
    reference_embedder: ReferenceEmbedder,
    reference_reranker: ReferenceReranker,
    query: str,
) -> None:
    """Take empty texts and white space as they are, on both sides."""
    texts = list(EDGE_TEXTS)
    check_scores(reranker(reranker_dir).score(query, texts), reference_reranker, query, texts)
    model = embedder(embedding_dir)
    check_vectors([model.get_query_embedding(query)], [query], reference_embedder.query)
    check_vectors([model.get_text_embedding(query)], [query], reference_embedder.document)


def test_repeated_calls_agree(make_embedding: Factory, make_reranker: Factory) -> None:
    """Give the same numbers whether a prompt's beginning is computed or was kept."""
    embedding, reranking = make_embedding(), make_reranker()
    texts = random_texts(90, 33)
    model, ranker = embedder(embedding), reranker(reranking)
    assert model.get_text_embedding_batch(texts) == model.get_text_embedding_batch(texts)
    for _ in range(2):
        check_vectors(
            [model.get_query_embedding("a b")], ["a b"], ReferenceEmbedder(embedding).query
        )
        check_scores(ranker.score("a b", texts), ReferenceReranker(reranking), "a b", texts)


def test_threads_and_loops_change_nothing(
    embedding_dir: Path,
    reranker_dir: Path,
    reference_embedder: ReferenceEmbedder,
    reference_reranker: ReferenceReranker,
) -> None:
    """Agree when threads and event loops use the same models at once."""
    texts = random_texts(95, 16)
    model = embedder(embedding_dir, max_batch_tokens=200)
    ranker = reranker(reranker_dir, max_batch_tokens=600)

    async def concurrently() -> tuple[list[list[float]], list[list[float]], list[float]]:
        return await asyncio.gather(
            model.aget_text_embedding_batch(texts),
            asyncio.gather(*[model.aget_query_embedding(text) for text in texts]),
            ranker.ascore(texts[0], texts),
        )

    def work(number: int) -> tuple[list[list[float]], list[list[float]], list[float]]:
        if number % 2:
            return asyncio.run(concurrently())
        return (
            model.get_text_embedding_batch(texts),
            [model.get_query_embedding(text) for text in texts],
            ranker.score(texts[0], texts),
        )

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(work, range(12)))
    for documents, queries, scores in results:
        check_vectors(documents, texts, reference_embedder.document)
        check_vectors(list(queries), texts, reference_embedder.query)
        check_scores(scores, reference_reranker, texts[0], texts)
