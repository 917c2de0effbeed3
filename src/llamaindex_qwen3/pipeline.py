"""The short path from a folder of text to a ranked, answered question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.chat_engine import CondensePlusContextChatEngine
from llama_index.core.llms import LLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from .answer import (
    ANSWER_PROMPT,
    CHAT_PROMPT,
    CHAT_REFINE_PROMPT,
    CONDENSE_PROMPT,
    REFINE_PROMPT,
)
from .citations import PassageNumbers
from .embedding import Qwen3Embedding
from .errors import InvalidArgumentError
from .ingestion import IngestProgress, IngestReport, ingest
from .milvus import CheckedMilvusVectorStore
from .readers import read_documents
from .reranker import Qwen3Reranker
from .splitting import SectionSplitter, slug, split_sections

__all__ = [
    "IngestProgress",
    "IngestReport",
    "Ranking",
    "SectionSplitter",
    "chat_engine",
    "ingest",
    "open_index",
    "query_engine",
    "rank",
    "read_documents",
    "slug",
    "split_sections",
]

CANDIDATES = 10


@dataclass(frozen=True)
class Ranking:
    """The candidates of one question, as the search orders them and as the reranker does.

    `search` is "dense", or "hybrid" where words were searched as well and the lists were fused.
    """

    question: str
    candidates: list[NodeWithScore]
    reranked: list[NodeWithScore]
    search: Literal["dense", "hybrid"] = "dense"


def rank(
    question: str,
    embed_model: Qwen3Embedding,
    reranker: Qwen3Reranker,
    vector_store: CheckedMilvusVectorStore,
    candidates: int = CANDIDATES,
) -> Ranking:
    """Retrieve candidates and order all of them by the reranker.

    A store that was opened with ``hybrid=True`` is searched by its words as well as by vector.

    Raises:
        InvalidArgumentError: The question is empty.
    """
    if not question.strip():
        raise InvalidArgumentError(f"question={question!r} is empty. Give a question.")
    found = _retriever(embed_model, vector_store, candidates).retrieve(question)
    everything = reranker.model_copy(update={"top_n": max(1, len(found)), "score_threshold": None})
    reranked = everything.postprocess_nodes(found, query_bundle=QueryBundle(question))
    return Ranking(question, found, reranked, "hybrid" if vector_store.enable_sparse else "dense")


def query_engine(
    embed_model: Qwen3Embedding,
    reranker: Qwen3Reranker,
    vector_store: CheckedMilvusVectorStore,
    llm: LLM | None = None,
    candidates: int = CANDIDATES,
    streaming: bool = False,
) -> RetrieverQueryEngine:
    """Return a standard LlamaIndex query engine: retrieval, reranking, an answer.

    A store that was opened with ``hybrid=True`` is searched by its words as well as by vector.
    The answer cites its source nodes by number, as [1]. `llm` None takes ``Settings.llm``.
    """
    return RetrieverQueryEngine.from_args(
        _retriever(embed_model, vector_store, candidates),
        node_postprocessors=[reranker, PassageNumbers()],
        text_qa_template=ANSWER_PROMPT,
        refine_template=REFINE_PROMPT,
        streaming=streaming,
        llm=llm,
    )


def chat_engine(
    embed_model: Qwen3Embedding,
    reranker: Qwen3Reranker,
    vector_store: CheckedMilvusVectorStore,
    llm: LLM | None = None,
    candidates: int = CANDIDATES,
) -> CondensePlusContextChatEngine:
    """Return LlamaIndex's chat engine that makes each question stand alone before it retrieves.

    A store that was opened with ``hybrid=True`` is searched by its words as well as by vector.
    Answers cite their source nodes by number, as [1]. `llm` None takes ``Settings.llm``.
    """
    llm = llm or Settings.llm
    # Half of the context is left to passages and answer.
    memory = ChatMemoryBuffer.from_defaults(token_limit=llm.metadata.context_window // 2)
    return CondensePlusContextChatEngine.from_defaults(
        _retriever(embed_model, vector_store, candidates),
        llm=llm,
        memory=memory,
        context_prompt=CHAT_PROMPT,
        context_refine_prompt=CHAT_REFINE_PROMPT,
        condense_prompt=CONDENSE_PROMPT,
        node_postprocessors=[reranker, PassageNumbers()],
    )


def open_index(
    embed_model: Qwen3Embedding, vector_store: CheckedMilvusVectorStore
) -> VectorStoreIndex:
    """Return the LlamaIndex index over a collection that exists."""
    return VectorStoreIndex.from_vector_store(vector_store, embed_model=embed_model)


def _retriever(
    embed_model: Qwen3Embedding, vector_store: CheckedMilvusVectorStore, candidates: int
) -> BaseRetriever:
    index = open_index(embed_model, vector_store)
    if not vector_store.enable_sparse:
        return index.as_retriever(similarity_top_k=candidates)
    # As many by vector as by words, fused to as many again.
    return index.as_retriever(
        vector_store_query_mode=VectorStoreQueryMode.HYBRID,
        similarity_top_k=candidates,
        sparse_top_k=candidates,
        hybrid_top_k=candidates,
    )
