"""A Qwen3 query engine over a folder of Markdown; see the README for the real models.

Run it from the repository: python examples/quickstart.py ["your question"]
"""

import sys

from llama_index.core import Settings, SimpleDirectoryReader, StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import MarkdownNodeParser

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker, milvus_vector_store

QUESTION = sys.argv[1] if len(sys.argv) > 1 else "Which index should I take when memory is short?"

# The demo pair: for real results leave the paths out, and Qwen3 0.6B is downloaded.
Settings.embed_model = Qwen3Embedding("examples/demo_models/embedding")
reranker = Qwen3Reranker("examples/demo_models/reranker", top_n=3)
Settings.llm = MockLLM()  # leave this out as well to have OpenAI answer

documents = SimpleDirectoryReader(
    "examples/data/milvus_faq", required_exts=[".md"], file_extractor={}
).load_data()
nodes = MarkdownNodeParser().get_nodes_from_documents(documents)
store = milvus_vector_store(Settings.embed_model, "./quickstart.db", overwrite=True)
index = VectorStoreIndex(nodes, storage_context=StorageContext.from_defaults(vector_store=store))
engine = index.as_query_engine(similarity_top_k=10, node_postprocessors=[reranker])

response = engine.query(QUESTION)
for node in response.source_nodes:
    print(f"{node.score:.4f}  {node.node.get_content().splitlines()[0]}")
if not isinstance(Settings.llm, MockLLM):
    print(response)
