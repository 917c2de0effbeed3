"""Measure the engine and its peers on this machine; tables on the terminal, JSON in results/."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import threading
import time
from typing import Annotated, Any

import torch
import typer

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.engine.network import PackedNetwork
from llamaindex_qwen3.prompts import DEFAULT_TASK, format_query

from . import peers
from .checkpoints import GEOMETRIES, checkpoint, parameters
from .measure import OURS, alternate, console, matrix_rate, ratio, report, seconds
from .texts import QUERY, texts, texts_of, tokens

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)

Size = Annotated[str, typer.Option(help=f"Geometry: {', '.join(GEOMETRIES)}.")]
Device = Annotated[str, typer.Option(help="torch device.")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16, for all contenders.")]
Threads = Annotated[int, typer.Option(help="Threads of torch on a CPU; 0 leaves them to it.")]
Rounds = Annotated[int, typer.Option(help="Times each contender runs, in turn.")]
Without = Annotated[list[str] | None, typer.Option(help="Contender to leave out; repeatable.")]


def _start(size: str, threads: int) -> None:
    if size not in GEOMETRIES:
        raise typer.BadParameter(f"--size {size}: give one of {', '.join(GEOMETRIES)}")
    if threads:
        torch.set_num_threads(threads)


def _table(times: dict[str, list[float]], baseline: str = OURS) -> list[dict[str, Any]]:
    return [
        {
            "contender": name,
            "seconds": statistics.median(runs),
            f"times {baseline}": ratio(times, name),
        }
        for name, runs in times.items()
    ]


@app.command()
def rerank(
    candidates: int = 10,
    size: Size = "0.6b",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 0,
    rounds: Rounds = 3,
    tokens_each: Annotated[int, typer.Option(help="Fixed length; 0 for mixed lengths.")] = 0,
    without: Without = None,
) -> None:
    """Score the candidates of one query: model card, sentence-transformers, LlamaIndex, this."""
    _start(size, threads)
    directory, kind = checkpoint("reranker", size, device), getattr(torch, dtype)
    documents = (
        texts_of(directory, [tokens_each] * candidates)
        if tokens_each
        else texts(directory, candidates)
    )
    ours = Qwen3Reranker(str(directory), dtype=dtype, device=device).load()  # type: ignore[arg-type]
    scorers: dict[str, peers.Score] = {OURS: ours.score}
    for name, make in (
        ("model card", peers.model_card_reranker),
        ("CrossEncoder", peers.cross_encoder),
        ("SentenceTransformerRerank", peers.llama_index_reranker),
    ):
        if name not in (without or ()):
            scorers[name] = make(directory, device, kind)
    # Warm up, and see that all compute the same.
    warm = {name: score(QUERY, documents[:3]) for name, score in scorers.items()}
    times = alternate(
        {name: lambda s=score: s(QUERY, documents) for name, score in scorers.items()}, rounds
    )
    rows = _table(times)
    for row in rows:
        off = (abs(a - b) for a, b in zip(warm[row["contender"]], warm[OURS], strict=True))
        row["score off by"] = f"{max(off):.1e}"
    settings = {
        "size": size,
        "dtype": dtype,
        "device": device,
        "count": candidates,
        "rounds": rounds,
    }
    report("rerank", rows, {**settings, "tokens": tokens(directory, documents)})


@app.command()
def ingest(
    chunks: int = 500,
    size: Size = "0.6b",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 0,
    rounds: Rounds = 1,
    without: Without = None,
) -> None:
    """Embed chunks: sentence-transformers, LlamaIndex's HuggingFaceEmbedding, this."""
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from sentence_transformers import SentenceTransformer

    _start(size, threads)
    directory = checkpoint("embedding", size, device)
    documents = texts(directory, chunks)
    kwargs = {"dtype": getattr(torch, dtype)}
    ours = Qwen3Embedding(str(directory), dtype=dtype, device=device).load()  # type: ignore[arg-type]
    encoder = SentenceTransformer(str(directory), device=device, model_kwargs=kwargs)
    plain = HuggingFaceEmbedding(str(directory), device=device, model_kwargs=kwargs)
    large = plain.model_copy(update={"embed_batch_size": 128})
    contenders: dict[str, Any] = {
        OURS: ours.get_text_embedding_batch,
        "sentence-transformers, 32": lambda d: encoder.encode(d, batch_size=32).tolist(),
        "HuggingFaceEmbedding, 10": plain.get_text_embedding_batch,
        "HuggingFaceEmbedding, 128": large.get_text_embedding_batch,
    }
    for name in without or ():
        contenders.pop(name, None)
    warm = {name: embed(documents[:4]) for name, embed in contenders.items()}
    times = alternate(
        {name: lambda e=embed: e(documents) for name, embed in contenders.items()}, rounds
    )
    rows = _table(times)
    total = tokens(directory, documents)
    for row in rows:
        row["tokens/s"] = round(total / row["seconds"])
        cosines = torch.cosine_similarity(
            torch.tensor(warm[row["contender"]]), torch.tensor(warm[OURS])
        )
        row["1 - cosine"] = f"{1 - float(cosines.min()):.1e}"
    settings = {"size": size, "dtype": dtype, "device": device, "count": chunks, "rounds": rounds}
    report("ingest", rows, {**settings, "tokens": total})


@app.command()
def query(
    size: Size = "0.6b",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 0,
    rounds: Rounds = 7,
    chunks: Annotated[
        int, typer.Option(help="Chunks of the ingest that queries interrupt.")
    ] = 1000,
    during: Annotated[int, typer.Option(help="Queries during the ingest.")] = 40,
) -> None:
    """Embed queries: one, 32 at once, and during an ingest."""
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    _start(size, threads)
    directory = checkpoint("embedding", size, device)
    ours = Qwen3Embedding(str(directory), dtype=dtype, device=device).load()  # type: ignore[arg-type]
    low = Qwen3Embedding(str(directory), dtype="bfloat16", device=device).load()
    # Told the prompt, which it drops if not.
    plain = HuggingFaceEmbedding(
        str(directory),
        device=device,
        model_kwargs={"dtype": getattr(torch, dtype)},
        query_instruction=format_query(DEFAULT_TASK, ""),
    )
    models = {OURS: ours, f"{OURS}, bfloat16": low, "HuggingFaceEmbedding": plain}
    # As long as most questions are.
    queries = texts_of(directory, [12] * 32, seed=1)
    for model in models.values():
        model.get_query_embedding(queries[0])
    one = alternate(
        {n: lambda m=m: m.get_query_embedding(queries[0]) for n, m in models.items()}, rounds
    )

    async def together(model: Any) -> None:
        await asyncio.gather(*(model.aget_query_embedding(text) for text in queries))

    many = alternate({n: lambda m=m: asyncio.run(together(m)) for n, m in models.items()}, 3)
    rows = [
        {
            "contender": name,
            "one query, s": statistics.median(one[name]),
            "share of HuggingFaceEmbedding": 1 / ratio(one, "HuggingFaceEmbedding", name),
            "32 queries, s": statistics.median(many[name]),
            "times its throughput": ratio(many, "HuggingFaceEmbedding", name),
        }
        for name in models
    ]
    waits = _waits(ours, texts(directory, chunks), during)
    settings = {"size": size, "dtype": dtype, "device": device, "tokens of a query": 12}
    settings["queue, us"] = round(_queue_microseconds(ours))
    p95 = statistics.quantiles(waits, n=20)[-1]
    report("query", rows, {**settings, "passes waited for, p95": p95, "most": max(waits)})


def _queue_microseconds(model: Qwen3Embedding) -> float:
    """Return what a job that does nothing takes from the caller to the worker and back."""
    engine = model._slot.engine

    def nothing() -> Any:
        return
        yield

    def once() -> float:
        start = time.perf_counter()
        engine._submit(nothing(), None, False).result()
        return 1e6 * (time.perf_counter() - start)

    return statistics.median(once() for _ in range(300))


def _waits(model: Qwen3Embedding, documents: list[str], count: int) -> list[int]:
    """Return how many passes of an ingest each query waits for, the one then running included."""
    started = 0
    forward = PackedNetwork.forward

    def counted(self: PackedNetwork, segments: Any) -> Any:
        nonlocal started
        if sum(len(segment.ids) for segment in segments) > 64:
            started += 1
        return forward(self, segments)

    PackedNetwork.forward = counted  # type: ignore[method-assign]
    waits: list[int] = []
    loop = asyncio.new_event_loop()
    ingest = loop.create_task(model.aget_text_embedding_batch(documents))
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([ingest])))
    thread.start()
    try:
        while started == 0:
            time.sleep(0.01)
        for i in range(count):
            before = started
            model.get_query_embedding(f"{QUERY} {i}")
            # The pass that ran when the query came counts: it had started before.
            waits.append(started - before + 1)
            time.sleep(0.05)
            if ingest.done():
                break
    finally:
        loop.call_soon_threadsafe(ingest.cancel)
        thread.join()
        loop.close()
        PackedNetwork.forward = forward  # type: ignore[method-assign]
    return waits


@app.command()
def memory(size: Size = "0.6b", dtype: Dtype = "float32") -> None:
    """Measure the peak of memory over the weights while reranking, each in its own process."""
    _start(size, 0)
    checkpoint("reranker", size)
    rows = []
    for candidates, length in ((10, 525), (100, 1024)):
        args = [
            sys.executable,
            "-m",
            "benchmarks",
            "peak",
            str(candidates),
            str(length),
            size,
            dtype,
        ]
        out = subprocess.run(args, capture_output=True, text=True, check=True).stdout
        rows.append({"candidates": candidates, "tokens each": length, "MB over weights": int(out)})
    report("memory", rows, {"size": size, "dtype": dtype, "device": "cpu"})


@app.command()
def store(rows: int = 100_000, rounds: Rounds = 1) -> None:
    """Fill Milvus Lite by the store and by the raw client, and query it."""
    from .store import measure as measure_store

    runs: dict[str, list[dict[str, Any]]] = {"store": [], "raw": []}
    for _ in range(rounds):
        for way, done in runs.items():
            done.append(measure_store(way, rows))
            console.print(f"  {way}: {done[-1]}")
    table: list[dict[str, Any]] = [
        {
            "contender": OURS if way == "store" else "raw client",
            **{key: statistics.median(run[key] for run in done) for key in done[0]},
        }
        for way, done in runs.items()
    ]
    for row in table:
        for key in ("ms a row", "query p50, ms"):
            row[f"{key}: ratio"] = row[key] / table[1][key]
    report("store", table, {"count": rows, "dimensions": 1024, "device": "cpu"})


@app.command()
def unchanged(chunks: int = 10_000) -> None:
    """Ingest a folder twice with the demo model: what the second time costs."""
    from .unchanged import measure as measure_unchanged

    first, second, report_ = measure_unchanged(chunks)
    rows = [
        {"run": "first", "seconds": first, "share": 1.0, "embedded": report_.unchanged},
        {"run": "second", "seconds": second, "share": second / first, "embedded": report_.added},
    ]
    report("unchanged", rows, {"count": chunks, "device": "cpu"})


@app.command()
def served(
    batches: Annotated[int, typer.Option(help="Batches of 32 texts.")] = 160,
    size: Size = "0.6b",
    milliseconds: Annotated[float, typer.Option(help="What the server takes for one.")] = 50,
    together: Annotated[
        int, typer.Option(help="Batches that the server works on together; 1 is one GPU.")
    ] = 1,
    at_once: Annotated[int, typer.Option(help="Requests in flight.")] = 32,
    tokens_each: Annotated[int, typer.Option(help="Tokens of a text.")] = 20,
    queries: Annotated[int, typer.Option(help="Queries, one after another.")] = 40,
    rounds: Rounds = 3,
) -> None:
    """Embed by a server that takes a fixed time: what the client adds, and a bare client."""
    from .served import latency, throughput

    _start(size, 0)
    settings = {"size": size, "device": "cpu", "server, ms": milliseconds}
    rows = throughput(size, milliseconds, together, batches, at_once, tokens_each, rounds)
    report(
        "served" if together == 1 else f"served-{together}-together",
        rows,
        {
            **settings,
            "count": batches,
            "in flight": at_once,
            "together": together,
            "rounds": rounds,
        },
    )
    rows = latency(size, milliseconds, queries)
    report("served-query", rows, {**settings, "count": queries, "in flight": 1})


@app.command(hidden=True)
def peak(candidates: int, length: int, size: str, dtype: str) -> None:
    """Print the peak of resident memory over that after loading, in MB."""
    import psutil

    directory = checkpoint("reranker", size)
    # The template has about 75 tokens.
    documents = texts_of(directory, [length - 75] * candidates)
    model = Qwen3Reranker(str(directory), dtype=dtype).load()  # type: ignore[arg-type]
    process = psutil.Process(os.getpid())
    before = most = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model.score(QUERY, documents)
    done.set()
    watcher.join()
    print((most - before) // 10**6)


@app.command()
def roofline(
    candidates: int = 100,
    chunks: int = 500,
    size: Size = "0.6b",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 0,
    rounds: Rounds = 1,
    tokens_each: Annotated[int, typer.Option(help="Fixed length; 0 for mixed lengths.")] = 0,
    profile: Annotated[bool, typer.Option(help="Print where the time goes.")] = False,
) -> None:
    """Compare with the arithmetic of the distinct tokens alone at the machine's matrix rate."""
    _start(size, threads)
    kind = getattr(torch, dtype)
    rows = []
    for task, role, count in (("rerank", "reranker", candidates), ("ingest", "embedding", chunks)):
        if not count:
            continue
        directory = checkpoint(role, size, device)
        documents = (
            texts_of(directory, [tokens_each] * count) if tokens_each else texts(directory, count)
        )
        seen: list[int] = []
        forward = PackedNetwork.forward

        def counted(
            self: Any, segments: Any, seen: list[int] = seen, forward: Any = forward
        ) -> Any:
            seen.append(sum(len(segment.ids) for segment in segments))
            return forward(self, segments)

        if role == "reranker":
            reranker = Qwen3Reranker(str(directory), dtype=dtype, device=device).load()  # type: ignore[arg-type]
            reranker.score("Warm up", documents[:2])
            work: Any = lambda: reranker.score(QUERY, documents)  # noqa: E731, B023
        else:
            embedding = Qwen3Embedding(str(directory), dtype=dtype, device=device).load()  # type: ignore[arg-type]
            embedding.get_text_embedding_batch(documents[:2])
            work = lambda: embedding.get_text_embedding_batch(documents)  # noqa: E731, B023
        if profile:
            _profile(work)
        PackedNetwork.forward = counted  # type: ignore[method-assign, assignment]
        try:
            for _ in range(rounds):
                rates = [matrix_rate(device, kind)]
                seen.clear()
                took = seconds(work)
                rates.append(matrix_rate(device, kind))
                flops = 2 * parameters(size) * sum(seen)
                rows.append(
                    {
                        "task": f"{task} {count}",
                        "tokens run": sum(seen),
                        "passes": len(seen),
                        "seconds": took,
                        "GFLOP/s": round(flops / took / 1e9),
                        "matrix rate": round(statistics.mean(rates) / 1e9),
                        "share": flops / took / statistics.mean(rates),
                    }
                )
                console.print(rows[-1])
        finally:
            PackedNetwork.forward = forward  # type: ignore[method-assign]
    report("roofline", rows, {"size": size, "dtype": dtype, "device": device, "count": candidates})


def _profile(work: Any) -> None:
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        work()
    console.print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=16))


if __name__ == "__main__":
    app()
