"""LlamaIndex components for Qwen3's embedding and reranking models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedding import Qwen3Embedding
    from .milvus import milvus_vector_store
    from .reranker import Qwen3Reranker

__version__ = "0.1.0"
__all__ = ["Qwen3Embedding", "Qwen3Reranker", "__version__", "milvus_vector_store"]

# Imported when first asked for: a command that prints its help should not wait for LlamaIndex.
_MODULES = {
    "Qwen3Embedding": "embedding",
    "Qwen3Reranker": "reranker",
    "milvus_vector_store": "milvus",
}
# As attributes without an import of their own.
_SUBMODULES = {"embedding", "errors", "milvus", "prompts", "reranker"}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
