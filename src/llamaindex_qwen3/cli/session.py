"""The models and the collection that a command works with."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import show
from ..errors import InvalidArgumentError, StoreError
from ..models import ModelPair, model_pair
from .bars import hidden_bars
from .console import arguments, err, working
from .options import addresses
from .stored import Stored, check_filled, check_models, look

if TYPE_CHECKING:
    from ..embedding import Qwen3Embedding
    from ..milvus import CheckedMilvusVectorStore
    from ..pipeline import Ranking
    from ..reranker import Qwen3Reranker


def has_language_model(llm_base_url: str | None) -> bool:
    """Say whether there is a language model to ask."""
    return bool(os.environ.get("OPENAI_API_KEY") or llm_base_url)


def need_language_model(llm_base_url: str | None, what: str, instead: str = "") -> None:
    """Refuse what needs a language model where there is none.

    Raises:
        InvalidArgumentError: There is neither a key nor another server.
    """
    if not has_language_model(llm_base_url):
        raise InvalidArgumentError(
            f"{what} needs a language model. Set OPENAI_API_KEY, or give --llm-base-url for a server "
            f"of your own.{instead}"
        )


class Session:
    """The models and the collection of one command, each loaded when first asked for.

    Args:
        models: A name or a directory; see `model_pair`.
        uri: Of the Milvus database.
        collection: Its name.
        token: Of the Milvus server.
        task: The retrieval task.
        base_url: Servers of both models.
        embedding_url: Servers of the embedding model.
        reranker_url: Servers of the reranker.
        dense: Search by vector alone, also where the collection has an index of its words.
    """

    # Where others load the weights, what the checkpoint says of itself is enough here.
    loads_embedding = True

    def __init__(
        self,
        models: str,
        uri: str,
        collection: str,
        token: str,
        task: str,
        base_url: list[str] | None = None,
        embedding_url: list[str] | None = None,
        reranker_url: list[str] | None = None,
        dense: bool = False,
    ) -> None:
        with arguments():
            self.pair: ModelPair = model_pair(models)
        self._place, self._task, self._dense = (uri, collection, token), task, dense
        self._embedding_url = addresses(embedding_url) or addresses(base_url)
        self._reranker_url = addresses(reranker_url) or addresses(base_url)
        if self.pair.is_demo:
            err.print(show.DEMO_NOTICE, soft_wrap=True)

    @functools.cached_property
    def embed_model(self) -> Qwen3Embedding:
        """The embedding model, with its weights unless others load them."""
        from ..embedding import Qwen3Embedding

        with loading(self.pair.embedding, self._embedding_url):
            model = Qwen3Embedding(
                self.pair.embedding,
                query_instruction=self._task,
                **self._where(self._embedding_url),
            )
            return model.load() if self.loads_embedding else model

    @functools.cached_property
    def reranker(self) -> Qwen3Reranker:
        """The reranker, with its weights."""
        from ..reranker import Qwen3Reranker

        with loading(self.pair.reranker, self._reranker_url):
            return Qwen3Reranker(
                self.pair.reranker, instruction=self._task, **self._where(self._reranker_url)
            ).load()

    def _where(self, url: str | list[str] | None) -> dict[str, Any]:
        return {"dtype": self.pair.dtype} if url is None else {"base_url": url}

    @contextmanager
    def embedder(self, ray: str | None, actors: int) -> Iterator[Qwen3Embedding]:
        """Give what embeds passages: the model here, or copies of it on Ray."""
        if ray is None:
            yield self.embed_model
            return
        if self._embedding_url:
            raise InvalidArgumentError(
                "--ray loads the model in actors, and a model server runs it elsewhere. Give one of "
                "them; for several servers give several addresses."
            )
        from ..on_ray import RayEmbedder

        self.loads_embedding = False
        with RayEmbedder(self.embed_model, ray, actors) as embedder:
            yield cast("Qwen3Embedding", embedder)

    def check_target(self, overwrite: bool, hybrid: bool) -> None:
        """Refuse to store in a collection that was built otherwise, before a model is loaded.

        Raises:
            StoreError: Another model built it, or it lacks the index of words that is asked for.
        """
        found = None if overwrite else self._look()
        if found and hybrid and not found.has_words:
            raise StoreError(
                f"Collection {self._place[1]!r} was built without an index of its words, and none can "
                "be added. Leave --hybrid out, take another --collection, or build it anew with "
                "--overwrite (this deletes what it holds)."
            )

    def store(self, overwrite: bool = False, hybrid: bool = False) -> CheckedMilvusVectorStore:
        """Open the collection to store in, or create it; an index of words is kept up anyway."""
        found = None if overwrite else self._look()
        return self._open_store(overwrite, hybrid or (found is not None and found.has_words))

    @functools.cached_property
    def filled_store(self) -> CheckedMilvusVectorStore:
        """The collection, which must hold something to ask; by its words too if it has them."""
        with working("Opening the collection"):
            # Asked before any model is loaded, and before opening would create it.
            check_filled(*self._place)
            found = self._look()
        has_words = found is not None and found.has_words
        return self._open_store(hybrid=has_words and not self._dense)

    def _look(self) -> Stored | None:
        uri, collection, token = self._place
        found = look(uri, collection, token)
        # A server's model is known by asking it.
        if not self._embedding_url:
            check_models(self.pair, found, collection)
        return found

    def _open_store(
        self, overwrite: bool = False, hybrid: bool = False
    ) -> CheckedMilvusVectorStore:
        from ..milvus import milvus_vector_store

        uri, collection, token = self._place
        return milvus_vector_store(
            self.embed_model, uri, collection, token=token, hybrid=hybrid, overwrite=overwrite
        )

    def open(self) -> None:
        """Open the collection and load both models now."""
        _ = self.filled_store, self.reranker

    def rank(self, question: str, candidates: int) -> Ranking:
        """Retrieve and rerank the candidates of a question."""
        from ..pipeline import rank

        self.open()
        return rank(question, self.embed_model, self.reranker, self.filled_store, candidates)


@contextmanager
def loading(model: str, url: str | list[str] | None = None) -> Iterator[None]:
    """Say on a terminal what is loaded; a download shows the hub's own bars as well."""
    if url is not None:
        told = f"Reaching {url if isinstance(url, str) else ', '.join(url)}"
    else:
        told = f"Loading {model}"
    if url is not None or Path(model).is_dir() or not err.is_terminal:
        with working(show.escape(told)), hidden_bars():
            yield
        return
    err.print(f"[dim]{show.escape(told)}[/]", soft_wrap=True)
    with hidden_bars(downloads=True):
        yield
