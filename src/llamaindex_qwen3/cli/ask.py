"""qwen3-rag ask and compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import show
from ..prompts import DEFAULT_TASK
from .answers import passages_as_data, print_answer, with_cited
from .app import (
    DEFAULT_COLLECTION,
    DEFAULT_MODELS,
    DEFAULT_URI,
    AsJson,
    BaseUrl,
    Candidates,
    Collection,
    Dense,
    EmbeddingUrl,
    Llm,
    LlmBaseUrl,
    Models,
    Question,
    RerankerUrl,
    Session,
    Task,
    Token,
    TopN,
    Uri,
    app,
    out,
    plain_errors,
    print_json,
    working,
)
from .session import has_language_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llama_index.core.schema import NodeWithScore

    from ..pipeline import Ranking


@app.command()
@plain_errors
def ask(
    question: Question,
    models: Models = DEFAULT_MODELS,
    uri: Uri = DEFAULT_URI,
    collection: Collection = DEFAULT_COLLECTION,
    token: Token = "",
    candidates: Candidates = 10,
    top_n: TopN = 3,
    task: Task = DEFAULT_TASK,
    dense: Dense = False,
    brief: Annotated[
        bool,
        typer.Option(
            "--brief", help="Leave out the ranking: the answer and its sources, or the passages."
        ),
    ] = False,
    as_json: AsJson = False,
    llm: Llm = "gpt-4o",
    llm_base_url: LlmBaseUrl = None,
    base_url: BaseUrl = None,
    embedding_url: EmbeddingUrl = None,
    reranker_url: RerankerUrl = None,
) -> None:
    """Retrieve, rerank and answer with citations; without an OpenAI key the passages are shown.

    Example: qwen3-rag ask "How is data stored in Milvus?" --models 0.6b
    """
    session = Session(
        models, uri, collection, token, task, base_url, embedding_url, reranker_url, dense
    )
    ranking = _rank(session, question, candidates)
    best = ranking.reranked[:top_n]
    answers = has_language_model(llm_base_url)
    if as_json:
        answer = "".join(_answer(session, question, best, llm, llm_base_url)) if answers else None
        print_json(_as_data(ranking, top_n, answer, llm if answers else None))
        return
    if not brief:
        out.print(show.rankings(ranking, top_n, out.width))
    if not (brief and answers):
        out.print(show.passages(best))
    if not answers:
        out.print(show.NO_KEY, soft_wrap=True)
        return
    if not brief:
        out.print(f"[bold]Answer[/] [dim]({show.escape(llm)})[/]")
    print_answer(_answer(session, question, best, llm, llm_base_url), best)


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
    dense: Dense = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
    embedding_url: EmbeddingUrl = None,
    reranker_url: RerankerUrl = None,
) -> None:
    """Show every candidate before and after reranking, and how far it moved.

    Example: qwen3-rag compare "How is data stored in Milvus?" --models 0.6b
    """
    session = Session(
        models, uri, collection, token, task, base_url, embedding_url, reranker_url, dense
    )
    ranking = _rank(session, question, candidates)
    if as_json:
        print_json(
            {
                "question": question,
                "search": ranking.search,
                "passages": _passages(ranking, candidates),
            }
        )
    else:
        out.print(show.rankings(ranking, candidates, out.width))


def _rank(session: Session, question: str, candidates: int) -> Ranking:
    session.open()
    with working("Searching and reranking"):
        return session.rank(question, candidates)


def _answer(
    session: Session,
    question: str,
    nodes: Sequence[NodeWithScore],
    llm: str,
    llm_base_url: str | None,
) -> Iterator[str]:
    """Yield the answer from numbered copies of the nodes."""
    from ..answer import chat_model, stream_answer
    from ..citations import PassageNumbers
    from ..pipeline import query_engine

    engine = query_engine(
        session.embed_model,
        session.reranker,
        session.filled_store,
        chat_model(llm, llm_base_url),
        streaming=True,
    )
    return stream_answer(engine, question, PassageNumbers().postprocess_nodes(list(nodes)))


def _as_data(ranking: Ranking, kept: int, answer: str | None, llm: str | None) -> dict[str, Any]:
    return {
        "question": ranking.question,
        "search": ranking.search,
        "answer": answer,
        "llm": llm,
        "passages": with_cited(_passages(ranking, kept), answer or ""),
    }


def _passages(ranking: Ranking, kept: int) -> list[dict[str, Any]]:
    """Describe the best of the reranked passages, and where they stood before."""
    before = {node.node_id: (place, node) for place, node in enumerate(ranking.candidates, 1)}
    rows = passages_as_data(ranking.reranked[:kept])
    for row in rows:
        row["retrieval_rank"], candidate = before[row["id"]]
        row["retrieval_score"] = candidate.score
    return rows
