"""An ingest of a folder that is stored already, against the first one."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from llamaindex_qwen3 import Qwen3Embedding, milvus_vector_store
from llamaindex_qwen3.pipeline import IngestReport, ingest

from .checkpoints import DEMO, ROOT

_SECTIONS = 10


def measure(chunks: int) -> tuple[float, float, IngestReport]:
    """Ingest about this many chunks twice with the demo model; return both times and the report."""
    rng = random.Random(0)
    pages = sorted((ROOT / "examples" / "data" / "milvus_faq").glob("*.md"))
    words = [word for page in pages for word in page.read_text("utf-8").split() if word[0] != "#"]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory) / "docs"
        folder.mkdir()
        for i in range(chunks // _SECTIONS):
            parts = []
            for j in range(_SECTIONS):
                start = rng.randrange(len(words) - 100)
                parts.append(f"# Part {j} of {i}\n\n{' '.join(words[start : start + 100])}\n")
            (folder / f"{i:05}.md").write_text("\n".join(parts), encoding="utf-8")
        model = Qwen3Embedding(str(DEMO / "embedding"), dtype="float32").load()
        store = milvus_vector_store(model, str(Path(directory) / "bench.db"))
        times = []
        for _ in range(2):
            began = time.perf_counter()
            report = ingest([folder], model, store)
            times.append(time.perf_counter() - began)
    return times[0], times[1], report
