"""qwen3-rag eval."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from .. import show
from ..prompts import DEFAULT_TASK
from .app import (
    DEFAULT_COLLECTION,
    DEFAULT_MODELS,
    DEFAULT_URI,
    Candidates,
    Collection,
    Models,
    Session,
    Task,
    Token,
    Uri,
    app,
    err,
    out,
    plain_errors,
)


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
    from ..evaluate import evaluate as run
    from ..evaluate import read_questions

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
