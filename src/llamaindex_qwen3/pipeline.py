"""The short path from a folder of text to a ranked, answered question."""

from __future__ import annotations

from dataclasses import dataclass

from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.chat_engine import CondensePlusContextChatEngine
from llama_index.core.llms import LLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle

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
from .ingestion import IngestProgress, IngestReport, SectionSplitter, ingest, slug, split_sections
from .milvus import CheckedMilvusVectorStore
from .readers import read_documents
from .reranker import Qwen3Reranker

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
    """The candidates of one question, by dense score and by the reranker."""

    question: str
    candidates: list[NodeWithScore]
    reranked: list[NodeWithScore]


def rank(
    question: str,
    embed_model: Qwen3Embedding,
    reranker: Qwen3Reranker,
    vector_store: CheckedMilvusVectorStore,
    candidates: int = CANDIDATES,
) -> Ranking:
    """Retrieve candidates by dense score and order all of them by the reranker.

    Raises:
        InvalidArgumentError: The question is empty.
    """
    if not question.strip():
        raise InvalidArgumentError(f"question={question!r} is empty. Give a question.")
    retriever = open_index(embed_model, vector_store).as_retriever(similarity_top_k=candidates)
    found = retriever.retrieve(question)
    everything = reranker.model_copy(update={"top_n": max(1, len(found)), "score_threshold": None})
    return Ranking(
        question, found, everything.postprocess_nodes(found, query_bundle=QueryBundle(question))
    )


def query_engine(
    embed_model: Qwen3Embedding,
    reranker: Qwen3Reranker,
    vector_store: CheckedMilvusVectorStore,
    llm: LLM | None = None,
    candidates: int = CANDIDATES,
    streaming: bool = False,
) -> RetrieverQueryEngine:
    """Return a standard LlamaIndex query engine: dense retrieval, reranking, an answer.

    The answer cites its source nodes by number, as [1]. `llm` None takes ``Settings.llm``.
    """
    index = open_index(embed_model, vector_store)
    return RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=candidates),
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

    Answers cite their source nodes by number, as [1]. `llm` None takes ``Settings.llm``.
    """
    llm = llm or Settings.llm
    index = open_index(embed_model, vector_store)
    # Half of the context is left to passages and answer.
    memory = ChatMemoryBuffer.from_defaults(token_limit=llm.metadata.context_window // 2)
    return CondensePlusContextChatEngine.from_defaults(
        index.as_retriever(similarity_top_k=candidates),
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
