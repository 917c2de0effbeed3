"""Quality and score differences when LlamaIndex's usual wrappers are replaced, on the demo pair.

Both run on the same checkpoints, in float32, with the same candidates and questions. Run from a clone:
python -m benchmarks.migration
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, QueryBundle

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.evaluate import Quality, evaluate, read_questions
from llamaindex_qwen3.models import model_pair
from llamaindex_qwen3.pipeline import Ranking, read_documents, split_sections

from .measure import report

EXAMPLES = Path(__file__).parents[1] / "examples"
FAQ = EXAMPLES / "data" / "milvus_faq"
TEMPLATE = EXAMPLES / "serving" / "qwen3_reranker.jinja"
CANDIDATES = 10


def main() -> None:
    """Measure each combination of embedding and reranker."""
    with tempfile.TemporaryDirectory() as folder:
        embeddings, rerankers = _contenders(Path(folder) / "reranker")
        nodes = split_sections(read_documents([FAQ]))
        rows = [
            _row(embedding, reranker, *_measure(nodes, embed_model, judge))
            for embedding, embed_model in embeddings.items()
            for reranker, judge in rerankers.items()
        ]
    report("migration", rows, {"size": "demo", "dtype": "float32", "device": "cpu"})


def _contenders(
    with_template: Path,
) -> tuple[dict[str, BaseEmbedding], dict[str, BaseNodePostprocessor]]:
    """Load the models by this package and by LlamaIndex's wrappers.

    Args:
        with_template: Directory to make, for the reranker with the official template beside it.
    """
    import torch
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank

    pair, options = model_pair("demo"), {"dtype": torch.float32}
    shutil.copytree(pair.reranker, with_template)
    shutil.copy(TEMPLATE, with_template / "chat_template.jinja")

    def wrapper(directory: str) -> SentenceTransformerRerank:
        return SentenceTransformerRerank(
            model=directory,
            device="cpu",
            top_n=CANDIDATES,
            cross_encoder_kwargs={"model_kwargs": options},
        )

    ours = Qwen3Reranker(pair.reranker, dtype="float32", device="cpu", top_n=CANDIDATES)
    plain = HuggingFaceEmbedding(pair.embedding, device="cpu", model_kwargs=options)
    return {
        "Qwen3Embedding": Qwen3Embedding(pair.embedding, dtype="float32", device="cpu"),
        "HuggingFaceEmbedding": plain,
    }, {
        "Qwen3Reranker": ours,
        "SentenceTransformerRerank": wrapper(pair.reranker),
        "the same, template added": wrapper(str(with_template)),
    }


def _measure(
    nodes: list[Any], embed_model: BaseEmbedding, reranker: BaseNodePostprocessor
) -> tuple[Quality, Quality]:
    index = VectorStoreIndex([_copy(node) for node in nodes], embed_model=embed_model)
    retriever = index.as_retriever(similarity_top_k=CANDIDATES)

    def rank(question: str) -> Ranking:
        found = retriever.retrieve(question)
        # SentenceTransformerRerank writes its scores into the nodes it is given.
        copies = [node.model_copy(deep=True) for node in found]
        best = reranker.postprocess_nodes(copies, query_bundle=QueryBundle(question))
        return Ranking(question, found, best)

    return evaluate(read_questions(FAQ / "questions.jsonl", language="en"), rank)


def _copy(node: BaseNode) -> BaseNode:
    return node.model_copy(update={"embedding": None})


def _row(embedding: str, reranker: str, before: Quality, after: Quality) -> dict[str, Any]:
    return {
        "embedding": embedding,
        "reranker": reranker,
        "questions": before.questions,
        "nDCG@10 by embedding": round(before.ndcg, 3),
        "recall@1 reranked": round(after.recall[1], 3),
        "nDCG@10 reranked": round(after.ndcg, 3),
    }


if __name__ == "__main__":
    main()
