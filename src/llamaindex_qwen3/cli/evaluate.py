"""qwen3-rag eval."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import show
from ..errors import InvalidArgumentError
from ..prompts import DEFAULT_TASK
from .app import (
    DEFAULT_COLLECTION,
    DEFAULT_MODELS,
    DEFAULT_URI,
    AsJson,
    BaseUrl,
    Collection,
    EmbeddingUrl,
    Llm,
    LlmBaseUrl,
    RerankerUrl,
    Session,
    Token,
    Uri,
    app,
    err,
    out,
    plain_errors,
    print_json,
)

if TYPE_CHECKING:
    from ..evaluation.corpus import Collection as StoredCollection
    from ..evaluation.questions import Question
    from ..evaluation.report import Report
    from ..evaluation.settings import Outcome

METRICS = ("recall@1", "recall@3", "recall@10", "mrr@10", "ndcg@10")
_COMPARED = "What is compared, each with each"
_GENERATED = "Questions written by a language model"
_PLOT_CANDIDATES = "5,10,20"
_TABLE_COLUMNS = 120


def _metric(value: str) -> str:
    if value.lower() not in METRICS:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(METRICS)}.")
    return value.lower()


@app.command("eval")
@plain_errors
def evaluate(
    questions: Annotated[
        Path | None,
        typer.Argument(
            help="JSON lines: question, section (FILE#header, or a list) or text; language and "
            "anything else if you like.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[
        list[str],
        typer.Option(
            help="demo, 0.6b, 4b, 8b, or a directory with embedding/ and reranker/. The passages are "
            "embedded again for models that the collection was not built with, for this run only.",
            rich_help_panel=_COMPARED,
        ),
    ] = [DEFAULT_MODELS],  # noqa: B006 - typer copies it
    dimensions: Annotated[
        str | None,
        typer.Option(
            help='Such as "32,64,full", or "all" for 32, 64, 128, … and full. The stored vectors are '
            "shortened into a temporary Milvus Lite; the collection stays as it is.",
            show_default=False,
            rich_help_panel=_COMPARED,
        ),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            help="Passages to retrieve before reranking, such as 5,10,20; 10 when not given.",
            show_default=False,
            rich_help_panel=_COMPARED,
        ),
    ] = None,
    task: Annotated[
        list[str],
        typer.Option(help="The retrieval task in one English sentence.", rich_help_panel=_COMPARED),
    ] = [DEFAULT_TASK],  # noqa: B006 - typer copies it
    hybrid: Annotated[
        bool,
        typer.Option(
            "--hybrid",
            help="Search by vector and words (BM25) as well as by vector alone.",
            rich_help_panel=_COMPARED,
        ),
    ] = False,
    language: Annotated[
        str | None, typer.Option(help="Only questions in this language.", show_default=False)
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Figures by language, file or another key of the questions. Given languages are "
            "told apart without being asked to.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help=f"What to compare by: {', '.join(METRICS)}.", callback=_metric)
    ] = "ndcg@10",
    plots: Annotated[
        Path | None,
        typer.Option(
            help="Write plots (PNG and SVG), results.json and results.txt into this folder. Compares "
            f"--dimensions all and --candidates {_PLOT_CANDIDATES} when these are not given.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    generate: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Write this many questions on the collection's passages to --out, and stop.",
            show_default=False,
            rich_help_panel=_GENERATED,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The file. Run again, the command goes on where it was.",
            show_default=False,
            rich_help_panel=_GENERATED,
        ),
    ] = None,
    llm: Llm = "gpt-4o",
    llm_base_url: LlmBaseUrl = None,
    uri: Uri = DEFAULT_URI,
    collection: Collection = DEFAULT_COLLECTION,
    token: Token = "",
    base_url: BaseUrl = None,
    embedding_url: EmbeddingUrl = None,
    reranker_url: RerankerUrl = None,
) -> None:
    """Measure recall, MRR, nDCG and time before and after reranking, and compare settings.

    Example: qwen3-rag eval questions.jsonl --models 0.6b --dimensions 64,256,full --plots plots/

    Without questions: qwen3-rag eval --generate 50 --out questions.jsonl
    """
    from ..evaluation.corpus import Collection as StoredCollection

    if generate is not None:
        if output is None or questions is not None:
            raise typer.BadParameter("--generate writes to --out FILE and takes no QUESTIONS.")
        found = StoredCollection.find(uri, collection, token)
        _generate(found, generate, output, language, llm, llm_base_url)
        return
    if questions is None:
        raise typer.BadParameter("Give a file of QUESTIONS, or have one written by --generate.")
    if len(models) > 1 and (base_url or embedding_url or reranker_url):
        raise typer.BadParameter("Model servers serve one pair: give --models once.")
    from ..evaluation.questions import read_questions
    from ..evaluation.report import report

    # Cheap mistakes are told before any model is loaded.
    counts = _numbers(candidates or (_PLOT_CANDIDATES if plots else "10"), "--candidates")
    sizes = dimensions or ("all" if plots else "")
    _sizes(sizes, 1 << 20)
    asked = read_questions(questions, language)
    found = StoredCollection.find(uri, collection, token)
    missing = _missing(asked, found, questions)
    outcomes: list[Outcome] = []
    for name in models:
        session = Session(
            name, uri, collection, token, task[0], base_url, embedding_url, reranker_url
        )
        with _progress() as tell:
            outcomes += _measure(
                asked,
                name,
                session,
                found,
                (sizes, counts, list(task), hybrid),
                len(models) > 1,
                tell,
            )
    told = sorted({each.language for each in asked if each.language})
    keys = list(dict.fromkeys([*(by or []), *(["language"] if len(told) > 1 else [])]))
    result = report(asked, outcomes, keys)
    about = {
        "questions": {
            "file": str(questions), "count": len(asked), "language": language,
            "not_in_collection": missing,
        },
        "collection": {"name": collection, "dimensions": found.dimensions, **found.built_with},
    }  # fmt: skip
    data = {**about, "metric": metric, **result.to_dict()}
    written = _write(result, metric, plots, data) if plots else []
    if as_json:
        print_json({**data, "files": written})
        return
    out.print(_tables(result, metric, out.width))
    for path in written:
        out.print(f"Wrote {show.escape(path)}", soft_wrap=True)


def _measure(
    questions: Sequence[Question],
    name: str,
    session: Session,
    collection: StoredCollection,
    compared: tuple[str, list[int], list[str], bool],
    embed_again: bool,
    tell: Callable[[str, int, int], None],
) -> list[Outcome]:
    """Ask with one pair of models, and let go of them."""
    from ..evaluation.run import measure
    from ..evaluation.settings import Grid

    sizes, counts, tasks, hybrid = compared
    grid = Grid(
        dimensions=_sizes(sizes, session.embed_model.dim),
        candidates=counts,
        searches=("dense", "hybrid") if hybrid else ("dense",),
        tasks=tasks,
    )
    models = session.embed_model, session.reranker
    try:
        return measure(questions, name, *models, collection, grid, tell, embed_again)
    finally:
        for model in models:
            model.close()


def _generate(
    collection: StoredCollection,
    count: int,
    path: Path,
    language: str | None,
    llm: str,
    llm_base_url: str | None,
) -> None:
    from ..answer import chat_model
    from ..evaluation.generate import generate_questions, read_passages

    passages = read_passages(collection)
    with _progress() as tell:
        done = generate_questions(
            passages,
            chat_model(llm, llm_base_url),
            path,
            count,
            language,
            lambda written, total: tell("Writing questions", written, total),
        )
    out.print(
        f"{show.escape(str(path))} has {done.kept + done.written} questions on {len(passages)} "
        f"passages, {done.written} of them new.",
        soft_wrap=True,
    )
    for reason, times in done.rejected.most_common():
        out.print(f"[dim]A passage was left out {times} times: {show.escape(reason)}.[/]")
    if done.kept + done.written < count:
        err.print(f"The language model gave no more than that of {count} that pass the checks.")
        raise typer.Exit(1)
    out.print(
        f"Read them before you trust them: qwen3-rag eval {show.escape(str(path))}", soft_wrap=True
    )


def _missing(questions: Sequence[Question], collection: StoredCollection, path: Path) -> list[str]:
    """Return the relevant sections that are not stored, and warn of them."""
    sections = [section for question in questions for section in question.sections]
    missing = collection.missing(sections)
    if missing and len(missing) == len(set(sections)) and all(q.sections for q in questions):
        raise InvalidArgumentError(
            f"None of the sections that {str(path)!r} names is in collection {collection.name!r}, "
            f"{missing[0]!r} for instance. Ingest the folder that the questions are about, from "
            "above so that files have the same names."
        )
    if missing:
        named = show.escape(", ".join(missing[:3]) + (", …" if len(missing) > 3 else ""))
        err.print(
            f"[yellow]Not in the collection:[/] {len(missing)} of the sections that answer ({named}). "
            "They count as not found.",
            soft_wrap=True,
        )
    return missing


def _write(report: Report, metric: str, folder: Path, data: dict[str, Any]) -> list[str]:
    from ..evaluation.plots import write_plots

    written = write_plots(report, metric, folder)
    text = io.StringIO()
    Console(file=text, width=_TABLE_COLUMNS, emoji=False).print(
        _tables(report, metric, _TABLE_COLUMNS)
    )
    texts = {
        "results.json": json.dumps(data, indent=2, ensure_ascii=False),
        "results.txt": text.getvalue(),
    }
    for name, content in texts.items():
        (folder / name).write_text(content.rstrip() + "\n", encoding="utf-8")
    return [str(path) for path in [*written, *(folder / name for name in texts)]]


def _tables(report: Report, metric: str, width: int) -> Any:
    from ..evaluation.tables import tables

    return tables(report, metric, width)


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise typer.BadParameter(f"{option} {text!r}: give numbers from 1 with commas: 5,10,20.")
    return numbers


def _sizes(text: str, full: int) -> list[int]:
    """Return the dimensions that a text stands for, none for those of the collection."""
    if not text:
        return []
    if text.strip().lower() == "all":
        return [size for size in (32 * 2**i for i in range(20)) if size < full] + [full]
    parts = [part.strip() for part in text.lower().split(",")]
    return _numbers(
        ",".join(str(full) if part == "full" else part for part in parts), "--dimensions"
    )


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows how much of a stage is done, a bar for each stage."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bars: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            for other, bar in bars.items():
                progress.update(bar, visible=other == stage)
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done, total=total, visible=True)

        yield tell
