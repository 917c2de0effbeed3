"""LlamaIndex components for Qwen3's embedding and reranking models."""

from .embedding import Qwen3Embedding
from .milvus import milvus_vector_store
from .reranker import Qwen3Reranker

__version__ = "0.1.0"
__all__ = ["Qwen3Embedding", "Qwen3Reranker", "__version__", "milvus_vector_store"]
