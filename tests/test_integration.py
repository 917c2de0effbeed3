"""The components inside LlamaIndex: pipelines, indexes and query engines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from components import COSINE_TOLERANCE, SCORE_TOLERANCE, cosine_distance, embedder, reranker
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode, TextNode
from passes import ForwardPasses
from reference import ReferenceEmbedder, ReferenceReranker
from texts import SENTENCES

QUERY = "Where does the query node read data?"


@pytest.fixture
def restored_settings() -> Iterator[None]:
    """Put LlamaIndex's global settings back."""
    before = Settings._embed_model
    yield
    Settings._embed_model = before


def nodes_of_sentences() -> list[TextNode]:
    """Return a node a sentence, with metadata that the embedded text shows."""
    return [
        TextNode(text=text, id_=f"n{i}", metadata={"file": f"{i}.md"})
        for i, text in enumerate(SENTENCES)
    ]


def check_embeddings(nodes: list[TextNode], reference: ReferenceEmbedder) -> None:
    """Assert that nodes have the vectors of the text that LlamaIndex embeds."""
    assert len(nodes) == len(SENTENCES)
    for node in nodes:
        expected = reference.document(node.get_content(metadata_mode=MetadataMode.EMBED))
        assert node.embedding is not None
        assert cosine_distance(node.embedding, expected) < COSINE_TOLERANCE


def test_transform_of_nodes(embedding_dir: Path, reference_embedder: ReferenceEmbedder) -> None:
    """Embed nodes as a transformation, sync and async."""
    model = embedder(embedding_dir)
    check_embeddings(model(nodes_of_sentences()), reference_embedder)
    check_embeddings(asyncio.run(model.acall(nodes_of_sentences())), reference_embedder)


def test_pipeline(embedding_dir: Path, reference_embedder: ReferenceEmbedder) -> None:
    """Embed nodes in an ingestion pipeline, sync and async."""
    pipeline = IngestionPipeline(transformations=[embedder(embedding_dir)])
    check_embeddings(list(pipeline.run(nodes=nodes_of_sentences())), reference_embedder)
    other = IngestionPipeline(transformations=[embedder(embedding_dir)])
    nodes = asyncio.run(other.arun(nodes=nodes_of_sentences()))
    check_embeddings(list(nodes), reference_embedder)


def test_pipeline_cache(embedding_dir: Path, passes: ForwardPasses) -> None:
    """Take vectors from LlamaIndex's ingestion cache unless a setting changes them."""
    cache = IngestionCache()

    def run(**options: object) -> int:
        pipeline = IngestionPipeline(
            transformations=[embedder(embedding_dir, **options)], cache=cache
        )
        return passes.during(lambda: pipeline.run(nodes=nodes_of_sentences()))

    assert run() > 0
    assert run(embed_batch_size=3, max_batch_tokens=100) == 0
    assert run(dimensions=40) > 0
    assert run(text_instruction="Group texts by topic") > 0


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="LlamaIndex needs two CPUs for two workers")
def test_pipeline_with_workers(embedding_dir: Path, reference_embedder: ReferenceEmbedder) -> None:
    """Embed nodes in two processes, sent there after use in this one."""
    model = embedder(embedding_dir).load()
    model.get_text_embedding("a")
    pipeline = IngestionPipeline(transformations=[model])
    nodes = pipeline.run(nodes=nodes_of_sentences(), num_workers=2)
    check_embeddings(list(nodes), reference_embedder)


def test_settings(
    embedding_dir: Path, reference_embedder: ReferenceEmbedder, restored_settings: None
) -> None:
    """Serve as the application's embedding model."""
    Settings.embed_model = embedder(embedding_dir)
    index = VectorStoreIndex(nodes_of_sentences())
    expected = {
        node.node_id: float(
            reference_embedder.query(QUERY)
            @ reference_embedder.document(node.get_content(metadata_mode=MetadataMode.EMBED))
        )
        for node in nodes_of_sentences()
    }
    results = index.as_retriever(similarity_top_k=5).retrieve(QUERY)
    best = sorted(expected, key=lambda name: -expected[name])[:5]
    assert [result.node.node_id for result in results] == best
    for result in results:
        assert result.score == pytest.approx(expected[result.node.node_id], abs=1e-5)


def test_index_from_documents(embedding_dir: Path) -> None:
    """Index documents with the default store, and find each by its own words."""
    documents = [Document(text=text, id_=f"d{i}") for i, text in enumerate(SENTENCES)]
    index = VectorStoreIndex.from_documents(
        documents,
        embed_model=embedder(embedding_dir, query_instruction="same"),
        transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=0)],
    )
    assert set(index.ref_doc_info) == {f"d{i}" for i in range(len(SENTENCES))}
    assert len(index.as_retriever(similarity_top_k=4).retrieve(QUERY)) == 4


@pytest.mark.parametrize("asynchronous", [False, True])
def test_query_engine(
    embedding_dir: Path,
    reranker_dir: Path,
    reference_reranker: ReferenceReranker,
    asynchronous: bool,
) -> None:
    """Retrieve ten, rerank, keep the best three by the reference's scores."""
    index = VectorStoreIndex(nodes_of_sentences(), embed_model=embedder(embedding_dir))
    retrieved = index.as_retriever(similarity_top_k=10).retrieve(QUERY)
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=10,
        node_postprocessors=[reranker(reranker_dir, keep_retrieval_score=True)],
    )
    response = asyncio.run(engine.aquery(QUERY)) if asynchronous else engine.query(QUERY)
    expected = {
        node.node.node_id: reference_reranker.score(
            QUERY, node.node.get_content(metadata_mode=MetadataMode.EMBED)
        )
        for node in retrieved
    }
    best = sorted(expected, key=lambda name: -expected[name])[:3]
    assert [node.node.node_id for node in response.source_nodes] == best
    scores = {node.node.node_id: node.score for node in retrieved}
    for node in response.source_nodes:
        name = node.node.node_id
        assert node.score == pytest.approx(expected[name], abs=SCORE_TOLERANCE)
        assert node.metadata["retrieval_score"] == scores[name]
    # The mock model answers with its prompt: the passages are there, the scores are not.
    assert all(node.node.get_content() in str(response) for node in response.source_nodes)
    assert "retrieval_score" not in str(response)
