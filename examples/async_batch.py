"""Sixty questions at once from one event loop: they are computed together and block nothing.

Run it from a clone: python examples/async_batch.py
"""

import asyncio
import json
import os
import time
from pathlib import Path

from llama_index.core import VectorStoreIndex

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import read_documents, split_sections

DOCS = Path(__file__).parent / "data" / "milvus_faq"
lines = (DOCS / "questions.jsonl").read_text(encoding="utf-8").splitlines()
questions = [q["question"] for q in map(json.loads, lines) if q["language"] == "en"]

models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
reranker = Qwen3Reranker(models.reranker, top_n=3).load()
sections = split_sections(read_documents([DOCS]))
index = VectorStoreIndex(sections, embed_model=Qwen3Embedding(models.embedding))
retriever = index.as_retriever(similarity_top_k=5)


async def best_section(question: str) -> str:
    found = await retriever.aretrieve(question)
    best = await reranker.apostprocess_nodes(found, query_str=question)
    return best[0].metadata["section"]


async def longest_pause(pauses: list[float]) -> None:
    """Note how late the event loop is: a pause is time in which no other task could run."""
    while True:
        due = time.perf_counter() + 0.005
        await asyncio.sleep(0.005)
        pauses.append(time.perf_counter() - due)


async def main() -> None:
    started = time.perf_counter()
    one_by_one = [await best_section(question) for question in questions]
    between = time.perf_counter()
    watch = asyncio.create_task(longest_pause(pauses := []))
    together = await asyncio.gather(*map(best_section, questions))
    ended = time.perf_counter()
    watch.cancel()
    print(f"{len(questions)} questions, 5 candidates each")
    print(f"one after another   {between - started:6.2f} s")
    print(f"at once             {ended - between:6.2f} s, same sections: {together == one_by_one}")
    print(f"longest pause of the event loop meanwhile  {1000 * max(pauses):.0f} ms")
    for question, section in list(zip(questions, together, strict=True))[:4]:
        print(f"  {question} -> {section}")


asyncio.run(main())
