"""Shorter vectors of the same model: what each length costs, and what it still finds.

Run it from a clone: python examples/dimensions.py
"""

import json
import os
from pathlib import Path

from llama_index.core import VectorStoreIndex

from llamaindex_qwen3 import Qwen3Embedding
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import read_documents, split_sections

DOCS = Path(__file__).parent / "data" / "milvus_faq"
LENGTHS = (32, 64, 128, 256, 512, 1024)

lines = (DOCS / "questions.jsonl").read_text(encoding="utf-8").splitlines()
asked = [q for q in map(json.loads, lines) if q["language"] == "en"]
sections = split_sections(read_documents([DOCS]))
models = model_pair(os.environ.get("QWEN3_MODELS", "demo"))
width = Qwen3Embedding(models.embedding).dim

print(f"{len(asked)} questions on {len(sections)} sections; vectors of {width} values cut to:")
print("values  bytes each  right section among the first 3 / 10")
for length in (n for n in LENGTHS if n <= width):
    # All of these share one copy of the weights. Vectors are cut, then scaled to unit length again.
    embed_model = Qwen3Embedding(models.embedding, dimensions=length)
    index = VectorStoreIndex(sections, embed_model=embed_model)
    retriever = index.as_retriever(similarity_top_k=10)
    places = []
    for question in asked:
        found = [n.metadata["section_id"] for n in retriever.retrieve(question["question"])]
        places.append(found.index(question["section"]) if question["section"] in found else 10)
    within = [sum(place < k for place in places) / len(asked) for k in (3, 10)]
    print(f"{length:6}  {4 * length:10}  {within[0]:.2f} / {within[1]:.2f}")
