"""Use a fine-tuned checkpoint: any directory that sentence-transformers or transformers saved.

Run it from a clone: python examples/fine_tuned.py [DIRECTORY]
Without a directory, the embedding model is fine-tuned here first, on half of the questions.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from llama_index.core import VectorStoreIndex
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim
from torch.nn.functional import cross_entropy

from llamaindex_qwen3 import Qwen3Embedding, milvus_vector_store
from llamaindex_qwen3.errors import StoreError
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import read_documents, split_sections
from llamaindex_qwen3.prompts import DEFAULT_TASK, format_query

DOCS = Path(__file__).parent / "data" / "milvus_faq"
lines = (DOCS / "questions.jsonl").read_text(encoding="utf-8").splitlines()
asked = [q for q in map(json.loads, lines) if q["language"] == "en"]
training, held_out = asked[::2], asked[1::2]
sections = {node.metadata["section_id"]: node for node in split_sections(read_documents([DOCS]))}
base = model_pair(os.environ.get("QWEN3_MODELS", "demo")).embedding


def fine_tune(directory: str, steps: int = 12) -> None:
    """Draw each question to its section and away from those of the others."""
    model = SentenceTransformer(base, device="cpu", model_kwargs={"dtype": torch.float32})
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    questions = [format_query(DEFAULT_TASK, q["question"]) for q in training]
    answers = [sections[q["section"]].text for q in training]
    for _ in range(steps):
        left = model(model.preprocess(questions))["sentence_embedding"]
        right = model(model.preprocess(answers))["sentence_embedding"]
        cross_entropy(20 * cos_sim(left, right), torch.arange(len(training))).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)


def found_first(embed_model: Qwen3Embedding) -> str:
    """Say how many questions have their section in the first place."""
    index = VectorStoreIndex(list(sections.values()), embed_model=embed_model)
    retriever = index.as_retriever(similarity_top_k=1)
    first = {q["id"]: retriever.retrieve(q["question"])[0].metadata["section_id"] for q in asked}
    right = [sum(first[q["id"]] == q["section"] for q in half) for half in (training, held_out)]
    return f"{right[0]} of the {len(training)} trained on, {right[1]} of {len(held_out)} others"


with tempfile.TemporaryDirectory() as work:
    directory = sys.argv[1] if len(sys.argv) > 1 else f"{work}/tuned"
    if len(sys.argv) == 1:
        fine_tune(directory)
    before, after = Qwen3Embedding(base), Qwen3Embedding(directory)
    print("questions with the right section in the first place")
    print(f"  before      {found_first(before)}")
    print(f"  fine-tuned  {found_first(after)}")

    # Vectors of the two do not fit together, so a collection of one refuses the other.
    milvus_vector_store(before, f"{work}/milvus.db")
    try:
        milvus_vector_store(after, f"{work}/milvus.db")
    except StoreError as refusal:
        print(f"\n{refusal}")
