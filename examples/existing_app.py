"""Put Qwen3 into an app that exists: set `Settings.embed_model`, and pass the reranker.

Run it from a clone: python examples/existing_app.py
"""

import os
from pathlib import Path

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor.types import BaseNodePostprocessor

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.models import model_pair

DOCS = Path(__file__).parent / "data" / "milvus_faq"


# --- the app, as it was: it knows LlamaIndex and nothing of Qwen3 ---------------------------


def build_index() -> VectorStoreIndex:
    documents = SimpleDirectoryReader(
        DOCS,
        required_exts=[".md"],
        file_extractor={},
        file_metadata=lambda path: {"file_name": Path(path).name},
    ).load_data()
    splitter = SentenceSplitter(chunk_size=160, chunk_overlap=0)
    return VectorStoreIndex.from_documents(documents, transformations=[splitter])


def ask(
    index: VectorStoreIndex, question: str, postprocessors: list[BaseNodePostprocessor]
) -> RESPONSE_TYPE:
    engine = index.as_query_engine(similarity_top_k=10, node_postprocessors=postprocessors)
    return engine.query(question)


# --- what is new -----------------------------------------------------------------------------

models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
Settings.embed_model = Qwen3Embedding(models.embedding)
reranker = Qwen3Reranker(models.reranker, top_n=3)
Settings.llm = MockLLM()  # yours stays as it is; this one needs no key

index = build_index()
QUESTION = "Can I run Milvus without Pulsar or Kafka?"
print(QUESTION)
for title, postprocessors in (("by embedding", []), ("after reranking", [reranker])):
    print(f"\n{title}")
    for place, node in enumerate(ask(index, QUESTION, postprocessors).source_nodes[:3], 1):
        text = " ".join(node.node.get_content().split())
        print(f"  {place}  {node.score:.3f}  {node.metadata['file_name']:20}  {text[:60]}…")
