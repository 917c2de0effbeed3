"""Answer questions over HTTP from documents in Milvus, with Qwen3 models on model servers.

python app.py ingest FOLDER                    # store a folder's files
uvicorn app:app --host 127.0.0.1 --port 8080   # then answer: POST /ask {"question": "…"}

README.md lists the environment variables that both read. /ask answers in lines of JSON, the first
with the sources, then the answer piece by piece, the last with "done" or "error".
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import BaseModel, Field

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker, milvus_vector_store
from llamaindex_qwen3.answer import chat_model, stream_answer
from llamaindex_qwen3.errors import GenerationError, InputTooLongError, Qwen3Error
from llamaindex_qwen3.milvus import CheckedMilvusVectorStore
from llamaindex_qwen3.pipeline import ingest, query_engine

logger = logging.getLogger("uvicorn.error")


def setting(name: str, default: str = "") -> str:
    # Compose files pass variables that are not set as empty ones.
    return os.environ.get(name) or default


def addresses(name: str) -> str | list[str] | None:
    """Return the addresses of a model server; None runs the model in this process."""
    urls = [url.strip() for url in setting(name).split(",") if url.strip()]
    return urls[0] if len(urls) == 1 else urls or None


def open_embedding(retry_s: float) -> Qwen3Embedding:
    # The servers' key is read by the components themselves, from QWEN3_API_KEY.
    return Qwen3Embedding(
        setting("EMBEDDING_MODEL", "Qwen/Qwen3-Embedding-0.6B"),
        base_url=addresses("EMBEDDING_URL"),
        retry_s=retry_s,
    )


def open_reranker(retry_s: float) -> Qwen3Reranker:
    return Qwen3Reranker(
        setting("RERANKER_MODEL", "Qwen/Qwen3-Reranker-0.6B"),
        base_url=addresses("RERANKER_URL"),
        retry_s=retry_s,
        top_n=int(setting("TOP_N", "5")),
        keep_retrieval_score=True,
    )


def open_store(embed_model: Qwen3Embedding) -> CheckedMilvusVectorStore:
    return milvus_vector_store(
        embed_model,
        setting("MILVUS_ADDRESS", "./milvus.db"),
        setting("MILVUS_COLLECTION", "qwen3_docs"),
        token=setting("MILVUS_TOKEN"),
    )


def open_engine() -> RetrieverQueryEngine:
    # A person waits for the answer: a server that is gone is given up sooner than in an ingest.
    retry_s = float(setting("RETRY_S", "10"))
    embed_model, reranker = open_embedding(retry_s), open_reranker(retry_s)
    # Real requests to each: a server can be healthy and still not serve this model.
    embed_model.load()
    reranker.load()
    return query_engine(
        embed_model,
        reranker,
        open_store(embed_model),
        llm=chat_model(setting("LLM_MODEL", "gpt-4o"), setting("LLM_URL") or None),
        candidates=int(setting("CANDIDATES", "20")),
        streaming=True,
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.engine = open_engine()
    yield


app = FastAPI(title="Questions to documents", lifespan=lifespan)


class Question(BaseModel):
    question: str = Field(min_length=1, max_length=2000)


@app.get("/health")
async def health() -> dict[str, str]:
    """Answer as soon as the models have answered once."""
    return {"status": "ok"}


@app.post("/ask")
async def ask(asked: Question, request: Request) -> StreamingResponse:
    """Stream the sources and the answer as lines of JSON."""
    engine: RetrieverQueryEngine = request.app.state.engine
    nodes = await engine.aretrieve(QueryBundle(asked.question))
    return StreamingResponse(
        answer_lines(engine, asked.question, nodes), media_type="application/x-ndjson"
    )


@app.exception_handler(Qwen3Error)
async def report_failure(request: Request, error: Qwen3Error) -> JSONResponse:
    if isinstance(error, InputTooLongError):
        return JSONResponse({"detail": str(error)}, status_code=422)
    # Its text names addresses inside: for the log, not for the caller.
    logger.error("%s: %s", type(error).__name__, error)
    return JSONResponse({"detail": "Search is not available; see the log."}, status_code=503)


def answer_lines(
    engine: RetrieverQueryEngine, question: str, nodes: list[NodeWithScore]
) -> Iterator[str]:
    sources = [
        {
            "score": node.score,
            "metadata": node.node.metadata,
            "text": node.node.get_content(MetadataMode.NONE),
        }
        for node in nodes
    ]
    yield line({"sources": sources})
    if not nodes:
        yield line({"error": "Nothing is stored yet: python app.py ingest FOLDER"})
        return
    try:
        for piece in stream_answer(engine, question, nodes):
            if piece:
                yield line({"text": piece})
        yield line({"done": True})
    except GenerationError as error:
        logger.error("%s", error)
        yield line({"error": "The language model failed; see the log."})


def line(event: dict[str, object]) -> str:
    return json.dumps(event, ensure_ascii=False) + "\n"


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] != "ingest":
        sys.exit("usage: python app.py ingest FOLDER …")
    embed_model = open_embedding(retry_s=120)
    try:
        report = ingest(sys.argv[2:], embed_model, open_store(embed_model))
    except Qwen3Error as error:
        sys.exit(f"error: {error}")
    print(
        f"{report.files} files: {report.added} chunks added, {report.unchanged} unchanged, "
        f"{report.removed} removed"
    )


if __name__ == "__main__":
    main()
