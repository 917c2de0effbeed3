"""qwen3-rag: store a folder, ask it questions, see what reranking changes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from .. import show
from ..errors import InvalidArgumentError, Qwen3Error
from ..models import ModelPair, model_pair

if TYPE_CHECKING:
    from ..embedding import Qwen3Embedding
    from ..milvus import CheckedMilvusVectorStore
    from ..pipeline import Ranking
    from ..reranker import Qwen3Reranker

app = typer.Typer(
    name="qwen3-rag", help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False
)
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

Models = Annotated[
    str, typer.Option(help="demo, 0.6b, 4b, 8b, or a directory with embedding/ and reranker/.")
]
# Not MILVUS_URI: pymilvus reads that itself, at import, and fails on a path.
Uri = Annotated[
    str, typer.Option(envvar="QWEN3_RAG_URI", help="A path ending in .db, or an address.")
]
Collection = Annotated[str, typer.Option(help="Milvus collection.")]
Token = Annotated[
    str,
    typer.Option(envvar="MILVUS_TOKEN", help="user:password or API key.", show_default=False),
]
Candidates = Annotated[int, typer.Option(min=1, help="Passages to retrieve before reranking.")]
Task = Annotated[str, typer.Option(help="The retrieval task in one English sentence.")]
Question = Annotated[str, typer.Argument(show_default=False)]

DEFAULT_MODELS, DEFAULT_URI, DEFAULT_COLLECTION = "0.6b", "./milvus_qwen3.db", "qwen3_docs"


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show what went wrong in one line instead of a traceback; exit code 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except Qwen3Error as error:
            err.print(f"[bold red]Error:[/] {show.escape(str(error))}", soft_wrap=True)
            raise typer.Exit(1) from None

    return run


class Session:
    """The models and the collection of one command, each loaded when first asked for."""

    # Where others load the weights, what the checkpoint says of itself is enough here.
    loads_embedding = True

    def __init__(self, models: str, uri: str, collection: str, token: str, task: str) -> None:
        self.pair: ModelPair = model_pair(models)
        self._uri, self._collection, self._token, self._task = uri, collection, token, task
        if self.pair.is_demo:
            err.print(show.DEMO_NOTICE, soft_wrap=True)

    @functools.cached_property
    def embed_model(self) -> Qwen3Embedding:
        """The embedding model, with its weights unless others load them."""
        from ..embedding import Qwen3Embedding

        with loading(self.pair.embedding):
            model = Qwen3Embedding(
                self.pair.embedding, dtype=self.pair.dtype, query_instruction=self._task
            )
            return model.load() if self.loads_embedding else model

    @functools.cached_property
    def reranker(self) -> Qwen3Reranker:
        """The reranker, with its weights."""
        from ..reranker import Qwen3Reranker

        with loading(self.pair.reranker):
            return Qwen3Reranker(
                self.pair.reranker, dtype=self.pair.dtype, instruction=self._task
            ).load()

    @contextmanager
    def embedder(self, ray: str | None, actors: int) -> Iterator[Qwen3Embedding]:
        """Give what embeds passages: the model here, or copies of it on Ray."""
        if ray is None:
            yield self.embed_model
            return
        from ..on_ray import RayEmbedder

        self.loads_embedding = False
        with RayEmbedder(self.embed_model, ray, actors) as embedder:
            yield cast("Qwen3Embedding", embedder)

    def store(self, overwrite: bool = False) -> CheckedMilvusVectorStore:
        """Open the collection, or create it."""
        from ..milvus import milvus_vector_store

        return milvus_vector_store(
            self.embed_model, self._uri, self._collection, token=self._token, overwrite=overwrite
        )

    @functools.cached_property
    def filled_store(self) -> CheckedMilvusVectorStore:
        """The collection, which must hold something to ask."""
        from ..milvus import collection_has_rows

        # Asked before any model is loaded, and before opening would create it.
        if not collection_has_rows(self._uri, self._collection, self._token):
            raise InvalidArgumentError(
                f"Collection {self._collection!r} at {self._uri!r} does not exist or is empty. Store "
                "something in it first: qwen3-rag ingest PATH"
            )
        return self.store()

    def rank(self, question: str, candidates: int) -> Ranking:
        """Retrieve and rerank the candidates of a question."""
        from ..pipeline import rank

        store = self.filled_store
        return rank(question, self.embed_model, self.reranker, store, candidates)


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Name the model on a terminal, above transformers' own bars; elsewhere keep those quiet."""
    from transformers.utils import logging

    if err.is_terminal:
        err.print(f"[dim]Loading {show.escape(model)}[/]", soft_wrap=True)
    else:
        logging.disable_progress_bar()
    yield
