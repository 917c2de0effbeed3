"""The store against the raw client of Milvus Lite: what the checks cost."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from llamaindex_qwen3.milvus import milvus_vector_store

DIMENSIONS = 1024
_TEXT = "A chunk of ordinary length, as an ingest of documentation makes them. " * 9


class _Model:
    """Stands for an embedding model: a store asks for its name and its dimension."""

    model_name = "random vectors"
    dim = DIMENSIONS


def measure(way: str, rows: int, batch: int = 1000, queries: int = 30) -> dict[str, Any]:
    """Fill a new database and query it, in a process of its own; return the figures."""
    code = f"from benchmarks.store import fill; fill({way!r}, {rows}, {batch}, {queries})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def fill(way: str, rows: int, batch: int, queries: int) -> None:
    """Add rows by the store or by the raw client, and print times and memory as JSON."""
    rng = np.random.default_rng(0)
    process = psutil.Process()
    seconds, memory = 0.0, []
    with tempfile.TemporaryDirectory() as directory:
        uri = str(Path(directory) / "bench.db")
        store = milvus_vector_store(_Model(), uri, "bench")  # type: ignore[arg-type]
        for start in range(0, rows, batch):
            vectors = rng.standard_normal((batch, DIMENSIONS), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            nodes = [
                TextNode(
                    id_=f"n{start + i}", text=f"{start + i} {_TEXT}", metadata={"file": "a.md"}
                )
                for i in range(batch)
            ]
            for node, vector in zip(nodes, vectors.tolist(), strict=True):
                node.embedding = vector
            # What the raw client is given is made beforehand: it measures the client alone.
            raw = store._rows(nodes) if way == "raw" else []
            began = time.perf_counter()
            if way == "raw":
                for part in range(0, batch, store.batch_size):
                    store.client.insert("bench", raw[part : part + store.batch_size])
                store.client.flush("bench")
            else:
                store.add(nodes)
            seconds += time.perf_counter() - began
            memory.append(process.memory_info().rss)
        times = []
        for _ in range(queries):
            vector = rng.standard_normal(DIMENSIONS).tolist()
            began = time.perf_counter()
            if way == "raw":
                store.client.search(
                    "bench", data=[vector], limit=10, output_fields=["*"], anns_field="embedding"
                )
            else:
                store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=10))
            times.append(time.perf_counter() - began)
    middle = memory[len(memory) // 2]
    print(
        json.dumps(
            {
                "ms a row": 1e3 * seconds / rows,
                "query p50, ms": 1e3 * statistics.median(times),
                "MB half-way": middle // 10**6,
                "MB at the end": memory[-1] // 10**6,
            }
        )
    )
