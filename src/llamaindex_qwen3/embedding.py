"""Qwen3-Embedding as a LlamaIndex embedding class."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, field_validator
from llama_index.core.storage.kvstore.types import BaseKVStore

from .cache import VectorCache
from .component import Qwen3Component, check_task
from .engine import background
from .engine.checkpoint import MIN_DIMENSIONS, Checkpoint, Geometry, Role, identify
from .engine.endpoint import ServedModel
from .engine.protocol import Encoder, EncodeRequest
from .errors import InvalidArgumentError
from .prompts import DEFAULT_TASK

if TYPE_CHECKING:
    from typing_extensions import Self

Vectors = list[list[float]]
_Started = deque[tuple[list[str], Future[Vectors]]]
DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"

# Batches of a call of LlamaIndex's that servers work on before it asks for them.
_started: ContextVar[_Started | None] = ContextVar("started", default=None)


class Qwen3Embedding(Qwen3Component, BaseEmbedding):
    r"""Embed queries and documents with Qwen3-Embedding, each by its own prompt.

    A query is read as ``Instruct: {task}\nQuery:{query}``, a document as its bare text. Vectors are
    the last token's hidden state, cut to `dimensions` and scaled to unit length in float32.

    Args:
        model_name: Hub id or directory of a Qwen3-Embedding checkpoint or a fine-tune of one.
        revision: Branch, tag or commit on the hub.
        dimensions: Leading values to keep, 32 to the model's width; None keeps all.
        query_instruction: The task of queries in one English sentence.
        text_instruction: The same for documents, for symmetric tasks; None leaves them bare.
        max_length: Most tokens of one text; the end of a longer one is cut, with a warning.
        normalize: Scale vectors to unit length.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: torch device, or a list of several that share the work; None takes a GPU where there
            is one.
        attn_implementation: Run transformers' own forward pass with this attention; None is the
            engine's, which is faster.
        max_batch_tokens: Most tokens of one forward pass, or of one request to a server.
        base_url: Address of a server that runs the model, or of several that share the work; dtype,
            device and attn_implementation are then its own affair.
        server: "auto", "vllm", "tei", "infinity" or "openai" for another that speaks its protocol.
        served_model_name: The model's name there, where it is not this one.
        api_key: Key of the server, instead of the environment variable QWEN3_API_KEY.
        timeout_s: Seconds to wait for one answer.
        retry_s: Seconds to repeat a request that fails for reasons that may pass.
        max_in_flight: Requests of an ingest at once, to each server.
        kwargs: Fields of BaseEmbedding, such as `embed_batch_size` or `embeddings_cache`.

    Raises:
        InvalidArgumentError: A value outside what is allowed.
        CheckpointError: A directory that is not such a checkpoint; for a hub id, at first use.

    Example:
        >>> from llama_index.core import Settings
        >>> Settings.embed_model = Qwen3Embedding("Qwen/Qwen3-Embedding-0.6B", dimensions=512)

    Source: https://huggingface.co/Qwen/Qwen3-Embedding-0.6B
    """

    model_name: str = Field(default=DEFAULT_MODEL, description="Hub id or directory.")
    dimensions: int | None = Field(default=None, description="Leading values of a vector to keep.")
    query_instruction: str = Field(default=DEFAULT_TASK, description="Task of queries.")
    text_instruction: str | None = Field(default=None, description="Task of documents, if any.")
    normalize: bool = Field(default=True, description="Scale vectors to unit length.")
    embed_batch_size: int = Field(
        default=128,
        gt=0,
        le=2048,
        exclude=True,
        description="Texts of one call; the engine makes its own batches of them by tokens.",
    )
    num_workers: int | None = Field(default=None, exclude=True, description="Async calls at once.")
    embeddings_cache: Any | None = Field(
        default=None, exclude=True, description="Key-value store of vectors."
    )

    def __init__(self, model_name: str = DEFAULT_MODEL, **kwargs: Any) -> None:
        super().__init__(model_name=model_name, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised components carry."""
        return "Qwen3Embedding"

    @property
    def dim(self) -> int:
        """Length of the vectors, known without loading weights."""
        size = self._read_geometry().hidden_size
        return self.dimensions or size

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> Vectors:
        """Embed documents; servers are given all of them at once, not one batch after another.

        Args:
            texts: Documents.
            show_progress: Show a bar.
            kwargs: What other versions of BaseEmbedding take.

        Returns:
            Vectors [texts, dimensions].
        """
        size = self.embed_batch_size
        alone = self.base_url is None or self.embeddings_cache or self.rate_limiter
        if alone or len(texts) <= size:
            return super().get_text_embedding_batch(texts, show_progress, **kwargs)
        batches = [texts[i : i + size] for i in range(0, len(texts), size)]
        started: _Started = deque(
            (batch, background.run(self._aembed(batch, self.text_instruction, bulk=True)))
            for batch in batches
        )
        token = _started.set(started)
        try:
            return super().get_text_embedding_batch(texts, show_progress, **kwargs)
        finally:
            _started.reset(token)
            # The last ones first: they wait for places that the first ones leave.
            for _, future in reversed(started):
                future.cancel()

    def with_task(self, query_instruction: str) -> Self:
        """Return an embedding for another task of queries that shares the loaded model."""
        return self._with(query_instruction=query_instruction)

    def fingerprint(self, task: str | None = None) -> str:
        """Name all that a vector depends on besides its text.

        Args:
            task: The task its text is under; None for bare documents.
        """
        checkpoint = self._checkpoint()
        model = str(Path(checkpoint.model).resolve()) if checkpoint.is_local else checkpoint.model
        # A server runs the model in a precision of its own.
        dtype = self.dtype if self.base_url is None else "served"
        parts = (
            model, self.revision, dtype, self.dimensions, self.normalize, self.max_length, task,
        )  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def built_with(self) -> dict[str, str | bool | None]:
        """Say what documents' vectors depend on, for a store to note and to compare."""
        model = identify(self._checkpoint())
        return {
            **({"model": model} if model else {}),
            "name": self.model_name,
            "document task": self.text_instruction,
            "normalize": self.normalize,
        }

    @field_validator("embeddings_cache", mode="after")
    @classmethod
    def _key_cache(cls, cache: Any) -> Any:
        if isinstance(cache, BaseKVStore) and not isinstance(cache, VectorCache):
            return VectorCache(cache)
        return cache

    def _check_fields(self) -> None:
        super()._check_fields()
        check_task("query_instruction", self.query_instruction)
        check_task("text_instruction", self.text_instruction)
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidArgumentError(
                f"dimensions={self.dimensions} is outside {MIN_DIMENSIONS} to the width of the model. "
                "Give a number between, or None for all."
            )

    def _check_geometry(self, geometry: Geometry) -> None:
        super()._check_geometry(geometry)
        size = geometry.hidden_size
        least = min(MIN_DIMENSIONS, size)
        if self.dimensions is not None and not least <= self.dimensions <= size:
            raise InvalidArgumentError(
                f"dimensions={self.dimensions} is outside {least} to {size}, what "
                f"{self.model_name!r} allows. Give a number between, or None for all {size}."
            )

    def _model_id(self) -> tuple[Role, str]:
        return "embedding", self.model_name

    def _open_engine(self, checkpoint: Checkpoint) -> Encoder:
        from .engine.local import LocalEncoder

        return LocalEncoder.shared(checkpoint)

    def _open_client(self, model: ServedModel) -> Encoder:
        from .engine.server import ServedEncoder

        return ServedEncoder.shared(model)

    def _request(self, texts: Sequence[str], task: str | None, bulk: bool) -> EncodeRequest:
        return EncodeRequest(
            texts=list(texts),
            task=task,
            max_length=self.max_length,
            dimensions=self.dimensions,
            normalize=self.normalize,
            max_batch_tokens=self.max_batch_tokens,
            bulk=bulk,
        )

    def _embed(self, texts: Sequence[str], task: str | None, bulk: bool) -> Vectors:
        def compute(missing: list[str]) -> Vectors:
            engine: Encoder = self._loaded()
            return engine.encode(self._request(missing, task, bulk)).vectors

        if isinstance(self.embeddings_cache, VectorCache):
            return self.embeddings_cache.embed(self.fingerprint(task), texts, compute)
        return compute(list(texts))

    async def _aembed(self, texts: Sequence[str], task: str | None, bulk: bool) -> Vectors:
        async def compute(missing: list[str]) -> Vectors:
            engine: Encoder = await self._aloaded()
            return (await engine.aencode(self._request(missing, task, bulk))).vectors

        if isinstance(self.embeddings_cache, VectorCache):
            return await self.embeddings_cache.aembed(self.fingerprint(task), texts, compute)
        return await compute(list(texts))

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed([query], self.query_instruction, bulk=False)[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._aembed([query], self.query_instruction, bulk=False))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed([text], self.text_instruction, bulk=False)[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aembed([text], self.text_instruction, bulk=False))[0]

    def _get_text_embeddings(self, texts: list[str]) -> Vectors:
        started = _started.get()
        if started and started[0][0] == texts:
            return background.wait(started.popleft()[1])
        return self._embed(texts, self.text_instruction, bulk=True)

    async def _aget_text_embeddings(self, texts: list[str]) -> Vectors:
        return await self._aembed(texts, self.text_instruction, bulk=True)
