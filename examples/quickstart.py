"""A query engine over a folder of Markdown: retrieve ten sections, rerank, keep three, answer.

Run it from a clone: python examples/quickstart.py ["your question"]
"""

import os
import sys
from pathlib import Path

from llama_index.core import Settings, SimpleDirectoryReader, StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import MarkdownNodeParser

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker, milvus_vector_store
from llamaindex_qwen3.answer import chat_model
from llamaindex_qwen3.models import model_pair

DOCS = Path(__file__).parent / "data" / "milvus_faq"
question = sys.argv[1] if len(sys.argv) > 1 else "Can I run Milvus without Pulsar or Kafka?"

# The demo pair, unless QWEN3_MODELS=0.6b (or 4b, 8b) asks for the real models.
models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
Settings.embed_model = Qwen3Embedding(models.embedding)
reranker = Qwen3Reranker(models.reranker, top_n=3)
has_key = "OPENAI_API_KEY" in os.environ
Settings.llm = chat_model(base_url=os.environ.get("OPENAI_BASE_URL")) if has_key else MockLLM()

documents = SimpleDirectoryReader(
    DOCS,
    required_exts=[".md"],
    file_extractor={},  # headers stay in the text
    file_metadata=lambda path: {"file_name": Path(path).name},  # without the path of your disk
).load_data()
nodes = MarkdownNodeParser().get_nodes_from_documents(documents)
store = milvus_vector_store(Settings.embed_model, "./quickstart.db", overwrite=True)
index = VectorStoreIndex(nodes, storage_context=StorageContext.from_defaults(vector_store=store))
engine = index.as_query_engine(similarity_top_k=10, node_postprocessors=[reranker])

response = engine.query(question)
for node in response.source_nodes:
    print(f"{node.score:.4f}  {node.node.get_content().splitlines()[0]}")
if has_key:
    print(f"\n{response}")
else:
    print("Set OPENAI_API_KEY to have a language model answer.", file=sys.stderr)
