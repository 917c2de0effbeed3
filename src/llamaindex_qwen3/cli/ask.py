"""qwen3-rag ask and compare."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .. import show
from ..errors import GenerationError
from ..prompts import DEFAULT_TASK
from .app import (
    DEFAULT_COLLECTION,
    DEFAULT_MODELS,
    DEFAULT_URI,
    Candidates,
    Collection,
    Models,
    Question,
    Session,
    Task,
    Token,
    Uri,
    app,
    out,
    plain_errors,
)


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
    from ..answer import chat_model, stream_answer
    from ..pipeline import query_engine

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
