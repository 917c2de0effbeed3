"""The options of eval, and what their texts stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MAX_CANDIDATES

METRICS = ("recall@1", "recall@3", "recall@10", "mrr@10", "ndcg@10")
PLOT_CANDIDATES = "5,10,20"
_COMPARED = "What is compared, each with each"
_GENERATED = "Questions written by a language model"


def _metric(value: str) -> str:
    if value.lower() not in METRICS:
        raise typer.BadParameter(f"{value!r} is no metric. Give one of {', '.join(METRICS)}.")
    return value.lower()


Questions = Annotated[
    Path | None,
    typer.Argument(
        metavar="QUESTIONS",
        help="JSON lines: question; section (FILE#header) or text, or a list of these; language and "
        "anything else if you like.",
        show_default=False,
    ),
]
SeveralModels = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help="demo, 0.6b, 4b, 8b, or a directory with embedding/ and reranker/. With several, the "
        "passages are embedded again for those that the collection was not built with.",
        rich_help_panel=_COMPARED,
    ),
]
Dimensions = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help='Such as 32,64,full; "all" is 32, 64, 128 and so on, and full. Stored vectors are '
        "shortened into a temporary Milvus Lite; the collection stays as it is.",
        show_default=False,
        rich_help_panel=_COMPARED,
    ),
]
SeveralCandidates = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Passages to retrieve before reranking, such as 5,10,20.",
        show_default="10",
        rich_help_panel=_COMPARED,
    ),
]
SeveralTasks = Annotated[
    list[str],
    typer.Option(
        metavar="TEXT",
        help="The retrieval task in one English sentence.",
        rich_help_panel=_COMPARED,
    ),
]
Hybrid = Annotated[
    bool,
    typer.Option(
        "--hybrid",
        help="Search by vector and words (BM25) as well as by vector alone.",
        rich_help_panel=_COMPARED,
    ),
]
Language = Annotated[
    str | None,
    typer.Option(
        metavar="CODE",
        help="Only questions in this language. With --generate, the language to note where the "
        "script does not tell it.",
        show_default=False,
    ),
]
By = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="Figures by language, file or another key of the questions. By language they come "
        "anyway where several are stated.",
        show_default=False,
    ),
]
Metric = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"What comparisons show: {', '.join(METRICS)}.",
        callback=_metric,
        autocompletion=lambda: list(METRICS),
    ),
]
Plots = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Write plots (PNG and SVG), results.json and results.txt into this folder. Compares "
        f"--dimensions all and --candidates {PLOT_CANDIDATES} when these are not given.",
        show_default=False,
    ),
]
Generate = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Have this many questions on the collection's passages written to --out, and stop.",
        show_default=False,
        rich_help_panel=_GENERATED,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="The file. Run again, the command goes on where it was.",
        show_default=False,
        rich_help_panel=_GENERATED,
    ),
]


def numbers(text: str, option: str) -> list[int]:
    """Return the numbers of a text with commas, each once, in rising order."""
    try:
        found = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise typer.BadParameter(f"{option} {text!r}: give numbers from 1 with commas: 5,10,20.")
    if option == "--candidates" and found[-1] > MAX_CANDIDATES:
        raise typer.BadParameter(f"{option} {text!r}: Milvus gives {MAX_CANDIDATES:,} at most.")
    return found


def sizes(text: str | None, full: int) -> list[int]:
    """Return the dimensions that a text stands for; none for those of the collection."""
    if not text:
        return []
    if text.strip().lower() == "all":
        return [size for size in (32 * 2**i for i in range(20)) if size < full] + [full]
    parts = [part.strip() for part in text.lower().split(",")]
    return numbers(
        ",".join(str(full) if part == "full" else part for part in parts), "--dimensions"
    )
