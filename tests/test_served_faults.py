"""What must hold when servers fail: nothing wrong, nothing twice, nothing missing, one clear error."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from components import SCORE_TOLERANCE
from reference import ReferenceReranker
from served import WAIT_S, HashedVectors, close, in_time, served_embedder, served_reranker
from servers.fake_faults import WIRE_FAULTS
from servers.fake_servers import EMBEDDING_FAULTS, LIST_FAULTS, SCORE_FAULTS, FakeServer

from llamaindex_qwen3.errors import ModelNotServedError, ServerAccessError, ServerError

Serve = Callable[..., FakeServer]

TEXTS = [f"The text of number {i}." for i in range(400)]
MANY = [f"Text {i}" for i in range(9_990)] + [f"Text {i}" for i in range(10)]

SYNC_OR_ASYNC: dict[str, Callable[[Any, list[str]], list[list[float]]]] = {
    "sync": lambda model, texts: model.get_text_embedding_batch(texts),
    "async": lambda model, texts: in_time(model.aget_text_embedding_batch(texts)),
}
both_ways = pytest.mark.parametrize("embed", SYNC_OR_ASYNC.values(), ids=SYNC_OR_ASYNC)


@pytest.fixture(scope="module")
def expected(embedding_dir: Path) -> HashedVectors:
    """Return what servers of hashed vectors must lead to."""
    return HashedVectors(embedding_dir)


def known(server: FakeServer, directory: Path, **options: Any) -> Any:
    """Return an embedder that has met its server."""
    model = served_embedder(server, directory, **options)
    model.get_text_embedding("We have met")
    return model


# --- the fakes themselves -----------------------------------------------------------------------


def test_fakes_fail_as_they_say(serve: Serve, embedding_dir: Path) -> None:
    """Show that each fault is one: a plain client sees the break, the status or wrong content."""
    server = serve("openai", embedding_dir, vectors="hashed", faults=list(EMBEDDING_FAULTS))
    ids = [[5, 6], [7]]
    size = HashedVectors(embedding_dir).size
    for fault in EMBEDDING_FAULTS:
        try:
            status, text = ask(server, {"model": "qwen3", "input": ids})
        except (OSError, http.client.HTTPException):
            assert fault.startswith(("closed", "refused", "hang", "reset")), fault
            # Until a server that was away is back.
            time.sleep(0.5 if fault == "refused" else 0)
            if fault == "closed at accept":
                for _ in range(2):
                    with pytest.raises(ConnectionError):
                        ask(server, {})
            continue
        if fault[:3].isdecimal():
            assert status == int(fault[:3])
            continue
        assert status == 200
        try:
            data = json.loads(text)["data"]
        except (ValueError, KeyError):
            assert fault in (
                "half-written JSON",
                "empty body",
                "page of a proxy",
                "not UTF-8",
                "another document",
            )
            continue
        vectors = [item["embedding"] for item in data]
        sound = (
            [item["index"] for item in data] == [0, 1]
            and all(vector is not None and len(vector) == size for vector in vectors)
            and all(value is not None and abs(value) < 2 for vector in vectors for value in vector)
        )
        assert not sound, fault
    assert server.counts()["faults"] == len(EMBEDDING_FAULTS)


def ask(server: FakeServer, body: Any) -> tuple[int, bytes]:
    """Ask a server for embeddings by the plainest client."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.3)
    try:
        connection.request("POST", "/v1/embeddings", json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


# --- each fault, once and for ever ---------------------------------------------------------------


@pytest.mark.parametrize("fault", EMBEDDING_FAULTS)
def test_one_fault(serve: Serve, embedding_dir: Path, expected: HashedVectors, fault: str) -> None:
    """Ask again after any fault, once, and give the right vectors."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir, timeout_s=0.5)
    before = server.counts()["posts"]
    server.change(faults=[fault], fault_count=1)
    assert expected.wrong(TEXTS[:5], model.get_text_embedding_batch(TEXTS[:5])) == []
    counts = server.counts()
    assert counts["faults"] == 1
    # One that was away is asked first whether it is the same.
    away = fault in (*WIRE_FAULTS, "502", "503", "503 in seconds", "504", "524", "529")
    assert counts["posts"] == before + 2 + away


@pytest.mark.parametrize("kind", ["openai", "infinity", "tei"])
def test_every_fault_of_other_servers(
    serve: Serve, embedding_dir: Path, expected: HashedVectors, kind: str
) -> None:
    """Do so where vectors are written as lists of numbers, and TEI's without indices."""
    faults = LIST_FAULTS if kind == "tei" else EMBEDDING_FAULTS
    server = serve(kind, embedding_dir, vectors="hashed")
    model = known(server, embedding_dir, timeout_s=0.5)
    server.change(faults=list(faults), every=2, fault_count=len(faults))
    # A call meets one fault, but for the first.
    for start in range(0, 5 * len(faults) + 10, 5):
        texts = [f"Text {i} of {kind}" for i in range(start, start + 5)]
        assert expected.wrong(texts, model.get_text_embedding_batch(texts)) == []
    assert server.counts()["faults"] == len(faults)


@pytest.mark.parametrize("fault", SCORE_FAULTS)
def test_one_fault_of_a_reranker(
    serve: Serve, reranker_dir: Path, reference_reranker: ReferenceReranker, fault: str
) -> None:
    """Ask again after any fault, and give the right scores."""
    server = serve("vllm", reranker_dir, role="reranker")
    model = served_reranker(server, reranker_dir, timeout_s=0.5)
    model.score("q", ["a"])
    server.change(faults=[fault], fault_count=1)
    scores = model.score("q", TEXTS[:3])
    right = [reference_reranker.score("q", text) for text in TEXTS[:3]]
    assert scores == pytest.approx(right, abs=SCORE_TOLERANCE)
    assert server.counts()["faults"] == 1


@both_ways
def test_ten_thousand_texts(
    serve: Serve,
    embedding_dir: Path,
    expected: HashedVectors,
    embed: Callable[[Any, list[str]], list[list[float]]],
) -> None:
    """Embed 10,000 texts by a server that fails one request in ten, in every way."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir, timeout_s=1.0, embed_batch_size=2048)
    # A little more than one in ten, for each way to have its turn.
    server.change(faults=list(EMBEDDING_FAULTS), every=9)
    vectors = embed(model, MANY)
    assert len(vectors) == len(MANY)
    assert expected.wrong(MANY, vectors) == []
    requests = server.requests("POST")
    assert {record["fault"] for record in requests} >= set(EMBEDDING_FAULTS)
    # What was answered rightly is not asked for again, nor is more at once than was agreed.
    faults = sum(record["fault"] is not None for record in requests)
    assert len(requests) <= 1 + 313 + 5 + 2 * faults
    assert server.counts()["peak"] <= model.max_in_flight


def test_dribbling_answer(serve: Serve, embedding_dir: Path, expected: HashedVectors) -> None:
    """Give up an answer that never ends, though a byte comes now and then, and ask again."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir, timeout_s=1.0)
    server.change(faults=["dribble"], fault_count=1)
    assert close(in_time(model.aget_query_embedding("a")), expected.query("a"))


PERMANENT = ("500", "503", "429", "half-written JSON", "too few", "short vector", "wrong index",
             "nan", "closed", "hang", "reset in the body")  # fmt: skip


@pytest.mark.parametrize("fault", PERMANENT)
def test_permanent_fault(serve: Serve, embedding_dir: Path, fault: str) -> None:
    """Give up in the end, with one error that names the server, the size and the last fault."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    key = "sekrit-key-1"
    model = known(server, embedding_dir, timeout_s=0.3, retry_s=1.0, api_key=key)
    before = server.counts()["posts"]
    server.change(faults=[fault])
    with pytest.raises(ServerError) as caught:
        model.get_text_embedding_batch(TEXTS[:7])
    message = str(caught.value)
    assert server.url in message
    assert "7 texts" in message
    status = int(fault) if fault.isdecimal() else None
    assert caught.value.url.startswith(server.url)
    if status is not None:
        assert caught.value.status == status
        assert fault in message
    assert server.counts()["posts"] > before + 1
    assert key not in message
    assert "number" not in message
    # A server that is well again is used again.
    server.change(faults=[])
    assert len(model.get_text_embedding_batch(TEXTS[:7])) == 7


# --- faults that no second try cures --------------------------------------------------------------

AT_ONCE = {
    "401": (401, {"error": "Unauthorized"}, ServerAccessError),
    "403": (403, {"error": {"message": "not yours"}}, ServerAccessError),
    "404": (404, {"error": {"message": "The model `qwen3` does not exist."}}, ModelNotServedError),
    "400": (400, {"error": {"message": "the tokenizer is on holiday"}}, ServerError),
    "422": (422, {"detail": "the field is on holiday"}, ServerError),
}


@pytest.mark.parametrize(("status", "body", "error"), AT_ONCE.values(), ids=AT_ONCE)
@both_ways
def test_errors_at_once(
    serve: Serve,
    embedding_dir: Path,
    status: int,
    body: Any,
    error: type[ServerError],
    embed: Callable[[Any, list[str]], Any],
) -> None:
    """Raise after one request where asking again would change nothing."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir)
    before = server.counts()["requests"]
    server.change(instead={"status": status, "body": body})
    with pytest.raises(error) as caught:
        embed(model, TEXTS[:3])
    assert type(caught.value) is error
    assert caught.value.status == status
    assert server.url in str(caught.value)
    assert str(status) in str(caught.value)
    assert server.counts()["requests"] == before + 1
    if status == 400:
        assert "on holiday" in str(caught.value)


@pytest.mark.parametrize(("status", "error"), [(401, ServerAccessError), (403, ServerAccessError)])
@pytest.mark.parametrize("kind", ["vllm", "tei", "infinity", "openai"])
def test_no_access_at_first_contact(
    serve: Serve, embedding_dir: Path, kind: str, status: int, error: type[ServerError]
) -> None:
    """Ask for nothing twice, and name the key, where the first contact is denied."""
    server = serve(kind, embedding_dir, instead={"status": status, "body": {"error": "no"}})
    model = served_embedder(server, embedding_dir, server=kind)
    with pytest.raises(error, match=r"api_key|QWEN3_API_KEY") as caught:
        model.get_text_embedding("a")
    assert caught.value.status == status
    asked = [(record["method"], record["path"]) for record in server.requests()]
    assert len(asked) == len(set(asked))


def test_one_refusal_ends_the_call(serve: Serve, embedding_dir: Path) -> None:
    """Send nothing more of a bulk call once one of its requests is refused for good."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir, max_in_flight=2, embed_batch_size=2048)
    before = server.counts()["posts"]
    server.change(instead={"status": 401, "body": {"error": "Unauthorized"}})
    with pytest.raises(ServerAccessError):
        model.get_text_embedding_batch(TEXTS)
    time.sleep(0.3)
    assert server.counts()["posts"] <= before + 2


def test_too_large(serve: Serve, embedding_dir: Path, expected: HashedVectors) -> None:
    """Halve what is too large, down to what the server takes."""
    server = serve("vllm", embedding_dir, vectors="hashed", max_texts=5)
    model = served_embedder(server, embedding_dir)
    texts = TEXTS[:100]
    assert expected.wrong(texts, model.get_text_embedding_batch(texts)) == []
    records = [record for record in server.requests("POST") if record["texts"] > 1]
    assert {record["texts"] for record in records if record["status"] == 413} >= {32, 16, 8}
    # Learnt once, not at each request anew.
    assert sum(record["status"] == 413 for record in records) <= 31


def test_one_text_too_large(serve: Serve, embedding_dir: Path) -> None:
    """End the halving with an error at one text."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir)
    before = server.counts()["posts"]
    server.change(instead={"status": 413, "body": {"error": "too large"}})
    with pytest.raises(ServerError, match="413"):
        model.get_text_embedding_batch(TEXTS[:32])
    assert server.counts()["posts"] <= before + 16


def test_too_large_scores(
    serve: Serve, reranker_dir: Path, reference_reranker: ReferenceReranker
) -> None:
    """Halve the pairs, too."""
    server = serve("vllm", reranker_dir, role="reranker", max_texts=3)
    scores = served_reranker(server, reranker_dir).score("q", TEXTS[:20])
    right = [reference_reranker.score("q", text) for text in TEXTS[:20]]
    assert scores == pytest.approx(right, abs=SCORE_TOLERANCE)


# --- waiting ------------------------------------------------------------------------------------

RETRY_AFTER: dict[str, tuple[Callable[[], str], float]] = {
    "seconds": (lambda: "3", 2.9),
    # A date has whole seconds.
    "date": (lambda: formatdate(time.time() + 4, usegmt=True), 2.5),
}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("value", "least_s"), RETRY_AFTER.values(), ids=RETRY_AFTER)
def test_retry_after(
    serve: Serve, embedding_dir: Path, value: Callable[[], str], least_s: float, status: int
) -> None:
    """Wait as long as the server says."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir)
    before = len(server.requests())
    server.change(instead={"status": status, "headers": {"Retry-After": value()}})
    with after_requests(server, 1):
        model.get_text_embedding("a")
    first, second = server.requests()[before:][:2]
    assert second["at"] - first["at"] >= least_s


@contextlib.contextmanager
def after_requests(server: FakeServer, count: int) -> Any:
    """Have a server answer rightly again after so many more POSTs."""
    posts = server.counts()["posts"] + count

    def mend() -> None:
        server.until(posts)
        # The request that was counted gets its answer first.
        time.sleep(0.2)
        server.change(instead=None)

    thread = threading.Thread(target=mend)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize("value", ["86400", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_retry_after_too_long(serve: Serve, embedding_dir: Path, value: str) -> None:
    """Wait no longer than `retry_s` in all, whatever the server says."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir, retry_s=2.0)
    server.change(instead={"status": 429, "headers": {"Retry-After": value}})
    with pytest.raises(ServerError, match="429") as caught:
        in_time(model.aget_query_embedding("a"))
    assert caught.value.status == 429


@pytest.mark.parametrize("value", ["", "-5", "soon", "nan", "Wed, 99 Foo 2026"])
def test_retry_after_of_no_meaning(serve: Serve, embedding_dir: Path, value: str) -> None:
    """Take a value that is none as no value."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir)
    server.change(instead={"status": 429, "headers": {"Retry-After": value}})
    with after_requests(server, 1):
        assert len(in_time(model.aget_query_embedding("a"))) == 64


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@both_ways
def test_nobody_there(embedding_dir: Path, embed: Callable[[Any, list[str]], Any]) -> None:
    """Say soon that nobody answers, instead of trying for as long as with a known server."""
    url = f"http://127.0.0.1:{free_port()}"
    model = served_embedder([], embedding_dir, base_url=url, retry_s=600.0)
    with pytest.raises(ServerError, match=url) as caught:
        embed(model, ["a"])
    assert caught.value.status is None


def test_starts_late(serve: Serve, embedding_dir: Path, expected: HashedVectors) -> None:
    """Have a little patience with a server that is about to listen."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    server.stop()
    timer = threading.Timer(0.5, server.start)
    timer.start()
    vector = served_embedder(server, embedding_dir).get_text_embedding("a")
    timer.join()
    assert close(vector, expected.document("a"))


# --- servers that come and go ---------------------------------------------------------------------


@both_ways
def test_restart_in_the_middle(
    serve: Serve,
    embedding_dir: Path,
    expected: HashedVectors,
    embed: Callable[[Any, list[str]], list[list[float]]],
) -> None:
    """Go on with a server that broke off everything and came back."""
    server = serve("vllm", embedding_dir, vectors="hashed", delay_s=0.02)
    model = known(server, embedding_dir, embed_batch_size=2048)

    def restart() -> None:
        server.until(20)
        server.restart(1.0)

    texts = MANY[:2000]
    thread = threading.Thread(target=restart)
    thread.start()
    vectors = embed(model, texts)
    thread.join()
    assert expected.wrong(texts, vectors) == []


@both_ways
def test_failover(
    serve: Serve,
    embedding_dir: Path,
    expected: HashedVectors,
    embed: Callable[[Any, list[str]], list[list[float]]],
) -> None:
    """Go on with the other server when one dies in the middle, and for the calls that follow."""
    dying, lasting = (serve("vllm", embedding_dir, vectors="hashed", delay_s=0.02) for _ in "ab")
    model = served_embedder([dying, lasting], embedding_dir, embed_batch_size=2048)
    model.get_text_embedding_batch(TEXTS)

    def kill() -> None:
        dying.until(dying.counts()["posts"] + 5)
        dying.stop()

    texts = MANY[:2000]
    thread = threading.Thread(target=kill)
    thread.start()
    vectors = embed(model, texts)
    thread.join()
    assert expected.wrong(texts, vectors) == []
    for i in range(5):
        model.get_query_embedding(f"query {i}")


def test_one_of_two_dead_from_the_start(
    serve: Serve, embedding_dir: Path, expected: HashedVectors
) -> None:
    """Work with the server that is there, wherever in the list it stands."""
    dead, alive = (serve("vllm", embedding_dir, vectors="hashed") for _ in "ab")
    dead.stop()
    for servers in ([dead, alive], [alive, dead]):
        model = served_embedder(servers, embedding_dir, embed_batch_size=2048)
        assert expected.wrong(TEXTS, model.get_text_embedding_batch(TEXTS)) == []


def test_all_dead(serve: Serve, embedding_dir: Path) -> None:
    """Name every server when none is left."""
    servers = [serve("vllm", embedding_dir, vectors="hashed") for _ in "ab"]
    model = served_embedder(servers, embedding_dir, retry_s=1.0)
    model.get_text_embedding_batch(TEXTS)
    for server in servers:
        server.stop()
    with pytest.raises(ServerError) as caught:
        model.get_text_embedding("a")
    assert any(server.url in str(caught.value) for server in servers)


def test_waiting_is_not_retrying(
    serve: Serve, embedding_dir: Path, expected: HashedVectors
) -> None:
    """Try a late request of a long call again as patiently as an early one."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir, max_in_flight=1, retry_s=1.5, embed_batch_size=2048)
    server.change(delay_s=0.3, faults=["closed"], every=12)
    assert expected.wrong(TEXTS, in_time(model.aget_text_embedding_batch(TEXTS))) == []
    assert server.counts()["faults"] >= 1


def test_failing_server_of_two(serve: Serve, embedding_dir: Path, expected: HashedVectors) -> None:
    """Take what one server fails to do to the other, within the call."""
    failing, well = (serve("vllm", embedding_dir, vectors="hashed") for _ in "ab")
    model = served_embedder([failing, well], embedding_dir, embed_batch_size=2048)
    model.get_text_embedding_batch(TEXTS)
    failing.change(faults=["503"])
    assert expected.wrong(TEXTS, model.get_text_embedding_batch(TEXTS)) == []


def test_least_loaded(serve: Serve, embedding_dir: Path, expected: HashedVectors) -> None:
    """Give most to the server that has least to do."""
    slow, fast = (serve("vllm", embedding_dir, vectors="hashed") for _ in "ab")
    model = served_embedder([slow, fast], embedding_dir, embed_batch_size=2048, max_in_flight=2)
    model.get_text_embedding_batch(TEXTS)
    slow.change(delay_s=1.0)
    fast.change(delay_s=0.02)
    before = [server.counts()["posts"] for server in (slow, fast)]
    texts = MANY[:2000]
    assert expected.wrong(texts, model.get_text_embedding_batch(texts)) == []
    by_slow, by_fast = (
        server.counts()["posts"] - count for server, count in zip((slow, fast), before, strict=True)
    )
    assert by_slow + by_fast >= 63
    assert 1 <= by_slow < by_fast / 3
    assert max(server.counts()["peak"] for server in (slow, fast)) <= 2


# --- concurrency --------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, 12])
@both_ways
def test_in_flight(
    serve: Serve,
    embedding_dir: Path,
    expected: HashedVectors,
    embed: Callable[[Any, list[str]], list[list[float]]],
    most: int,
) -> None:
    """Have as many requests on the wire as was agreed, no fewer and no more."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir, max_in_flight=most, embed_batch_size=2048)
    server.change(hold_from=2)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(embed, model, TEXTS)
        try:
            server.until(most, "held")
            time.sleep(0.2)
            assert server.counts()["held"] == most
        finally:
            server.release()
        assert expected.wrong(TEXTS, work.result(WAIT_S)) == []
    assert server.counts()["peak"] == most


def test_calls_share_the_limit(serve: Serve, embedding_dir: Path) -> None:
    """Keep to the limit when several bulk calls, tasks and threads come at once."""
    server = serve("vllm", embedding_dir, vectors="hashed", delay_s=0.01)
    model = known(server, embedding_dir, max_in_flight=3, embed_batch_size=64)
    others = [model, model.with_task("Another")]
    threads = [
        threading.Thread(
            target=others[i % 2].get_text_embedding_batch, args=[MANY[i * 300 :][:300]]
        )
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert server.counts()["peak"] <= 3


@pytest.mark.parametrize("most", [1, 4])
def test_bulk_does_not_starve_a_query(
    serve: Serve, embedding_dir: Path, expected: HashedVectors, most: int
) -> None:
    """Answer a query while every request of an ingest is still waiting for its answer."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir, max_in_flight=most, embed_batch_size=2048)
    server.change(hold_from=2)

    async def work() -> list[list[float]]:
        bulk = asyncio.create_task(model.aget_text_embedding_batch(TEXTS))
        await asyncio.to_thread(server.until, most, "held")
        vector = await model.aget_query_embedding("now")
        assert close(vector, expected.query("now"))
        other = await asyncio.to_thread(model.get_query_embedding, "at once")
        assert close(other, expected.query("at once"))
        assert (await asyncio.to_thread(server.counts))["held"] == most
        assert not bulk.done()
        await asyncio.to_thread(server.release)
        return await bulk

    assert expected.wrong(TEXTS, in_time(work())) == []


def test_reranking_is_not_held_up(serve: Serve, embedding_dir: Path, reranker_dir: Path) -> None:
    """Rerank while an ingest waits, on one server or another."""
    embedding = serve("vllm", embedding_dir, vectors="hashed")
    reranking = serve("vllm", reranker_dir, role="reranker")
    model = known(embedding, embedding_dir, max_in_flight=1, embed_batch_size=2048)
    ranker = served_reranker(reranking, reranker_dir, max_in_flight=1)
    embedding.change(hold_from=2)

    async def work() -> None:
        bulk = asyncio.create_task(model.aget_text_embedding_batch(TEXTS))
        await asyncio.to_thread(embedding.until, 1, "held")
        assert len(await ranker.ascore("q", TEXTS[:40])) == 40
        await asyncio.to_thread(embedding.release)
        await bulk

    in_time(work())


def test_cancelling(serve: Serve, embedding_dir: Path, expected: HashedVectors) -> None:
    """Send nothing more of a call that was cancelled, and free its place for the next."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir, max_in_flight=2, embed_batch_size=2048)
    before = server.counts()["posts"]
    server.change(hold_from=2)

    async def work() -> list[list[float]]:
        bulk = asyncio.create_task(model.aget_text_embedding_batch(TEXTS))
        await asyncio.to_thread(server.until, 2, "held")
        bulk.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bulk
        await asyncio.to_thread(server.release)
        await asyncio.sleep(0.3)
        assert server.counts()["posts"] == before + 2
        return await model.aget_text_embedding_batch(TEXTS)

    assert expected.wrong(TEXTS, in_time(work())) == []
    assert server.counts()["posts"] == before + 2 + 13


def test_cancelling_a_retry(serve: Serve, embedding_dir: Path) -> None:
    """Stop trying again once the call is cancelled."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = known(server, embedding_dir)
    server.change(faults=["503"])

    async def work() -> int:
        task = asyncio.create_task(model.aget_query_embedding("a"))
        await asyncio.to_thread(server.until, server.counts()["posts"] + 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.2)
        posts = server.counts()["posts"]
        await asyncio.sleep(2.0)
        return server.counts()["posts"] - posts

    assert in_time(work()) == 0


def test_first_contact_leaves_the_loop_free(
    serve: Serve, embedding_dir: Path, reranker_dir: Path
) -> None:
    """Let the loop run while a server is slow to say what it is."""
    embedding = serve("vllm", embedding_dir, vectors="hashed", hold_from=0)
    reranking = serve("vllm", reranker_dir, role="reranker", hold_from=0)

    async def work() -> None:
        model = served_embedder(embedding, embedding_dir)
        ranker = served_reranker(reranking, reranker_dir)
        both = asyncio.gather(model.aget_query_embedding("a"), ranker.ascore("a", ["b"]))
        for server in (embedding, reranking):
            await asyncio.to_thread(server.until, 1, "held")
            # Only a loop that is free gets here.
            await asyncio.to_thread(server.release)
        vector, scores = await both
        assert (len(vector), len(scores)) == (64, 1)

    in_time(work())
