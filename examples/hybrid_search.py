"""Search by meaning and by words at once: BM25 finds the exact term that vectors blur.

Run it from a clone: python examples/hybrid_search.py ["your question"]
"""

import os
import sys
from pathlib import Path

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker, milvus_vector_store
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import ingest, open_index

DOCS = Path(__file__).parent / "data" / "milvus_faq"
question = sys.argv[1] if len(sys.argv) > 1 else "What is dataCoord.segment.sealProportion for?"

models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
embed_model, reranker = Qwen3Embedding(models.embedding), Qwen3Reranker(models.reranker, top_n=3)

store = milvus_vector_store(embed_model, "./hybrid_search.db", hybrid=True, overwrite=True)
ingest([DOCS], embed_model, store)
index = open_index(embed_model, store)

dense = index.as_retriever(similarity_top_k=10)
hybrid = index.as_retriever(
    vector_store_query_mode="hybrid",
    similarity_top_k=10,  # candidates by vector
    sparse_top_k=10,  # candidates by BM25
    hybrid_top_k=10,  # of both, fused by reciprocal rank
)
print(question)
for title, retriever in (("by vectors", dense), ("by vectors and words", hybrid)):
    found = retriever.retrieve(question)
    best = reranker.postprocess_nodes(found, query_str=question)
    for stage, nodes in ((title, found[:3]), (f"{title}, reranked", best)):
        print(f"\n{stage}")
        for node in nodes:
            print(f"  {node.score:.4f}  {node.metadata['section']}")
