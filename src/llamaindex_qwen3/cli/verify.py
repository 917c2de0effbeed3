"""qwen3-rag verify."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import show
from ..errors import InvalidArgumentError
from ..models import SIZES, model_pair
from .app import (
    DEFAULT_MODELS,
    AsJson,
    BaseUrl,
    EmbeddingUrl,
    Models,
    RerankerUrl,
    app,
    arguments,
    out,
    plain_errors,
    print_json,
    working,
)
from .bars import hidden_bars
from .options import addresses

if TYPE_CHECKING:
    from ..verify import Check, Subject


class Dtype(str, Enum):
    """Precisions to run in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Size(str, Enum):
    """Sizes that values are published for."""

    small = "0.6b"
    medium = "4b"
    large = "8b"


@app.command()
@plain_errors
def verify(
    models: Models = DEFAULT_MODELS,
    embedding: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Verify this embedding checkpoint alone.", show_default=False
        ),
    ] = None,
    reranker: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Verify this reranker alone.", show_default=False),
    ] = None,
    original: Annotated[
        Size | None,
        typer.Option(
            help="The size, where a directory holds Qwen's own weights: compare what is published.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Precision to run in, or that a server runs in.")
    ] = Dtype.auto,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Check token ids alone; load nothing else.")
    ] = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
    embedding_url: EmbeddingUrl = None,
    reranker_url: RerankerUrl = None,
) -> None:
    """Prove an installation, a fine-tune or a server right; exit code 1 if a check fails.

    Compared are token ids and, for Qwen's own weights, the published similarities and log-odds. For
    any weights: vectors of unit length, results that do not depend on the batch, and the same from
    transformers' own forward pass. Through a server the same, against the model run here where its
    weights are at hand. Each number is the largest difference and what is allowed; bfloat16 rounds,
    so that more is allowed there: --dtype float32 checks closely. A directory with a tokenizer
    alone has its token ids checked.

    Example: qwen3-rag verify --models 0.6b --dtype float32
    """
    from ..verify import verify as run

    urls = {
        "embedding": addresses(embedding_url) or addresses(base_url),
        "reranker": addresses(reranker_url) or addresses(base_url),
    }
    size = original.value if original else None
    with arguments():
        subjects = list(_subjects(models, embedding, reranker, size, dtype.value, urls, no_weights))
    results: list[tuple[Subject, list[Check]]] = []
    for subject in subjects:
        checks: list[Check] = []
        results.append((subject, checks))
        if not as_json:
            out.print(f"[bold]{show.escape(subject.model)}[/] [dim]{_how(subject)}[/]")
        outcomes = run(subject)
        while outcome := _next(outcomes, subject):
            checks.append(outcome)
            if not as_json:
                out.print(*show.check(outcome), sep="\n")
        if not as_json:
            out.print()
    every = [outcome for _, checks in results for outcome in checks]
    failed = any(outcome.status == "fail" for outcome in every)
    proved = any(outcome.status == "pass" for outcome in every)
    if as_json:
        print_json({"passed": proved and not failed, "models": [_as_data(*r) for r in results]})
    else:
        out.print(show.check_summary(every))
    if failed or not proved:
        raise typer.Exit(1)


def _subjects(
    models: str,
    embedding: str | None,
    reranker: str | None,
    size: str | None,
    dtype: str,
    urls: dict[str, str | list[str] | None],
    no_weights: bool,
) -> Iterator[Subject]:
    from ..verify import Subject

    if embedding is None and reranker is None:
        embedding, reranker = _pair(models)
        if models.lower() in SIZES:
            size = models.lower()
        elif dtype == "auto" and Path(embedding) != Path(reranker):
            dtype = model_pair(models).dtype
    if embedding is not None:
        yield Subject("embedding", embedding, size, dtype, urls["embedding"], not no_weights)
    if reranker is not None:
        yield Subject("reranker", reranker, size, dtype, urls["reranker"], not no_weights)


def _pair(models: str) -> tuple[str, str]:
    """Return the two checkpoints; a directory with a tokenizer alone stands for both."""
    directory = Path(models).expanduser()
    if (directory / "config.json").is_file():
        raise InvalidArgumentError(
            f"{models!r} is one checkpoint, and --models names a pair. Give it as --embedding or "
            "--reranker."
        )
    if (directory / "tokenizer.json").is_file():
        return models, models
    pair = model_pair(models)
    return pair.embedding, pair.reranker


def _next(outcomes: Iterator[Check], subject: Subject) -> Check | None:
    with working(f"Checking {show.escape(subject.model)}"), hidden_bars():
        return next(outcomes, None)


def _how(subject: Subject) -> str:
    if subject.base_url is None:
        return f"as {subject.role}, {subject.dtype}"
    urls = [subject.base_url] if isinstance(subject.base_url, str) else subject.base_url
    return f"as {subject.role}, at {show.escape(', '.join(urls))}"


def _as_data(subject: Subject, checks: list[Check]) -> dict[str, Any]:
    return {**asdict(subject), "checks": [asdict(check) for check in checks]}
