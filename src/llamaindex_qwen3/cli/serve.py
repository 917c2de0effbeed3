"""qwen3-rag serve."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidArgumentError
from ..prompts import DEFAULT_TASK
from .app import (
    DEFAULT_COLLECTION,
    DEFAULT_MODELS,
    DEFAULT_URI,
    BaseUrl,
    Candidates,
    Collection,
    EmbeddingUrl,
    Llm,
    LlmBaseUrl,
    Models,
    RerankerUrl,
    Session,
    Task,
    Token,
    TopN,
    Uri,
    app,
    err,
    out,
    plain_errors,
)
from .session import has_language_model


@app.command()
@plain_errors
def serve(
    models: Models = DEFAULT_MODELS,
    uri: Uri = DEFAULT_URI,
    collection: Collection = DEFAULT_COLLECTION,
    token: Token = "",
    candidates: Candidates = 10,
    top_n: TopN = 3,
    task: Task = DEFAULT_TASK,
    questions: Annotated[
        Path,
        typer.Option(metavar="FILE", help="File that judged questions are added to, for eval."),
    ] = Path("questions.jsonl"),
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; others than 127.0.0.1 let other machines in.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
    llm: Llm = "gpt-4o",
    llm_base_url: LlmBaseUrl = None,
    base_url: BaseUrl = None,
    embedding_url: EmbeddingUrl = None,
    reranker_url: RerankerUrl = None,
) -> None:
    """Open a local page to ask questions and watch retrieval, reranking and the answer at work.

    Example: qwen3-rag serve --models 0.6b
    """
    try:
        from .. import inspector
    except ModuleNotFoundError as error:
        raise InvalidArgumentError(
            f"The page needs {error.name}, which is not installed: pip install "
            "'llamaindex-qwen3[inspector]'."
        ) from error
    from ..answer import chat_model

    # A port that is taken should not cost the loading of a model.
    with inspector.listen(host, port) as listener:
        session = Session(
            models, uri, collection, token, task, base_url, embedding_url, reranker_url
        )
        # The first search is slower than those that follow, and the page shows times.
        session.rank("first", 1)
        page = inspector.Inspector(
            session.embed_model,
            session.reranker,
            session.filled_store,
            chat_model(llm, llm_base_url) if has_language_model(llm_base_url) else None,
            inspector.Settings(candidates, top_n, session.pair.is_demo, questions),
        )
        if not inspector.is_loopback(host):
            err.print(
                "[yellow]Anybody who can reach this machine can read what is stored, ask at your "
                "expense, and add to the questions:[/] leave out --host to keep it to this machine."
            )
        # Ctrl-C is how it is meant to end.
        with contextlib.suppress(KeyboardInterrupt):
            inspector.serve(
                page,
                listener,
                host,
                open_browser=not no_browser,
                on_ready=lambda url: out.print(f"Inspector at {url}  [dim]Ctrl-C ends it.[/]"),
            )
