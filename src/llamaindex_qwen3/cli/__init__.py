"""qwen3-rag: store a folder, ask it questions, see what reranking changes.

Each command is registered by the module that holds it, when it is imported here.
"""

from __future__ import annotations

import os

from . import app, ask, chat, evaluate, ingest, serve

__all__ = ["app", "ask", "chat", "evaluate", "ingest", "main", "serve"]


def main() -> None:
    """Run the command line."""
    # Milvus Lite's in-process server logs harmless keep-alive messages from C.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app.app()
