"""Move the models to vLLM servers: the same components, with `base_url`, and the same scores.

Start the servers (examples/serving/README.md says how), then run from a clone:
QWEN3_MODELS=0.6b QWEN3_RAG_EMBEDDING_URL=http://gpu:8001 QWEN3_RAG_RERANKER_URL=http://gpu:8002 \
    python examples/vllm_serving.py
"""

import os
import sys
from pathlib import Path

from llama_index.core import VectorStoreIndex

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import read_documents, split_sections

DOCS = Path(__file__).parent / "data" / "milvus_faq"
QUESTION = "Can I run Milvus without Pulsar or Kafka?"

embedding_url = os.environ.get("QWEN3_RAG_EMBEDDING_URL")
reranker_url = os.environ.get("QWEN3_RAG_RERANKER_URL")
if not (embedding_url and reranker_url):
    sys.exit(
        "Set QWEN3_RAG_EMBEDDING_URL and QWEN3_RAG_RERANKER_URL to the addresses of two model "
        "servers, and QWEN3_MODELS to what they serve. examples/serving/README.md says how to start them."
    )

# No weights are loaded here: only the tokenizer, so that prompts are made as they are locally.
# A key goes into the environment: QWEN3_API_KEY.
models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
embed_model = Qwen3Embedding(models.embedding, base_url=embedding_url)
reranker = Qwen3Reranker(models.reranker, base_url=reranker_url, top_n=3)

sections = split_sections(read_documents([DOCS]))
index = VectorStoreIndex(sections, embed_model=embed_model)
found = index.as_retriever(similarity_top_k=10).retrieve(QUESTION)

print(f"{len(sections)} sections embedded by {embedding_url}, 10 reranked by {reranker_url}\n")
print(QUESTION)
for node in reranker.postprocess_nodes(found, query_str=QUESTION):
    print(f"  {node.score:.4f}  {node.metadata['section']} ({node.metadata['file']})")
