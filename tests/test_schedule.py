"""Who waits for whom: event loops never, queries for one forward pass at most.

Forward passes are held up in the thread that computes until the event loop, or another thread,
has done what it must be able to do meanwhile. No test measures time: the timeouts only end a
test that would otherwise hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from components import COSINE_TOLERANCE, candidates, cosine_distance, embedder, reranker
from llama_index.core.schema import TextNode
from passes import ForwardPasses
from reference import ReferenceEmbedder
from texts import random_texts
from transformers import Qwen3Model

TIMEOUT_S = 15.0
TEXTS = random_texts(300, 24, longest=8)
TICKS = 20

CALLS: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
    "query": lambda model, _: model.aget_query_embedding("a"),
    "text": lambda model, _: model.aget_text_embedding("a"),
    "texts": lambda model, _: model.aget_text_embedding_batch(TEXTS),
    "nodes": lambda model, _: model.acall([TextNode(text="a")]),
    "scores": lambda _, ranker: ranker.ascore("a", TEXTS[:3]),
    "rerank": lambda _, ranker: ranker.apostprocess_nodes(candidates(["a"]), query_str="b"),
}


async def ticks_until(enough: threading.Event) -> None:
    """Tick for ever, and set the event at the twentieth tick."""
    for tick in range(1_000_000):
        if tick == TICKS:
            enough.set()
        await asyncio.sleep(0.001)


async def with_ticker(enough: threading.Event, work: Awaitable[Any]) -> Any:
    """Await `work` on a loop that also has a ticker to run."""
    ticker = asyncio.create_task(ticks_until(enough))
    try:
        return await work
    finally:
        ticker.cancel()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_async_calls_leave_the_loop_free(
    embedding_dir: Path,
    reranker_dir: Path,
    passes: ForwardPasses,
    call: Callable[[Any, Any], Awaitable[Any]],
) -> None:
    """Run the ticker while the first forward pass is held up."""
    model, ranker = embedder(embedding_dir).load(), reranker(reranker_dir).load()
    enough = threading.Event()
    ticked: list[bool] = []
    passes.before = lambda _: ticked.append(enough.wait(TIMEOUT_S if not ticked else 0))
    assert asyncio.run(with_ticker(enough, call(model, ranker))) is not None
    assert ticked[0]


def test_blocking_is_noticed(embedding_dir: Path, passes: ForwardPasses) -> None:
    """Show that the test above fails for a call that blocks the loop."""
    model = embedder(embedding_dir).load()
    enough = threading.Event()
    ticked: list[bool] = []
    passes.before = lambda _: ticked.append(enough.wait(0.2))

    async def blocking() -> list[float]:
        return model.get_text_embedding("a")

    asyncio.run(with_ticker(enough, blocking()))
    assert ticked == [False]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_first_async_call_leaves_the_loop_free(
    make_embedding: Callable[..., Path],
    make_reranker: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[Any, Any], Awaitable[Any]],
) -> None:
    """Run the ticker while the weights are being loaded, too."""
    model, ranker = embedder(make_embedding()), reranker(make_reranker())
    enough = threading.Event()
    ticked: list[bool] = []
    build = Qwen3Model.__init__

    def slow(self: Qwen3Model, *args: Any, **kwargs: Any) -> None:
        ticked.append(enough.wait(TIMEOUT_S))
        build(self, *args, **kwargs)

    monkeypatch.setattr(Qwen3Model, "__init__", slow)
    asyncio.run(with_ticker(enough, call(model, ranker)))
    assert ticked
    assert all(ticked)


def test_two_runs_of_a_loop(embedding_dir: Path, reranker_dir: Path) -> None:
    """Work again in a second event loop after the first is closed."""
    model, ranker = embedder(embedding_dir), reranker(reranker_dir)

    async def work() -> tuple[list[list[float]], list[float]]:
        return await asyncio.gather(
            model.aget_text_embedding_batch(TEXTS[:3]), ranker.ascore("a", TEXTS[:3])
        )

    first, second = asyncio.run(work()), asyncio.run(work())
    assert first[0] == second[0]
    assert first[1] == pytest.approx(second[1], abs=1e-6)


def test_async_equals_sync(embedding_dir: Path, reranker_dir: Path) -> None:
    """Give the same numbers sync and async."""
    model, ranker = embedder(embedding_dir), reranker(reranker_dir)
    close = functools.partial(pytest.approx, abs=1e-6)
    query = model.get_query_embedding("a")
    assert asyncio.run(model.aget_query_embedding("a")) == close(query)
    assert asyncio.run(model.aget_text_embedding("a")) == close(model.get_text_embedding("a"))
    vectors = asyncio.run(model.aget_text_embedding_batch(TEXTS))
    for vector, same in zip(vectors, model.get_text_embedding_batch(TEXTS), strict=True):
        assert vector == close(same)
    assert asyncio.run(ranker.ascore("a", TEXTS)) == close(ranker.score("a", TEXTS))


def test_async_batches_at_once(embedding_dir: Path) -> None:
    """Keep texts in order when LlamaIndex starts all batches together, workers or not."""
    reference = ReferenceEmbedder(embedding_dir)
    for workers in (None, 2):
        model = embedder(embedding_dir, embed_batch_size=5, num_workers=workers)
        vectors = asyncio.run(model.aget_text_embedding_batch(TEXTS))
        for text, vector in zip(TEXTS, vectors, strict=True):
            assert cosine_distance(vector, reference.document(text)) < COSINE_TOLERANCE


async def cancel_in_first_pass(passes: ForwardPasses, work: Awaitable[Any]) -> None:
    """Cancel `work` while its first forward pass runs, and await its end."""
    loop = asyncio.get_running_loop()
    cancelled = threading.Event()

    async def cancel() -> None:
        task.cancel()
        # Let the cancellation reach whoever awaits, before the pass goes on.
        for _ in range(TICKS):
            await asyncio.sleep(0)
        cancelled.set()

    def before(number: int) -> None:
        if number == first:
            asyncio.run_coroutine_threadsafe(cancel(), loop)
            assert cancelled.wait(TIMEOUT_S)

    first = passes.count + 1
    passes.before = before
    task = asyncio.ensure_future(work)
    with pytest.raises(asyncio.CancelledError):
        await task
    passes.before = None


def test_cancelled_embedding_stops(embedding_dir: Path, passes: ForwardPasses) -> None:
    """Run no further forward pass for a call that nobody waits for."""
    model = embedder(embedding_dir, max_batch_tokens=64, embed_batch_size=100).load()
    whole = passes.during(lambda: asyncio.run(model.aget_text_embedding_batch(TEXTS)))
    assert whole >= 6

    async def scenario() -> None:
        await cancel_in_first_pass(passes, model.aget_text_embedding_batch(TEXTS))
        # Comes after anything that would be left of the cancelled call.
        await model.aget_text_embedding("a")

    assert passes.during(lambda: asyncio.run(scenario())) == 2


def test_cancelled_scoring_stops(reranker_dir: Path, passes: ForwardPasses) -> None:
    """Run no further forward pass for a call that nobody waits for."""
    model = reranker(reranker_dir, max_batch_tokens=200).load()
    whole = passes.during(lambda: asyncio.run(model.ascore("a", TEXTS)))
    one = passes.during(lambda: asyncio.run(model.ascore("a", ["b"])))
    assert whole >= one + 5

    async def scenario() -> None:
        await cancel_in_first_pass(passes, model.ascore("a", TEXTS))
        await model.ascore("a", ["b"])

    assert passes.during(lambda: asyncio.run(scenario())) == 1 + one


def test_cancelled_reranking_stops(reranker_dir: Path, passes: ForwardPasses) -> None:
    """Stop for the LlamaIndex method, too."""
    model = reranker(reranker_dir, max_batch_tokens=200).load()
    one = passes.during(lambda: asyncio.run(model.ascore("a", ["b"])))

    async def scenario() -> None:
        work = model.apostprocess_nodes(candidates(TEXTS), query_str="a")
        await cancel_in_first_pass(passes, work)
        await model.ascore("a", ["b"])

    assert passes.during(lambda: asyncio.run(scenario())) == 1 + one


def test_call_cancelled_in_the_queue_never_runs(embedding_dir: Path, passes: ForwardPasses) -> None:
    """Run no pass at all for a call that was cancelled while it waited."""
    model = embedder(embedding_dir, max_batch_tokens=64, embed_batch_size=100).load()
    alone = passes.during(lambda: asyncio.run(model.aget_text_embedding_batch(TEXTS)))

    async def scenario() -> list[list[float]]:
        loop = asyncio.get_running_loop()
        cancelled = threading.Event()

        async def queue_and_cancel() -> None:
            waiting = asyncio.ensure_future(model.aget_text_embedding_batch(TEXTS[::-1]))
            for _ in range(TICKS):
                await asyncio.sleep(0.005)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            cancelled.set()

        def before(number: int) -> None:
            if number == first:
                asyncio.run_coroutine_threadsafe(queue_and_cancel(), loop)
                assert cancelled.wait(TIMEOUT_S)

        first = passes.count + 1
        passes.before = before
        return await model.aget_text_embedding_batch(TEXTS)

    assert passes.during(lambda: asyncio.run(scenario())) == alone


@pytest.mark.parametrize("asynchronous", [False, True])
def test_query_waits_for_one_pass_at_most(
    embedding_dir: Path, passes: ForwardPasses, asynchronous: bool
) -> None:
    """Serve a query that comes during an ingest before the ingest's next forward pass."""
    model = embedder(embedding_dir, max_batch_tokens=64, embed_batch_size=100).load()
    assert passes.during(lambda: model.get_text_embedding_batch(TEXTS)) >= 6
    done = threading.Event()
    too_late: list[int] = []

    def ask() -> None:
        if asynchronous:
            asyncio.run(model.aget_query_embedding("a"))
        else:
            model.get_query_embedding("a")
        done.set()

    query = threading.Thread(target=ask)

    def before(number: int) -> None:
        if number == first:
            query.start()
            # Time for the query to take its place in the queue.
            time.sleep(0.5)
        # The query's own pass may be the second; at the third it must have its answer.
        elif number > first + 1 and not too_late and not done.wait(TIMEOUT_S):
            too_late.append(number)

    first = passes.count + 1
    passes.before = before
    vectors = model.get_text_embedding_batch(TEXTS)
    query.join(TIMEOUT_S)
    assert done.is_set()
    assert too_late == []
    assert len(vectors) == len(TEXTS)
