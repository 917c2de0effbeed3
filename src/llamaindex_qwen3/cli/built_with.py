"""Which models a collection was built with, as it notes itself, before any is loaded."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError, StoreError
from ..models import SIZES, ModelPair, model_pair


def check_models(pair: ModelPair, uri: str, collection: str, token: str) -> None:
    """Refuse models that the collection was not built with; nothing is loaded or downloaded.

    Args:
        pair: The models that were asked for.
        uri: Of the Milvus database.
        collection: Its name; it must exist.
        token: Of the Milvus server.

    Raises:
        StoreError: It was built with another embedding model.
    """
    from ..engine.checkpoint import Checkpoint, identify

    noted = _record(uri, collection, token)
    asked = identify(Checkpoint("embedding", pair.embedding))
    if not asked or noted.get("model", asked) == asked:
        return
    name = str(noted.get("name", noted["model"]))
    raise StoreError(
        f"Collection {collection!r} was built with {name!r}, and --models {pair.name} is "
        f"{pair.embedding!r}: their vectors cannot be compared. {_way_out(name)}"
    )


def _record(uri: str, collection: str, token: str) -> dict[str, Any]:
    from ..milvus_connection import BUILT_WITH, check_uri, connect
    from ..milvus_errors import plain_errors

    uri = check_uri(uri)
    with plain_errors(uri):
        described = connect(uri, token).describe_collection(collection)
    record: dict[str, Any] = json.loads((described.get("properties") or {}).get(BUILT_WITH) or "{}")
    return record


def _way_out(embedding: str) -> str:
    """Say what to add, where the embedding model is one of a pair that can be named."""
    path = Path(embedding)
    for name in ("demo", *SIZES):
        with contextlib.suppress(InvalidArgumentError):  # the demo may not be here
            if Path(model_pair(name).embedding).resolve() == path.resolve():
                return f"Add --models {name}."
    if path.name == "embedding" and (path.parent / "reranker").is_dir():
        return f"Add --models {path.parent}."
    return "Give the models that it was built with as --models, or another --collection."
