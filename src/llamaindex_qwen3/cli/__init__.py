"""qwen3-rag: store a folder, ask it questions, see what reranking changes.

Each command is registered by the module that holds it, when it is imported here.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from typing import Any

try:
    from .. import show
    from . import app, ask, chat, evaluate, info, ingest, serve, verify
except ModuleNotFoundError as error:
    if error.name not in ("typer", "rich"):
        raise
    raise SystemExit("qwen3-rag needs more packages: pip install 'llamaindex-qwen3[cli]'") from None

__all__ = ["app", "ask", "chat", "evaluate", "info", "ingest", "main", "serve", "verify"]


def main() -> None:
    """Run the command line."""
    warnings.showwarning = _show_warning
    # Milvus Lite's in-process server logs harmless keep-alive messages from C.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Retries of a hub that cannot be reached end in one error of our own.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # They log the traceback of what is raised and told here.
    for name in ("grpc", "milvus_lite"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character gets a question mark, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app.app()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning as a line for people, not as a place in the source."""
    app.err.print(f"[yellow]Warning:[/] {show.escape(str(message))}", soft_wrap=True)
