"""The options that several commands take, with their completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import Qwen3Error
from ..models import SIZES

DEFAULT_MODELS, DEFAULT_URI, DEFAULT_COLLECTION = "0.6b", "./milvus_qwen3.db", "qwen3_docs"
# What Milvus gives at most.
MAX_CANDIDATES = 16_384


def _model_names(incomplete: str) -> list[str]:
    """Complete the names of pairs, and of directories that hold one."""
    names = [name for name in ("demo", *SIZES) if name.startswith(incomplete)]
    folder = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    pairs = sorted(folder.glob("*/embedding")) if folder.is_dir() else []
    return names + [str(pair.parent) for pair in pairs if str(pair.parent).startswith(incomplete)]


def _collection_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the collections of a Milvus Lite database, by the folders it keeps them in."""
    folder = Path(str(ctx.params.get("uri") or DEFAULT_URI)).expanduser() / "collections"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if name.startswith(incomplete)]


def _question(value: str) -> str:
    if not value.strip():
        raise typer.BadParameter("The question is empty. Give one in quotation marks.")
    return value


def _uri(value: str) -> str:
    from ..milvus_connection import check_uri

    try:
        check_uri(value)
    except Qwen3Error as error:
        raise typer.BadParameter(str(error)) from error
    return value


def _collection(value: str) -> str:
    if not value.isidentifier() or not value.isascii() or len(value) > 255:
        raise typer.BadParameter(
            f"{value!r}: use letters, digits and underscores, not beginning with a digit, at most 255."
        )
    return value


Models = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="demo, 0.6b, 4b, 8b, or a directory with embedding/ and reranker/.",
        autocompletion=_model_names,
    ),
]
# Not MILVUS_URI: pymilvus reads that itself, at import, and fails on a path.
Uri = Annotated[
    str,
    typer.Option(
        metavar="URI",
        envvar="QWEN3_RAG_URI",
        callback=_uri,
        help="A path ending in .db, or an address.",
    ),
]
Collection = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        callback=_collection,
        help="Milvus collection.",
        autocompletion=_collection_names,
    ),
]
Token = Annotated[
    str,
    typer.Option(
        metavar="TOKEN", envvar="MILVUS_TOKEN", help="user:password or API key.", show_default=False
    ),
]
Candidates = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, max=MAX_CANDIDATES, help="Passages to retrieve before reranking."
    ),
]
TopN = Annotated[int, typer.Option(metavar="N", min=1, help="Passages to keep after reranking.")]
Task = Annotated[
    str, typer.Option(metavar="TEXT", help="The retrieval task in one English sentence.")
]
Dense = Annotated[
    bool,
    typer.Option(
        "--dense",
        help="Search by vector alone, also where the collection has an index of its words "
        "(ingest --hybrid).",
    ),
]
Question = Annotated[
    str,
    typer.Argument(
        metavar="QUESTION",
        callback=_question,
        show_default=False,
        help="In any language, in quotes.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", envvar="QWEN3_RAG_DEBUG", help="Show the traceback of an error."),
]

_SERVERS = "Model servers"
BaseUrl = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        help="Server of both models, instead of loading them here; several share the work.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
EmbeddingUrl = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        envvar="QWEN3_RAG_EMBEDDING_URL",
        help="Server of the embedding model. A key is read from QWEN3_API_KEY.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
RerankerUrl = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        envvar="QWEN3_RAG_RERANKER_URL",
        help="Server of the reranker.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]

_GENERATION = "Language model"
Llm = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        envvar="QWEN3_RAG_LLM",
        help="OpenAI model that answers.",
        rich_help_panel=_GENERATION,
    ),
]
LlmBaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="OPENAI_BASE_URL",
        help="Another server that speaks OpenAI's protocol; it gets OPENAI_API_KEY.",
        show_default=False,
        rich_help_panel=_GENERATION,
    ),
]


def addresses(urls: list[str] | None) -> str | list[str] | None:
    """Return the addresses of an option that may be repeated, or hold several with commas."""
    each = [url.strip() for given in urls or [] for url in given.split(",") if url.strip()]
    return (each if len(each) > 1 else each[0]) if each else None
