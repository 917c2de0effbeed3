"""An embeddings cache that tells queries from documents and one model from another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from llama_index.core.storage.kvstore.types import BaseKVStore

_COLLECTION = "embeddings"
Vectors = list[list[float]]


class VectorCache(BaseKVStore):
    """Wraps the key-value store a user gave as `embeddings_cache`.

    LlamaIndex looks vectors up by their text alone, so that a query would get the vector of an
    equal document. This wrapper is false in a boolean context, which makes LlamaIndex's own
    look-up step aside; the embedding class calls `embed` and `aembed` instead, with a `scope`
    that names all a vector depends on.
    """

    def __init__(self, store: BaseKVStore) -> None:
        self.store = store

    def __bool__(self) -> bool:
        return False

    def embed(
        self, scope: str, texts: Sequence[str], compute: Callable[[list[str]], Vectors]
    ) -> Vectors:
        """Return the vectors of `texts`, computing only those that are not stored."""
        found = [self.store.get(f"{scope}:{text}", _COLLECTION) for text in texts]
        missing = list(dict.fromkeys(t for t, hit in zip(texts, found, strict=True) if hit is None))
        fresh = dict(zip(missing, compute(missing), strict=True)) if missing else {}
        for text, vector in fresh.items():
            self.store.put(f"{scope}:{text}", {"vector": vector}, _COLLECTION)
        return [hit["vector"] if hit else fresh[t] for t, hit in zip(texts, found, strict=True)]

    async def aembed(
        self, scope: str, texts: Sequence[str], compute: Callable[[list[str]], Awaitable[Vectors]]
    ) -> Vectors:
        """Do as `embed` does, without blocking the event loop."""
        found = [await self.store.aget(f"{scope}:{text}", _COLLECTION) for text in texts]
        missing = list(dict.fromkeys(t for t, hit in zip(texts, found, strict=True) if hit is None))
        fresh = dict(zip(missing, await compute(missing), strict=True)) if missing else {}
        for text, vector in fresh.items():
            await self.store.aput(f"{scope}:{text}", {"vector": vector}, _COLLECTION)
        return [hit["vector"] if hit else fresh[t] for t, hit in zip(texts, found, strict=True)]

    # The rest of the interface goes straight to the user's store.

    def put(self, key: str, val: dict, collection: str = _COLLECTION) -> None:  # type: ignore[type-arg]
        """Store a value."""
        self.store.put(key, val, collection)

    async def aput(self, key: str, val: dict, collection: str = _COLLECTION) -> None:  # type: ignore[type-arg]
        """Store a value."""
        await self.store.aput(key, val, collection)

    def get(self, key: str, collection: str = _COLLECTION) -> dict | None:  # type: ignore[type-arg]
        """Return a value or None."""
        return self.store.get(key, collection)

    async def aget(self, key: str, collection: str = _COLLECTION) -> dict | None:  # type: ignore[type-arg]
        """Return a value or None."""
        return await self.store.aget(key, collection)

    def get_all(self, collection: str = _COLLECTION) -> dict[str, dict]:  # type: ignore[type-arg]
        """Return all values."""
        return self.store.get_all(collection)

    async def aget_all(self, collection: str = _COLLECTION) -> dict[str, dict]:  # type: ignore[type-arg]
        """Return all values."""
        return await self.store.aget_all(collection)

    def delete(self, key: str, collection: str = _COLLECTION) -> bool:
        """Delete a value; return whether it was there."""
        return self.store.delete(key, collection)

    async def adelete(self, key: str, collection: str = _COLLECTION) -> bool:
        """Delete a value; return whether it was there."""
        return await self.store.adelete(key, collection)
