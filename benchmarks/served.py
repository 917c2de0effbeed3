"""What the client of model servers adds to a server that takes a fixed time for each batch.

The server runs in a process of its own: `python -m benchmarks.served MILLISECONDS TOGETHER DIRECTORY`.
It works on so many batches together, 1 as one GPU does, and answers in vLLM's shape, from a stock of
vectors, so that its own work stays small.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

STOCK = 499
BATCH = 32


# --- the server ---------------------------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """Answers the requests of one connection, each so long after it came."""

    posts = 0
    took_s = 0.05
    # When each of those that work together is done with what it was given.
    free: list[float]
    stock: list[bytes]
    tokenizer: Tokenizer
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-len")]
        if len(body) < (int(lengths[0].split(b":")[1]) if lengths else 0):
            return
        self.data = b""
        method, path, _ = head.split(b" ", 2)
        if method == b"POST" and path == b"/v1/embeddings":
            now = asyncio.get_running_loop().time()
            due = max(now, heapq.heappop(self.free)) + self.took_s
            heapq.heappush(self.free, due)
            type(self).posts += 1
            answer = self._embed(json.loads(body)["input"])
            # Its own work is a part of the time that it takes.
            asyncio.get_running_loop().call_at(due, self._send, b"200 OK", answer)
        elif path in (b"/v1/models", b"/version", b"/posts"):
            self._send(b"200 OK", json.dumps(self._about(path.decode())).encode())
        else:
            self._send(b"404 Not Found", b'{"detail": "Not Found"}')

    def _embed(self, rows: list[list[int] | str]) -> bytes:
        # Texts come at the first contact only: they have the vectors of their ids.
        ids = [self.tokenizer.encode(row).ids if isinstance(row, str) else row for row in rows]
        data = b",".join(
            b'{"index":%d,"object":"embedding","embedding":"%s"}'
            % (i, self.stock[hash(tuple(row)) % STOCK])
            for i, row in enumerate(ids)
        )
        return b'{"object":"list","model":"bench","usage":{},"data":[' + data + b"]}"

    def _about(self, path: str) -> Any:
        card = {"id": "bench", "object": "model", "owned_by": "vllm", "max_model_len": 40960}
        return {
            "/v1/models": {"object": "list", "data": [card]},
            "/version": {"version": "0.32.0"},
            "/posts": type(self).posts,
        }[path]

    def _send(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)


async def _serve(milliseconds: float, together: int, path: Path) -> None:
    _Connection.took_s = milliseconds / 1e3
    _Connection.free = [0.0] * together
    _Connection.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    dimensions = json.loads((path / "config.json").read_text("utf-8"))["hidden_size"]
    vectors = np.random.default_rng(0).standard_normal((STOCK, dimensions)).astype("<f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    _Connection.stock = [base64.b64encode(vector.tobytes()) for vector in vectors]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)
    await ended.wait()


@contextmanager
def server(milliseconds: float, together: int, path: Path) -> Iterator[int]:
    """Run the server; yield its port."""
    arguments = [str(milliseconds), str(together), str(path)]
    command = [sys.executable, "-m", "benchmarks.served", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def posts(port: int) -> int:
    """Return how many batches the server was asked for."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/posts")
        return int(connection.getresponse().read())
    finally:
        connection.close()


# --- the bare client ------------------------------------------------------------------------------


class Bare:
    """Sends payloads made beforehand over open connections and reads the answers whole."""

    def __init__(self, port: int, decodes: bool) -> None:
        self.port, self.decodes = port, decodes

    def run(self, payloads: list[bytes], at_once: int) -> int:
        """Send all payloads; return how many vectors came back, if they are decoded."""
        return asyncio.run(self._run(payloads, at_once))

    async def _run(self, payloads: list[bytes], at_once: int) -> int:
        left, count = iter(payloads), 0

        async def work() -> None:
            nonlocal count
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
            for payload in left:
                body = await exchange(reader, writer, payload)
                if self.decodes:
                    count += len(decoded(body))
            writer.close()

        await asyncio.gather(*(work() for _ in range(at_once)))
        return count


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, payload: bytes
) -> bytes:
    """Send one payload and return the body of the answer."""
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(payload) + payload)
    headers = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(headers.partition(b"Content-Length: ")[2].split()[0]))


def decoded(body: bytes) -> list[list[float]]:
    """Return the vectors of an answer as lists, which is what callers of the components get."""
    return [
        np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4").tolist()
        for item in json.loads(body)["data"]
    ]


def payloads_of(rows: list[list[int]]) -> list[bytes]:
    """Return the bodies of the requests for rows of ids."""
    return [
        json.dumps(
            {"model": "bench", "input": rows[i : i + BATCH], "encoding_format": "base64"}
        ).encode()
        for i in range(0, len(rows), BATCH)
    ]


# --- the measurement ------------------------------------------------------------------------------


@contextmanager
def directory(size: str) -> Iterator[Path]:
    """Yield a directory of a geometry without weights, which a served model does with."""
    from .checkpoints import DEMO, config

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        config(size).save_pretrained(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path / name).write_bytes((DEMO / "embedding" / name).read_bytes())
        yield path


def rows_of(path: Path, texts: list[str]) -> list[list[int]]:
    """Return the ids of texts, end token included."""
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    return [[*row.ids, end] for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def throughput(
    size: str,
    milliseconds: float,
    together: int,
    batches: int,
    at_once: int,
    tokens: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Embed many batches with so many requests in flight: seconds over what the server takes.

    Returns:
        For the bare client, the bare client that decodes what it gets, and the component, async and
        sync, medians: seconds, the share over batches / together * milliseconds, and the client's own
        time on the CPU, which is the steadier figure on a machine that has other work.
    """
    from llamaindex_qwen3 import Qwen3Embedding

    from .measure import OURS, alternate
    from .texts import texts_of

    with directory(size) as path, server(milliseconds, together, path) as port:
        texts = [
            f"{i} {text}" for i, text in enumerate(texts_of(path, [tokens] * (BATCH * batches)))
        ]
        payloads = payloads_of(rows_of(path, texts))
        model = Qwen3Embedding(
            str(path),
            base_url=f"http://127.0.0.1:{port}",
            max_in_flight=at_once,
        )
        model.get_text_embedding("warm")
        ways: dict[str, Callable[[], Any]] = {
            "bare client": lambda: Bare(port, False).run(payloads, at_once),
            "bare client, decoding": lambda: Bare(port, True).run(payloads, at_once),
            OURS: lambda: asyncio.run(model.aget_text_embedding_batch(texts)),
            f"{OURS}, sync": lambda: model.get_text_embedding_batch(texts),
        }
        asked: dict[str, int] = {}
        cpu: dict[str, list[float]] = {name: [] for name in ways}

        def counted(name: str) -> None:
            before, began = posts(port), time.process_time()
            ways[name]()
            cpu[name].append(time.process_time() - began)
            asked[name] = posts(port) - before

        # Connections are made before, as they are kept for long.
        counted(OURS)
        cpu[OURS].clear()
        times = alternate({name: partial(counted, name) for name in ways}, rounds)
    rows = []
    for name, runs in times.items():
        ideal = asked[name] / together * milliseconds / 1e3
        seconds = statistics.median(runs)
        rows.append(
            {
                "contender": name,
                "batches": asked[name],
                "seconds": seconds,
                "ideal": ideal,
                "overhead": seconds / ideal - 1,
                "CPU ms a batch": 1e3 * statistics.median(cpu[name]) / asked[name],
            }
        )
    return rows


def latency(size: str, milliseconds: float, queries: int) -> list[dict[str, Any]]:
    """Ask for one query after another: milliseconds over what the server takes."""
    from llamaindex_qwen3 import Qwen3Embedding
    from llamaindex_qwen3.prompts import DEFAULT_TASK, format_query

    from .measure import OURS
    from .texts import texts_of

    with directory(size) as path, server(milliseconds, 1, path) as port:
        texts = texts_of(path, [12] * queries)
        rows = rows_of(path, [format_query(DEFAULT_TASK, text) for text in texts])
        model = Qwen3Embedding(str(path), base_url=f"http://127.0.0.1:{port}")
        model.get_query_embedding("warm")
        times = asyncio.run(_latencies(model, texts, [payloads_of([row])[0] for row in rows], port))
    return [
        {
            "contender": name if name == "bare client" else f"{OURS}, {name}",
            "p50, ms": 1e3 * statistics.median(runs),
            "p95, ms": 1e3 * statistics.quantiles(runs, n=20)[-1],
            "over the server, ms": 1e3 * statistics.median(runs) - milliseconds,
        }
        for name, runs in times.items()
    ]


async def _latencies(
    model: Any, texts: list[str], payloads: list[bytes], port: int
) -> dict[str, list[float]]:
    """Return the seconds of each query by each client, in turn."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    times: dict[str, list[float]] = {"bare client": [], "async": [], "sync": []}
    for text, payload in zip(texts, payloads, strict=True):
        began = time.perf_counter()
        await exchange(reader, writer, payload)
        times["bare client"].append(time.perf_counter() - began)
        began = time.perf_counter()
        await model.aget_query_embedding(text)
        times["async"].append(time.perf_counter() - began)
        began = time.perf_counter()
        model.get_query_embedding(text)
        times["sync"].append(time.perf_counter() - began)
    writer.close()
    return times


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
