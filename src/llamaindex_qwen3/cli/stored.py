"""What a collection says of itself, before any model is loaded."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError, StoreError
from ..models import SIZES, ModelPair, model_pair


@dataclass(frozen=True)
class Stored:
    """A collection that exists: what it notes of its model, and whether its words are indexed."""

    built_with: dict[str, Any]
    has_words: bool


def look(uri: str, collection: str, token: str) -> Stored | None:
    """Look at a collection; None where there is none. Nothing is created.

    Raises:
        StoreError: The store cannot be reached.
    """
    from pymilvus import FunctionType

    from ..milvus_connection import BUILT_WITH, check_uri, holding
    from ..milvus_errors import plain_errors

    with plain_errors(check_uri(uri)):
        client = holding(uri, collection, token)
        if client is None:
            return None
        described = client.describe_collection(collection)
    kinds = [function["type"] for function in described.get("functions") or []]
    record = (described.get("properties") or {}).get(BUILT_WITH) or "{}"
    return Stored(json.loads(record), FunctionType.BM25 in kinds)


def check_filled(uri: str, collection: str, token: str) -> None:
    """Refuse a collection with nothing to ask.

    Raises:
        InvalidArgumentError: It does not exist or is empty.
        StoreError: The store cannot be reached.
    """
    from ..milvus_connection import check_uri, collection_has_rows, connect
    from ..milvus_errors import plain_errors

    if collection_has_rows(uri, collection, token):
        return
    path = check_uri(uri)
    others: list[str] = []
    if "://" in path or Path(path).exists():
        with plain_errors(path):
            others = sorted(set(connect(path, token).list_collections()) - {collection})
    instead = f", or ask another with --collection: {', '.join(others)}." if others else ""
    raise InvalidArgumentError(
        f"Collection {collection!r} at {uri!r} does not exist or is empty. Store something in it "
        f"first: qwen3-rag ingest PATH{instead}"
    )


def check_models(pair: ModelPair, stored: Stored | None, collection: str) -> None:
    """Refuse models that a collection was not built with; nothing is loaded or downloaded.

    Args:
        pair: The models that were asked for.
        stored: The collection; None is taken for one that any model may build.
        collection: Its name.

    Raises:
        StoreError: It was built with another embedding model.
    """
    from ..engine.checkpoint import Checkpoint, identify

    noted = stored.built_with if stored else {}
    asked = identify(Checkpoint("embedding", pair.embedding))
    if not asked or noted.get("model", asked) == asked:
        return
    name = str(noted.get("name", noted["model"]))
    raise StoreError(
        f"Collection {collection!r} was built with {name!r}, and --models {pair.name} is "
        f"{pair.embedding!r}: their vectors cannot be compared. {_way_out(name)}"
    )


def _way_out(embedding: str) -> str:
    """Say what to add, where the embedding model is one of a pair that can be named."""
    path = Path(embedding)
    for name in ("demo", *SIZES):
        with contextlib.suppress(InvalidArgumentError):  # the demo may not be here
            if Path(model_pair(name).embedding).resolve() == path.resolve():
                return f"Add --models {name}, or take another --collection."
    if path.name == "embedding" and (path.parent / "reranker").is_dir():
        return f"Add --models {path.parent}, or take another --collection."
    return "Give the models that it was built with as --models, or take another --collection."
