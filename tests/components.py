"""The components under test, on the CPU and in float32 unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from llama_index.core.schema import NodeWithScore, TextNode

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker

# What the rules promise in float32, whatever the batch layout.
SCORE_TOLERANCE = 1e-5
COSINE_TOLERANCE = 1e-6


def embedder(directory: Path, **options: Any) -> Qwen3Embedding:
    """Return an embedder of a local checkpoint."""
    return Qwen3Embedding(
        **{"model_name": str(directory), "dtype": "float32", "device": "cpu", **options}
    )


def reranker(directory: Path, **options: Any) -> Qwen3Reranker:
    """Return a reranker of a local checkpoint."""
    return Qwen3Reranker(
        **{"model": str(directory), "dtype": "float32", "device": "cpu", **options}
    )


def cosine_distance(vector: Sequence[float], expected: torch.Tensor) -> float:
    """Return one minus the cosine of two vectors, in double precision."""
    left = torch.tensor(vector, dtype=torch.float64)
    right = expected.to(torch.float64)
    assert left.shape == right.shape
    return 1.0 - float(left @ right / (left.norm() * right.norm()))


def length(vector: Sequence[float]) -> float:
    """Return the Euclidean length of a vector."""
    return float(torch.tensor(vector, dtype=torch.float64).norm())


def candidates(texts: Sequence[str], **options: Any) -> list[NodeWithScore]:
    """Return retrieved nodes of these texts, the best first."""
    return [
        NodeWithScore(node=TextNode(text=text, id_=f"n{index}", **options), score=1.0 - index / 100)
        for index, text in enumerate(texts)
    ]
