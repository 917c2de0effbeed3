"""qwen3-rag eval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import show
from ..errors import InvalidArgumentError
from ..models import model_pair
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
    arguments,
    err,
    out,
    plain_errors,
    print_json,
    working,
)
from .eval_options import (
    PLOT_CANDIDATES,
    By,
    Dimensions,
    Generate,
    Hybrid,
    Language,
    Metric,
    Out,
    Plots,
    Questions,
    SeveralCandidates,
    SeveralModels,
    SeveralTasks,
    numbers,
    sizes,
)
from .session import need_language_model
from .stored import check_filled, check_models, look

if TYPE_CHECKING:
    from ..evaluation.corpus import Collection as StoredCollection
    from ..evaluation.questions import Question
    from ..evaluation.settings import Outcome

_Tell = Callable[[str, int, int], None]


@app.command("eval")
@plain_errors
def evaluate(
    questions: Questions = None,
    models: SeveralModels = [DEFAULT_MODELS],  # noqa: B006 - typer copies it
    dimensions: Dimensions = None,
    candidates: SeveralCandidates = None,
    task: SeveralTasks = [DEFAULT_TASK],  # noqa: B006 - typer copies it
    hybrid: Hybrid = False,
    language: Language = None,
    by: By = None,
    metric: Metric = "ndcg@10",
    plots: Plots = None,
    as_json: AsJson = False,
    generate: Generate = None,
    output: Out = None,
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

    Without questions of your own: qwen3-rag eval --generate 50 --out questions.jsonl
    """
    if generate is not None:
        if output is None or questions is not None:
            raise typer.BadParameter("--generate writes to --out FILE and takes no QUESTIONS.")
        need_language_model(llm_base_url, "Writing questions")
        place = uri, collection, token
        _generate(place, generate, output, language, (llm, llm_base_url), as_json)
        return
    if questions is None:
        raise typer.BadParameter("Give a file of QUESTIONS, or have one written by --generate.")
    if len(models) > 1 and (base_url or embedding_url or reranker_url):
        raise typer.BadParameter("Model servers serve one pair: give --models once.")
    from ..evaluation.output import write_report
    from ..evaluation.plots import need_matplotlib
    from ..evaluation.report import report
    from ..evaluation.tables import tables

    # Cheap mistakes are told before any model is loaded.
    counts = numbers(candidates or (PLOT_CANDIDATES if plots else "10"), "--candidates")
    asked_sizes = dimensions or ("all" if plots else None)
    sizes(asked_sizes, 1 << 20)
    if plots:
        _check_folder(plots)
        need_matplotlib()
    asked = _read(questions, language, models)
    found = _find((uri, collection, token), models, bool(base_url or embedding_url))
    missing = _missing(asked, found, questions)
    outcomes: list[Outcome] = []
    for name in models:
        session = Session(
            name, uri, collection, token, task[0], base_url, embedding_url, reranker_url
        )
        compared = (asked_sizes, counts, list(task), hybrid)
        # Loading has bars of its own.
        _ = session.embed_model, session.reranker
        with _progress() as tell:
            outcomes += _measure(asked, name, session, found, compared, len(models) > 1, tell)
    told = {each.language for each in asked if each.language}
    keys = [*(by or []), *(["language"] if len(told) > 1 else [])]
    with working("Working out the figures"):
        made = report(asked, outcomes, list(dict.fromkeys(keys)))
    data = {
        "questions": {
            "file": str(questions), "count": len(asked), "language": language,
            "not_in_collection": missing,
        },
        "collection": {"name": collection, "dimensions": found.dimensions, **found.built_with},
        "metric": metric,
        **made.to_dict(),
    }  # fmt: skip
    if not as_json:
        out.print(tables(made, metric, out.width))
    written = [str(path) for path in write_report(made, metric, plots, data)] if plots else []
    if as_json:
        print_json({**data, "files": written})
        return
    for path in written:
        out.print(f"Wrote {show.escape(path)}", soft_wrap=True)


def _check_folder(path: Path) -> None:
    """Refuse, before anything is measured, a place for plots that is a file."""
    if path.exists() and not path.is_dir():
        raise typer.BadParameter(f"--plots {str(path)!r} is a file. Give a folder, new or not.")


def _read(path: Path, language: str | None, models: Sequence[str]) -> list[Question]:
    """Read the questions; a file that has none is told, and models that nobody knows."""
    from ..evaluation.questions import read_questions

    with arguments():
        for name in models:
            model_pair(name)
        return read_questions(path, language)


def _find(place: tuple[str, str, str], models: Sequence[str], is_served: bool) -> StoredCollection:
    """Find the collection, and refuse a single pair of models that it was not built with."""
    from ..evaluation.corpus import Collection as StoredCollection

    check_filled(*place)
    found = StoredCollection.find(*place)
    # With several, the passages are embedded again for those that it was not built with.
    if len(models) == 1 and not is_served:
        check_models(model_pair(models[0]), look(*place), found.name)
    return found


def _measure(
    questions: Sequence[Question],
    name: str,
    session: Session,
    collection: StoredCollection,
    compared: tuple[str | None, list[int], list[str], bool],
    embed_again: bool,
    tell: _Tell,
) -> list[Outcome]:
    """Ask with one pair of models, and let go of them."""
    from ..evaluation.run import measure
    from ..evaluation.settings import Grid

    asked_sizes, counts, tasks, hybrid = compared
    grid = Grid(
        dimensions=sizes(asked_sizes, session.embed_model.dim),
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
    place: tuple[str, str, str],
    count: int,
    path: Path,
    language: str | None,
    llm: tuple[str, str | None],
    as_json: bool,
) -> None:
    from ..answer import chat_model
    from ..evaluation.corpus import Collection as StoredCollection
    from ..evaluation.generate import generate_questions, read_passages

    passages = read_passages(StoredCollection.find(*place))
    with _progress() as tell:
        done = generate_questions(
            passages,
            chat_model(*llm),
            path,
            count,
            language,
            lambda written, total: tell("Writing questions", written, total),
        )
    in_all, file = done.kept + done.written, show.escape(str(path))
    if as_json:
        print_json(
            {
                "file": str(path), "questions": in_all, "written": done.written,
                "passages": len(passages), "rejected": dict(done.rejected),
            }
        )  # fmt: skip
    else:
        out.print(
            f"{file} has {show.count(in_all, 'question')} on {show.count(len(passages), 'passage')}, "
            f"{done.written} of them new. Read them before you trust what they measure.",
            soft_wrap=True,
        )
        for reason, times in done.rejected.most_common():
            out.print(f"[dim]No question {show.count(times, 'time')}: {show.escape(reason)}.[/]")
    if in_all < count:
        err.print(
            f"No more than {in_all} of {show.count(count, 'question')} passed the checks. The same command tries "
            "again; a larger model, or more passages, would give more."
        )
        raise typer.Exit(1)


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


@contextmanager
def _progress() -> Iterator[_Tell]:
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
