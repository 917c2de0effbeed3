"""A FastAPI service: ranked passages as JSON, and an answer that streams as it is written.

Run it from a clone: python examples/fastapi_streaming.py, with OPENAI_API_KEY for answers.
Needs pip install 'llamaindex-qwen3[examples]'.
"""

import os
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from llama_index.core import VectorStoreIndex

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.answer import chat_model
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import read_documents, split_sections

DOCS = Path(__file__).parent / "data" / "milvus_faq"
PORT = int(os.environ.get("PORT", "8000"))

models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
reranker = Qwen3Reranker(models.reranker, top_n=3).load()
sections = split_sections(read_documents([DOCS]))
index = VectorStoreIndex(sections, embed_model=Qwen3Embedding(models.embedding))
retriever = index.as_retriever(similarity_top_k=10)
app = FastAPI(title="Milvus questions")


# Requests that come at once are embedded and scored together, and none blocks the event loop.
@app.get("/search")
async def search(q: str) -> list[dict[str, str | float]]:
    found = await retriever.aretrieve(q)
    best = await reranker.apostprocess_nodes(found, query_str=q)
    return [{"score": n.score, "section": n.metadata["section_id"], "text": n.text} for n in best]


@app.get("/ask")
async def ask(q: str) -> StreamingResponse:
    if "OPENAI_API_KEY" not in os.environ:
        raise HTTPException(503, "Set OPENAI_API_KEY and start again to have answers written.")
    engine = index.as_query_engine(
        llm=chat_model(base_url=os.environ.get("OPENAI_BASE_URL")),
        similarity_top_k=10,
        node_postprocessors=[reranker],
        streaming=True,
    )
    response = await engine.aquery(q)
    return StreamingResponse(response.async_response_gen(), media_type="text/plain")


if __name__ == "__main__":
    print(f"curl -G 127.0.0.1:{PORT}/search --data-urlencode 'q=Do I need Kafka?'")
    print(f"curl -NG 127.0.0.1:{PORT}/ask --data-urlencode 'q=Do I need Kafka?'", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=PORT)
