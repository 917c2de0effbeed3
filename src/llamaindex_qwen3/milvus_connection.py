"""Addresses of Milvus and connections to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pymilvus import MilvusClient

from .errors import InvalidArgumentError, StoreError
from .milvus_errors import plain_errors

# The collection's property that notes what its vectors depend on, as JSON.
BUILT_WITH = "llamaindex_qwen3.built_with"


def check_uri(uri: str) -> str:
    """Return a usable uri, with ~ expanded in the path of a Milvus Lite database."""
    uri = str(uri)
    if "://" in uri:
        return uri
    path = Path(uri).expanduser()
    if path.suffix != ".db":
        raise InvalidArgumentError(
            f"uri={uri!r} is neither an address (http://localhost:19530) nor a path that ends in .db "
            "(./milvus_qwen3.db)."
        )
    if not path.parent.is_dir():
        raise StoreError(
            f"uri={uri!r}: the directory {str(path.parent)!r} does not exist. Create it first."
        )
    return str(path)


def collection_has_rows(uri: str, collection_name: str, token: str = "") -> bool:
    """Say whether a collection exists and holds something, without creating anything.

    Raises:
        StoreError: The store cannot be reached.
    """
    with plain_errors(check_uri(uri)):
        client = holding(uri, collection_name, token)
        if client is None:
            return False
        client.load_collection(collection_name)
        return bool(client.query(collection_name, filter="", limit=1, output_fields=["id"]))


def holding(uri: str, collection_name: str, token: str = "") -> MilvusClient | None:
    """Connect to a database that has a collection; None where there is none. Nothing is created."""
    uri = check_uri(uri)
    if "://" not in uri and not Path(uri).exists():
        return None
    client = connect(uri, token)
    return client if client.has_collection(collection_name) else None


def connect(uri: str, token: str = "", **options: Any) -> MilvusClient:
    """Open a connection that Milvus Lite does not end when it has been idle for half a minute."""
    return MilvusClient(uri=uri, token=token, **patient(uri, options))


def patient(uri: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a client with those that keep an idle connection to Milvus Lite."""
    # pymilvus pings every ten seconds, which Lite's server takes for abuse: "Too many pings".
    if "://" in uri:
        return options
    pings = {"grpc.keepalive_time_ms": 600_000, **options.get("grpc_options", {})}
    return {**options, "grpc_options": pings}
