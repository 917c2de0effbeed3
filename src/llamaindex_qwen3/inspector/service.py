"""What the inspector does for a request: each stage told as soon as it is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio.to_thread
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import VectorStoreQueryMode

from .. import __version__
from ..answer import stream_answer
from ..citations import PassageNumbers
from ..errors import InvalidArgumentError
from ..pipeline import open_index, query_engine
from ..prompts import RERANKER_PREFIX, RERANKER_SUFFIX, TASKS, format_pair, format_query
from . import messages as m
from .judged import JudgedQuestions
from .recorder import PromptRecorder
from .tokens import TokenCounter

if TYPE_CHECKING:
    from llama_index.core.llms import LLM

    from ..embedding import Qwen3Embedding
    from ..milvus import CheckedMilvusVectorStore
    from ..reranker import Qwen3Reranker

NO_LLM: Final = (
    "No language model is set up, so there is no answer; everything else works. Set OPENAI_API_KEY, "
    "or start qwen3-rag serve with --llm-base-url for a server of your own."
)
# The size of gpt-4o, by which passages are packed when there is no model to ask.
_CONTEXT_WINDOW, _OUTPUT = 128_000, 256


@dataclass(frozen=True)
class Settings:
    """What the inspector starts with.

    Args:
        candidates: Passages to retrieve.
        kept: Passages to answer from.
        demo: Whether the models are the demo pair.
        questions: The file that judged questions are added to.
    """

    candidates: int = 10
    kept: int = 3
    demo: bool = False
    questions: Path = Path("questions.jsonl")


class Inspector:
    """Ranks, answers and saves, with one pair of models and one collection.

    Args:
        embed_model: Embeds questions; its `query_instruction` is the first instruction shown.
        reranker: Orders the candidates.
        store: The collection.
        llm: Answers; None shows everything but an answer.
        settings: What the page starts with.
    """

    def __init__(
        self,
        embed_model: Qwen3Embedding,
        reranker: Qwen3Reranker,
        store: CheckedMilvusVectorStore,
        llm: LLM | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._embed_model, self._reranker, self._store = embed_model, reranker, store
        self._llm, self._settings = llm, settings or Settings()
        self._tokens = TokenCounter(embed_model, reranker)
        self._judged = JudgedQuestions(self._settings.questions)

    def about(self) -> m.About:
        """Return what the page says of the models and the collection, and what it starts with."""
        return m.About(
            version=__version__,
            embedding=_name(self._embed_model.model_name),
            reranker=_name(self._reranker.model),
            demo=self._settings.demo,
            collection=self._store.collection_name,
            hybrid=bool(self._store.enable_sparse),
            llm=self._llm.metadata.model_name if self._llm else None,
            no_llm=NO_LLM,
            instruction=self._embed_model.query_instruction,
            instructions=dict(TASKS),
            candidates=self._settings.candidates,
            kept=self._settings.kept,
            questions_file=self._settings.questions.name,
        )

    async def rank(
        self, request: m.RankRequest
    ) -> AsyncIterator[m.Embedded | m.Found | m.Reranked]:
        """Embed, search and rerank; cancelling stops before the next forward pass.

        Raises:
            Qwen3Error: A stage failed.
        """
        question, instruction = request.question, request.instruction
        if not instruction:
            raise InvalidArgumentError(
                "The instruction is empty. Say in one English sentence what is searched for."
            )
        embed_model = self._embed_model.with_task(instruction)
        reranker = self._reranker.with_task(instruction)

        clock = _Clock()
        vector = await embed_model.aget_query_embedding(question)
        ms = clock.ms()
        tokens, cut = self._tokens.query(instruction, question)
        prompt = format_query(instruction, question)
        yield m.Embedded(ms=ms, prompt=prompt, tokens=tokens, truncated_tokens=cut)

        clock = _Clock()
        found = await self._search(question, vector, request)
        ms = clock.ms()
        candidates = await asyncio.to_thread(self._passages, found)
        judged = await asyncio.to_thread(self._judged.sections, question)
        yield m.Found(ms=ms, candidates=candidates, judged=judged)

        everything = reranker.model_copy(
            update={"top_n": max(1, len(found)), "score_threshold": None}
        )
        clock = _Clock()
        ranked = await everything.apostprocess_nodes(found, query_bundle=QueryBundle(question))
        ms = clock.ms()
        order = await asyncio.to_thread(self._places, ranked, candidates, instruction, question)
        before = RERANKER_PREFIX + format_pair(instruction, question, "")
        yield m.Reranked(ms=ms, order=order, before=before, after=RERANKER_SUFFIX)

    async def answer(
        self, request: m.AnswerRequest
    ) -> AsyncIterator[m.Prompted | m.NoLanguageModel | m.AnswerPiece | m.Answered]:
        """Show the prompt, and answer from passages as the model writes.

        Raises:
            InvalidArgumentError: A passage is no longer in the collection.
            GenerationError: The language model gave no answer.
        """
        nodes = await self._nodes(request.passages)
        calls = await asyncio.to_thread(self._prompts, request.question, nodes)
        yield m.Prompted(calls=calls)
        if self._llm is None:
            yield m.NoLanguageModel(message=NO_LLM)
            return
        clock, first = _Clock(), None
        pieces = self._pieces(request.question, nodes, self._llm)
        while (text := await anyio.to_thread.run_sync(next, pieces, None)) is not None:
            first = clock.ms() if first is None else first
            yield m.AnswerPiece(text=text)
        yield m.Answered(first_ms=first or 0.0, ms=clock.ms())

    def save(self, judged: m.JudgedQuestion) -> m.Saved:
        """Add a judged question to the evaluation file.

        Raises:
            InvalidArgumentError: The file has another judgement of it, or cannot be written.
        """
        return self._judged.add(judged)

    async def _search(
        self, question: str, vector: list[float], request: m.RankRequest
    ) -> list[NodeWithScore]:
        if request.mode == "hybrid" and not self._store.enable_sparse:
            raise InvalidArgumentError(
                "This collection was built without the index of words that hybrid search needs. "
                "Build one with qwen3-rag ingest --hybrid, under another --collection."
            )
        hybrid = request.mode == "hybrid"
        retriever = open_index(self._embed_model, self._store).as_retriever(
            similarity_top_k=request.candidates,
            sparse_top_k=request.candidates if hybrid else None,
            hybrid_top_k=request.candidates if hybrid else None,
            vector_store_query_mode=(
                VectorStoreQueryMode.HYBRID if hybrid else VectorStoreQueryMode.DEFAULT
            ),
        )
        found: list[NodeWithScore] = await retriever.aretrieve(
            QueryBundle(question, embedding=vector)
        )
        return found

    def _passages(self, found: Sequence[NodeWithScore]) -> list[m.Passage]:
        read = [node.node.get_content(MetadataMode.EMBED) for node in found]
        judged = [node.node.get_content(self._reranker.metadata_mode) for node in found]
        if not found:
            return []
        _, unembedded = self._tokens.documents(read)
        return [
            _passage(node, text, tokens, cut)
            for node, text, tokens, cut in zip(
                found, judged, self._tokens.bare(judged), unembedded, strict=True
            )
        ]

    def _places(
        self,
        ranked: Sequence[NodeWithScore],
        candidates: Sequence[m.Passage],
        instruction: str,
        question: str,
    ) -> list[m.Place]:
        if not ranked:
            return []
        read = {passage.id: passage.read for passage in candidates}
        texts = [read[node.node_id] for node in ranked]
        tokens, cut = self._tokens.pairs(instruction, question, texts)
        return [
            m.Place(id=node.node_id, score=node.score or 0.0, tokens=count, truncated_tokens=left)
            for node, count, left in zip(ranked, tokens, cut, strict=True)
        ]

    async def _nodes(self, ids: Sequence[str]) -> list[NodeWithScore]:
        stored = {node.node_id: node for node in await self._store.aget_nodes(list(ids))}
        if missing := [name for name in ids if name not in stored]:
            raise InvalidArgumentError(
                f"{len(missing)} of {len(ids)} passages are no longer in the collection. Ask again."
            )
        return [NodeWithScore(node=stored[name]) for name in ids]

    def _pieces(self, question: str, nodes: Sequence[NodeWithScore], llm: LLM) -> Iterator[str]:
        engine = query_engine(self._embed_model, self._reranker, self._store, llm, streaming=True)
        return stream_answer(engine, question, PassageNumbers().postprocess_nodes(list(nodes)))

    def _prompts(
        self, question: str, nodes: Sequence[NodeWithScore]
    ) -> list[list[m.PromptMessage]]:
        """Return the messages of each call that an answer takes, without making any."""
        size = self._llm.metadata if self._llm else None
        recorder = PromptRecorder(
            context_window=size.context_window if size else _CONTEXT_WINDOW,
            num_output=size.num_output if size else _OUTPUT,
        )
        for _ in self._pieces(question, nodes, recorder):
            pass
        return [
            [
                m.PromptMessage(role=message.role.value, text=message.content or "")
                for message in call
            ]
            for call in recorder.calls
        ]


class _Clock:
    def __init__(self) -> None:
        self._started = time.perf_counter()

    def ms(self) -> float:
        """Return the milliseconds since it was made."""
        return round((time.perf_counter() - self._started) * 1000, 1)


def _passage(node: NodeWithScore, read: str, tokens: int, unembedded: int) -> m.Passage:
    metadata = node.metadata
    text = node.node.get_content(MetadataMode.NONE)
    return m.Passage(
        id=node.node_id,
        score=node.score or 0.0,
        section=str(metadata.get("section") or " ".join(text.split())[:60]),
        section_id=str(metadata.get("section_id", node.node_id)),
        file=str(metadata.get("file") or metadata.get("file_name") or ""),
        text=text,
        read=read,
        tokens=tokens,
        unembedded_tokens=unembedded,
    )


def _name(model: str) -> str:
    """Name a model by its hub id, or by the last two folders of its path."""
    path = Path(model)
    return "/".join(path.parts[-2:]) if path.is_dir() else model
