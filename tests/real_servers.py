"""What tests of real model servers share: tiny checkpoints, texts, and the comparison."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from checkpoints import Shape
from components import cosine_distance
from servers import model_servers
from texts import random_text

from llamaindex_qwen3.errors import TruncationWarning

# vLLM cannot run narrower heads on a CPU.
SHAPE = Shape(head_dim=32)
# What servers' own products may differ by in float32.
COSINE_TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-4

SCRIPTS = ("latin_accented", "cyrillic", "arabic", "devanagari", "han", "hangul")
CUSTOM_TASK = "Given a claim, retrieve documents that support or refute the claim"
TEMPLATE = Path(__file__).parents[1] / "examples" / "serving" / "qwen3_reranker.jinja"


def texts(count: int, seed: int, longest: int) -> list[str]:
    """Return texts of the scripts in turn, of one to `longest` words."""
    rng = random.Random(seed)
    return [
        random_text(rng, SCRIPTS[i % len(SCRIPTS)], rng.randint(1, longest)) for i in range(count)
    ]


def vllm(
    directory: Path, role: model_servers.Role, data_dir: Path, **options: Any
) -> AbstractContextManager[model_servers.Server]:
    """Return a vLLM to start, or skip the test where there is none."""
    if reason := model_servers.unavailable("vllm"):
        pytest.skip(reason)
    return model_servers.vllm(directory, role, data_dir, **options)


def check_vectors(given: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    """Assert that vectors point where others do, each in its place."""
    assert len(given) == len(expected)
    distances = [
        cosine_distance(one, torch.tensor(other))
        for one, other in zip(given, expected, strict=True)
    ]
    assert max(distances) < COSINE_TOLERANCE, distances


@contextmanager
def quietly() -> Iterator[None]:
    """Let the local engine, which warns once per model, cut texts without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        yield


@contextmanager
def without_whole_prompts(server: model_servers.Server) -> Iterator[str]:
    """Yield the address of a proxy that passes on what is below /v1 only, as gateways do."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = 404, b'{"detail": "Not Found"}'
            if self.path.startswith("/v1/"):
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() in ("authorization", "content-type")
                }
                passed = client.request(self.command, self.path, content=body, headers=headers)
                status, answer = passed.status_code, passed.content
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            """Be quiet."""

    with (
        httpx.Client(base_url=server.base_url, timeout=60) as client,
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy,
    ):
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}"
        finally:
            proxy.shutdown()
            thread.join()
