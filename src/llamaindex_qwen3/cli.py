"""qwen3-rag: store a folder, ask it questions, see what reranking changes."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from . import show
from .errors import GenerationError, InvalidArgumentError, Qwen3Error
from .models import ModelPair, model_pair
from .prompts import DEFAULT_TASK

if TYPE_CHECKING:
    from .embedding import Qwen3Embedding
    from .milvus import CheckedMilvusVectorStore
    from .pipeline import Ranking
    from .reranker import Qwen3Reranker

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
        from .embedding import Qwen3Embedding

        with loading(self.pair.embedding):
            model = Qwen3Embedding(
                self.pair.embedding, dtype=self.pair.dtype, query_instruction=self._task
            )
            return model.load() if self.loads_embedding else model

    @functools.cached_property
    def reranker(self) -> Qwen3Reranker:
        """The reranker, with its weights."""
        from .reranker import Qwen3Reranker

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
        from .on_ray import RayEmbedder

        self.loads_embedding = False
        with RayEmbedder(self.embed_model, ray, actors) as embedder:
            yield cast("Qwen3Embedding", embedder)

    def store(self, overwrite: bool = False) -> CheckedMilvusVectorStore:
        """Open the collection, or create it."""
        from .milvus import milvus_vector_store

        return milvus_vector_store(
            self.embed_model, self._uri, self._collection, token=self._token, overwrite=overwrite
        )

    @functools.cached_property
    def filled_store(self) -> CheckedMilvusVectorStore:
        """The collection, which must hold something to ask."""
        from .milvus import collection_has_rows

        # Asked before any model is loaded, and before opening would create it.
        if not collection_has_rows(self._uri, self._collection, self._token):
            raise InvalidArgumentError(
                f"Collection {self._collection!r} at {self._uri!r} does not exist or is empty. Store "
                "something in it first: qwen3-rag ingest PATH"
            )
        return self.store()

    def rank(self, question: str, candidates: int) -> Ranking:
        """Retrieve and rerank the candidates of a question."""
        from .pipeline import rank

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


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Set an event at the first Ctrl-C, so that the batch under way is finished and stored."""
    stop = threading.Event()

    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        err.print("Finishing this batch; Ctrl-C again ends at once.")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@app.command()
@plain_errors
def ingest(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Markdown, text, HTML or PDF files, or folders of them."),
    ],
    models: Models = DEFAULT_MODELS,
    uri: Uri = DEFAULT_URI,
    collection: Collection = DEFAULT_COLLECTION,
    token: Token = "",
    overwrite: Annotated[bool, typer.Option(help="Drop an existing collection first.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            help='Embed on Ray: the address of a cluster, or "local" to start one here.',
            show_default=False,
        ),
    ] = None,
    actors: Annotated[int, typer.Option(min=1, help="Copies of the model on Ray.")] = 2,
) -> None:
    """Split files at their headers, embed the sections and store them.

    Example: qwen3-rag ingest docs/ --models 0.6b
    """
    session = Session(models, uri, collection, token, DEFAULT_TASK)
    from .ingestion import IngestProgress
    from .ingestion import ingest as run
    from .readers import find_files

    find_files(paths)  # a mistyped path should not cost the loading of a model
    columns = (
        TextColumn("Embedding"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("[dim]{task.fields[chunks]} chunks, {task.fields[rate]:.0f}/s[/]"),
        TimeRemainingColumn(),
    )
    with ExitStack() as stack:
        embedder = stack.enter_context(session.embedder(ray, actors))
        store = session.store(overwrite)
        stop = stack.enter_context(stop_on_interrupt())
        progress = stack.enter_context(Progress(*columns, console=err, transient=True))
        bar = progress.add_task("embed", total=None, chunks=0, rate=0.0)
        started = time.monotonic()

        def show_progress(now: IngestProgress) -> None:
            rate = now.added / (time.monotonic() - started)
            progress.update(
                bar, completed=now.bytes, total=now.bytes_in_all, chunks=now.added, rate=rate
            )

        report = run(paths, embedder, store, on_progress=show_progress, should_stop=stop.is_set)
    out.print(
        f"Stored {report.added} chunks of {report.files} files in {show.escape(collection)} at "
        f"{show.escape(uri)} ({report.unchanged} unchanged, {report.removed} removed).",
        soft_wrap=True,
    )
    if report.stopped:
        err.print("Stopped before the end. The same command goes on from here.")
        raise typer.Exit(130)


@app.command()
@plain_errors
def ask(
    question: Question,
    models: Models = DEFAULT_MODELS,
    uri: Uri = DEFAULT_URI,
    collection: Collection = DEFAULT_COLLECTION,
    token: Token = "",
    candidates: Candidates = 10,
    top_n: Annotated[int, typer.Option(min=1, help="Passages to keep after reranking.")] = 3,
    task: Task = DEFAULT_TASK,
    llm: Annotated[str, typer.Option(help="OpenAI model that answers.")] = "gpt-4o",
    llm_base_url: Annotated[
        str | None,
        typer.Option(help="Another server that speaks OpenAI's protocol; it gets the key."),
    ] = None,
) -> None:
    """Retrieve, rerank and answer; without an OpenAI key the passages are shown.

    Example: qwen3-rag ask "How is data stored in Milvus?" --models 0.6b
    """
    from .answer import chat_model, stream_answer
    from .pipeline import query_engine

    session = Session(models, uri, collection, token, task)
    ranking = session.rank(question, candidates)
    best = ranking.reranked[:top_n]
    out.print(show.rankings(ranking, top_n))
    out.print(show.passages(best))
    if not (os.environ.get("OPENAI_API_KEY") or llm_base_url):
        out.print(show.NO_KEY, soft_wrap=True)
        return
    engine = query_engine(
        session.embed_model,
        session.reranker,
        session.filled_store,
        chat_model(llm, llm_base_url),
        streaming=True,
    )
    out.print(f"[bold]Answer[/] [dim]({show.escape(llm)})[/]")
    try:
        for piece in stream_answer(engine, question, best):
            out.print(show.clean(piece), end="", markup=False, soft_wrap=True)
        out.print()
    except GenerationError:
        out.print()
        raise


@app.command()
@plain_errors
def compare(
    question: Question,
    models: Models = DEFAULT_MODELS,
    uri: Uri = DEFAULT_URI,
    collection: Collection = DEFAULT_COLLECTION,
    token: Token = "",
    candidates: Candidates = 10,
    task: Task = DEFAULT_TASK,
) -> None:
    """Show every candidate before and after reranking, and how far it moved.

    Example: qwen3-rag compare "How is data stored in Milvus?" --models 0.6b
    """
    session = Session(models, uri, collection, token, task)
    out.print(show.rankings(session.rank(question, candidates), candidates))


@app.command("eval")
@plain_errors
def evaluate(
    questions: Annotated[Path, typer.Argument(help="JSON lines: question, section, language.")],
    models: Models = DEFAULT_MODELS,
    uri: Uri = DEFAULT_URI,
    collection: Collection = DEFAULT_COLLECTION,
    token: Token = "",
    candidates: Candidates = 10,
    task: Task = DEFAULT_TASK,
    language: Annotated[str | None, typer.Option(help="Only questions in this language.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure recall, MRR and nDCG before and after reranking on questions of your own.

    Example: qwen3-rag eval questions.jsonl --models 0.6b --language en
    """
    from .evaluate import evaluate as run
    from .evaluate import read_questions

    asked = read_questions(questions, language)
    session = Session(models, uri, collection, token, task)
    session.rank(asked[0].text, candidates)  # load everything before the bar starts
    with Progress(console=err, transient=True) as progress:
        before, after = run(
            progress.track(asked, description="Asking"),
            lambda question: session.rank(question, candidates),
        )
    if as_json:
        sys.stdout.write(json.dumps({"before": asdict(before), "after": asdict(after)}) + "\n")
    else:
        out.print(show.quality(before, after))


def main() -> None:
    """Run the command line."""
    # Milvus Lite's in-process server logs harmless keep-alive messages from C.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app()


if __name__ == "__main__":
    main()
