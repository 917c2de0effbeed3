"""Connections to Milvus Lite that wait for a slow model."""

from __future__ import annotations

from pathlib import Path

from components import embedder

from llamaindex_qwen3 import milvus_vector_store


def test_idle_connections_are_not_pinged(embedding_dir: Path, tmp_path: Path) -> None:
    """Ask gRPC for no pings: Lite's server ends a connection that is pinged while it is idle."""
    store = milvus_vector_store(embedder(embedding_dir), str(tmp_path / "a.db"), "a")
    handler = store.client._get_connection()
    assert handler._grpc_options["grpc.keepalive_time_ms"] >= 300_000
