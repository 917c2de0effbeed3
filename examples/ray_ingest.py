"""Ingest a folder with several copies of the model on Ray; a second run embeds nothing.

Run it from a clone: python examples/ray_ingest.py [ADDRESS OF A RAY CLUSTER]
Needs pip install 'llamaindex-qwen3[ray]'.
"""

import os
import sys
from pathlib import Path

from llamaindex_qwen3 import Qwen3Embedding, milvus_vector_store
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.on_ray import RayEmbedder
from llamaindex_qwen3.pipeline import ingest, open_index

DOCS = Path(__file__).parent / "data" / "milvus_faq"
QUESTION = "Why does Milvus need etcd when the files are already in MinIO?"
address = sys.argv[1] if len(sys.argv) > 1 else "local"  # starts a Ray on this machine

models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
embed_model = Qwen3Embedding(models.embedding)

# Two actors on one machine share its cores: more machines, or GPUs, are what makes it faster.
with RayEmbedder(embed_model, address, actors=2, batch=16) as embedder:
    store = milvus_vector_store(embed_model, "./ray_ingest.db", overwrite=True)
    for run in ("first", "second"):
        report = ingest([DOCS], embedder, store)
        print(
            f"{run} run: {report.files} files, {report.added} chunks embedded on Ray, "
            f"{report.unchanged} unchanged"
        )

# Queries are embedded here, by the model itself.
print(f"\n{QUESTION}")
for node in open_index(embed_model, store).as_retriever(similarity_top_k=3).retrieve(QUESTION):
    print(f"  {node.score:.3f}  {node.metadata['section']}")
