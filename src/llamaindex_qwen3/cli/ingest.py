"""qwen3-rag ingest."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from .. import show
from ..prompts import DEFAULT_TASK
from .app import (
    DEFAULT_COLLECTION,
    DEFAULT_MODELS,
    DEFAULT_URI,
    AsJson,
    BaseUrl,
    Collection,
    EmbeddingUrl,
    Models,
    Session,
    Token,
    Uri,
    app,
    arguments,
    err,
    out,
    plain_errors,
    print_json,
)


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
        typer.Argument(
            metavar="PATH", help="Markdown, text, HTML or PDF files, or folders of them."
        ),
    ],
    models: Models = DEFAULT_MODELS,
    uri: Uri = DEFAULT_URI,
    collection: Collection = DEFAULT_COLLECTION,
    token: Token = "",
    hybrid: Annotated[
        bool,
        typer.Option(
            "--hybrid",
            help="Index the words (BM25) as well, at the collection's creation; searches then use "
            "both by themselves.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop an existing collection first.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='Embed on Ray: the address of a cluster, or "local" to start one here.',
            show_default=False,
        ),
    ] = None,
    actors: Annotated[
        int, typer.Option(min=1, metavar="N", help="Copies of the model on Ray.")
    ] = 2,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
    embedding_url: EmbeddingUrl = None,
) -> None:
    """Split files at their headers, embed the sections and store them.

    Example: qwen3-rag ingest docs/ --models 0.6b
    """
    session = Session(models, uri, collection, token, DEFAULT_TASK, base_url, embedding_url)
    from ..ingestion import IngestProgress
    from ..ingestion import ingest as run
    from ..readers import INSTALL_FILES, find_files, skipped_files

    with arguments():
        find_files(paths)  # a mistyped path should not cost the loading of a model
    session.check_target(overwrite, hybrid)
    skipped = skipped_files(paths)
    columns = (
        TextColumn("Embedding"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("[dim]{task.fields[chunks]} chunks, {task.fields[rate]:.0f}/s[/]"),
        TimeRemainingColumn(),
    )
    with ExitStack() as stack:
        embedder = stack.enter_context(session.embedder(ray, actors))
        store = session.store(overwrite, hybrid)
        stop = stack.enter_context(stop_on_interrupt())
        progress = stack.enter_context(
            Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        )
        bar = progress.add_task("embed", total=None, chunks=0, rate=0.0)
        started = time.monotonic()

        def show_progress(now: IngestProgress) -> None:
            rate = now.added / (time.monotonic() - started)
            progress.update(
                bar, completed=now.bytes, total=now.bytes_in_all, chunks=now.added, rate=rate
            )

        report = run(paths, embedder, store, on_progress=show_progress, should_stop=stop.is_set)
    if as_json:
        print_json({"uri": uri, "collection": collection, **asdict(report), "skipped": skipped})
    else:
        out.print(
            f"Stored {show.count(report.added, 'chunk')} of {show.count(report.files, 'file')} in {show.escape(collection)} at "
            f"{show.escape(uri)} ({report.unchanged} unchanged, {report.removed} removed).",
            soft_wrap=True,
        )
    for suffix, number in skipped.items():
        err.print(
            f"Skipped {show.count(number, suffix + ' file')}: {show.escape(INSTALL_FILES)}",
            soft_wrap=True,
        )
    if report.stopped:
        err.print("Stopped before the end. The same command goes on from here.")
        raise typer.Exit(130)
