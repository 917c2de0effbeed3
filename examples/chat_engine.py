"""Chat over a folder: a follow-up is rewritten to stand alone, then retrieved, reranked, answered.

Run it from a clone: OPENAI_API_KEY=... python examples/chat_engine.py ["a question" ...]
"""

import os
import sys
from pathlib import Path

from llama_index.core import VectorStoreIndex

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.answer import chat_model
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import read_documents, split_sections

if "OPENAI_API_KEY" not in os.environ:
    sys.exit(
        "Chat needs a language model: set OPENAI_API_KEY, and OPENAI_BASE_URL for another server."
    )

DOCS = Path(__file__).parent / "data" / "milvus_faq"
questions = sys.argv[1:] or [
    "Can I run Milvus without Pulsar or Kafka?",
    "And which of them does a cluster need?",
]

models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
sections = split_sections(read_documents([DOCS]))
index = VectorStoreIndex(sections, embed_model=Qwen3Embedding(models.embedding))
chat = index.as_chat_engine(
    chat_mode="condense_plus_context",
    llm=chat_model(base_url=os.environ.get("OPENAI_BASE_URL")),
    similarity_top_k=10,
    node_postprocessors=[Qwen3Reranker(models.reranker, top_n=3)],
    verbose=True,  # shows the question as it was rewritten
)

for question in questions:
    print(f"\n> {question}")
    answer = chat.stream_chat(question)
    for piece in answer.response_gen:
        print(piece, end="", flush=True)
    print()
    for node in answer.source_nodes:
        print(f"  {node.score:.3f}  {node.metadata['section']} ({node.metadata['file']})")
