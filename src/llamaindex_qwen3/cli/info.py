"""qwen3-rag info."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.progress import Progress

from .. import show
from .app import (
    DEFAULT_COLLECTION,
    DEFAULT_URI,
    AsJson,
    Collection,
    Token,
    Uri,
    app,
    err,
    out,
    plain_errors,
    print_json,
)


@app.command()
@plain_errors
def info(
    uri: Uri = DEFAULT_URI,
    collection: Collection = DEFAULT_COLLECTION,
    token: Token = "",
    files: Annotated[bool, typer.Option("--files", help="List the files as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a collection holds and what it was built with; no model is loaded.

    Example: qwen3-rag info --uri ./milvus_qwen3.db
    """
    from ..collection_info import collection_info

    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("Reading", total=None)
        found = collection_info(
            uri,
            collection,
            token,
            lambda read, rows: progress.update(bar, completed=read, total=rows),
        )
    if as_json:
        print_json(asdict(found))
    else:
        out.print(show.collection(found, files))
