"""Keys go to their servers and nowhere else; what holds them can be copied, pickled and forked."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import pickle
import shutil
import subprocess
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from components import embedder, reranker
from llama_index.core.callbacks import CallbackManager
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from observe import Callbacks, recorded_events
from served import HashedVectors, close, in_time, served_embedder, served_reranker
from servers.fake_servers import FakeServer
from test_served_faults import SYNC_OR_ASYNC, free_port

from llamaindex_qwen3.errors import InvalidArgumentError, Qwen3Error, ServerAccessError, ServerError

Serve = Callable[..., FakeServer]
KEY = "sekrit-key-42"
TEXTS = [f"Classified text {i}" for i in range(40)]
CLASSIFIED = "Classified"


@pytest.fixture(autouse=True)
def no_key_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no key from where the tests run."""
    monkeypatch.delenv("QWEN3_API_KEY", raising=False)


def keys_sent(server: FakeServer) -> set[str | None]:
    """Return the Authorization headers that came to a server."""
    return {record["headers"].get("Authorization") for record in server.requests()}


def told(error: BaseException) -> str:
    """Return all that a traceback of an error and of its causes says."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))


# --- where keys come from, and where they go -------------------------------------------------------


def test_key_by_argument(
    serve: Serve, embedding_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Send the key that was given, with every request."""
    monkeypatch.setenv("QWEN3_API_KEY", "another")
    server = serve("vllm", embedding_dir, vectors="hashed", key=KEY)
    served_embedder(server, embedding_dir, api_key=KEY).get_text_embedding_batch(TEXTS)
    assert keys_sent(server) == {f"Bearer {KEY}"}


@pytest.mark.parametrize("kind", ["vllm", "tei", "infinity", "openai"])
def test_key_from_the_environment(
    serve: Serve, embedding_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Send the key of the environment where none was given."""
    monkeypatch.setenv("QWEN3_API_KEY", KEY)
    server = serve(kind, embedding_dir, vectors="hashed", key=KEY)
    served_embedder(server, embedding_dir).get_text_embedding("a")
    assert keys_sent(server) == {f"Bearer {KEY}"}


def test_no_key(serve: Serve, embedding_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send none where there is none, nor one of another service."""
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "VLLM_API_KEY"):
        monkeypatch.setenv(name, KEY)
    server = serve("vllm", embedding_dir, vectors="hashed")
    served_embedder(server, embedding_dir).get_text_embedding("a")
    assert keys_sent(server) == {None}


def test_no_netrc(
    serve: Serve, embedding_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Take no password from ~/.netrc."""
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {KEY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = serve("vllm", embedding_dir, vectors="hashed")
    served_embedder(server, embedding_dir).get_text_embedding("a")
    assert keys_sent(server) == {None}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("first_contact", [True, False])
def test_redirects(serve: Serve, embedding_dir: Path, status: int, first_contact: bool) -> None:
    """Follow no redirect, and name where it would have led."""
    target = serve("vllm", embedding_dir, vectors="hashed")
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir, api_key=KEY)
    if not first_contact:
        model.get_text_embedding("a")
    location = target.url.replace("127.0.0.1", "localhost") + "/v1/embeddings"
    server.change(instead={"status": status, "headers": {"Location": location}})
    posts = server.counts()["posts"]
    with pytest.raises(ServerError, match=location.split("/")[2]) as caught:
        model.get_text_embedding("b")
    assert caught.value.status == status
    assert server.counts()["posts"] <= posts + 1
    assert target.requests() == []
    assert KEY not in told(caught.value)


def test_redirect_that_holds_a_secret(serve: Serve, embedding_dir: Path) -> None:
    """Name the host of a redirect, not what its address holds."""
    server = serve("vllm", embedding_dir)
    location = f"http://user:{KEY}@elsewhere.example/login?token={KEY}"
    server.change(instead={"status": 302, "headers": {"Location": location}})
    with pytest.raises(ServerError, match=r"elsewhere\.example") as caught:
        served_embedder(server, embedding_dir).get_text_embedding("b")
    assert KEY not in told(caught.value)


def test_each_server_of_a_list_gets_it(serve: Serve, embedding_dir: Path) -> None:
    """Send the key to every server that was named."""
    servers = [serve("vllm", embedding_dir, vectors="hashed", key=KEY) for _ in "ab"]
    model = served_embedder(servers, embedding_dir, api_key=KEY, embed_batch_size=2048)
    model.get_text_embedding_batch([f"{i}" for i in range(400)])
    assert [keys_sent(server) for server in servers] == [{f"Bearer {KEY}"}] * 2


def test_keys_are_not_mixed_up(serve: Serve, embedding_dir: Path) -> None:
    """Keep two components of one server apart when their keys differ."""
    server = serve("vllm", embedding_dir, vectors="hashed", key=KEY)
    right = served_embedder(server, embedding_dir, api_key=KEY)
    right.get_text_embedding("a")
    wrong = served_embedder(server, embedding_dir, api_key="wrong")
    with pytest.raises(ServerAccessError):
        wrong.get_text_embedding("a")
    right.get_text_embedding("b")
    # A key that is set later counts from then on.
    wrong.api_key = KEY
    assert len(wrong.get_text_embedding("c")) == 64


def test_wrong_key_of_a_reranker(serve: Serve, reranker_dir: Path) -> None:
    """Say that a key is wrong although vLLM's /classify does not look at it."""
    server = serve("vllm", reranker_dir, role="reranker", key=KEY)
    with pytest.raises(ServerAccessError):
        served_reranker(server, reranker_dir, api_key="wrong").score("q", ["a"])


# --- where keys must not be ------------------------------------------------------------------------


def test_not_in_descriptions(serve: Serve, embedding_dir: Path, reranker_dir: Path) -> None:
    """Show the key in no description, dictionary, JSON or pickle, before use and after."""
    components: list[Any] = [
        served_embedder(serve("vllm", embedding_dir, key=KEY), embedding_dir, api_key=KEY),
        served_reranker(
            serve("vllm", reranker_dir, role="reranker", key=KEY), reranker_dir, api_key=KEY
        ),
    ]
    for used in (False, True):
        for component in components:
            if used and hasattr(component, "score"):
                component.score("q", ["a"])
            elif used:
                component.get_text_embedding("a")
            shown = [
                repr(component), str(component), repr(component.to_dict()), component.to_json(),
                repr(component.model_dump()), component.model_dump_json(), repr(vars(component)),
                repr(component.dict()), repr(component.__getstate__()),
            ]  # fmt: skip
            assert not [text for text in shown if KEY in text]
            assert KEY.encode() not in pickle.dumps(component)


def test_not_in_logs_and_events(
    serve: Serve, embedding_dir: Path, reranker_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Write neither key nor texts to a log at its most talkative; tell observers no key."""
    caplog.set_level(logging.DEBUG)
    callbacks = Callbacks()
    embedding = serve("vllm", embedding_dir, vectors="hashed", key=KEY)
    reranking = serve("vllm", reranker_dir, role="reranker", key=KEY)
    manager = CallbackManager([callbacks])
    model = served_embedder(embedding, embedding_dir, api_key=KEY, callback_manager=manager)
    ranker = served_reranker(reranking, reranker_dir, api_key=KEY, callback_manager=manager)
    with recorded_events() as recorded:
        model.get_text_embedding_batch(TEXTS)
        in_time(model.aget_text_embedding_batch([f"{text} again" for text in TEXTS]))
        ranker.score("q", TEXTS[:3])
        embedding.change(
            faults=["503", "429 in seconds", "half-written JSON", "closed"], fault_count=4
        )
        model.get_query_embedding("q")
        embedding.change(key="changed")
        with pytest.raises(ServerAccessError):
            model.get_query_embedding("r")
    logged = "".join(
        record.getMessage() + repr(record.args) + (record.exc_text or "")
        for record in caplog.records
        if not record.name.startswith("asyncio")
    )
    assert KEY not in logged
    assert CLASSIFIED not in logged
    assert KEY not in repr(recorded.events) + repr(callbacks.starts) + repr(callbacks.ends)
    assert recorded.events


FAILURES: dict[str, dict[str, Any]] = {
    "401": {"instead": {"status": 401, "body": {"error": "Unauthorized"}}},
    "401 that repeats the key": {
        "instead": {"status": 401, "body": {"error": {"message": f"Incorrect API key: {KEY}"}}}
    },
    "400": {"instead": {"status": 400, "body": {"error": {"message": "no"}}}},
    "422 that repeats the texts": {
        "instead": {
            "status": 422,
            "body": {"detail": [{"loc": ["body"], "msg": "too odd", "input": TEXTS[:3]}]},
        }
    },
    "503 that repeats both": {
        "instead": {"status": 503, "body": {"error": f"{TEXTS[0]} {TEXTS[1]} by {KEY}"}}
    },
    "half-written JSON": {"faults": ["half-written JSON"]},
    "nan": {"faults": ["nan"]},
    "wrong index": {"faults": ["wrong index"]},
    "hang": {"faults": ["hang"]},
    "closed": {"faults": ["closed"]},
    "reset in the body": {"faults": ["reset in the body"]},
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_not_in_errors(
    serve: Serve, embedding_dir: Path, failure: dict[str, Any], is_async: bool
) -> None:
    """Tell neither key nor texts in an error or in any of its causes."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir, api_key=KEY, timeout_s=0.3, retry_s=0.6)
    model.get_text_embedding("a")
    server.change(**failure)
    embed = SYNC_OR_ASYNC["async" if is_async else "sync"]
    with pytest.raises(ServerError) as caught:
        embed(model, TEXTS)
    assert KEY not in told(caught.value)
    assert CLASSIFIED not in told(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.url, again.status) == (
        str(caught.value), caught.value.url, caught.value.status,
    )  # fmt: skip


# What people paste: a line's end from a file, a sign that no header can hold.
ODD_KEYS = (f"{KEY}\n", f" {KEY}", f"{KEY}\r\nX-More: 1", f"{KEY}\u00e9", f"{KEY}\x00")


@pytest.mark.parametrize("key", ODD_KEYS, ids=repr)
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_odd_keys(
    serve: Serve, embedding_dir: Path, monkeypatch: pytest.MonkeyPatch, key: str, by: str
) -> None:
    """Send a key that is no header without its white space, or refuse it without showing it."""
    if by == "environment" and "\x00" in key:
        pytest.skip("the environment holds no null")
    server = serve("vllm", embedding_dir, vectors="hashed")
    if by == "environment":
        monkeypatch.setenv("QWEN3_API_KEY", key)
    options = {"api_key": key} if by == "argument" else {}
    try:
        served_embedder(server, embedding_dir, **options).get_text_embedding("a")
    except Qwen3Error as error:
        shown = told(error)
        assert KEY not in shown
    else:
        assert keys_sent(server) == {f"Bearer {KEY}"}
        assert key.strip() == KEY


ADDRESSES = (
    f"http://user:{KEY}@127.0.0.1:1/v1",
    f"http://{KEY}@127.0.0.1:1",
    f"http://127.0.0.1:1/v1?api_key={KEY}",
    f"http://127.0.0.1:1/#{KEY}",
    [f"http://user:{KEY}@127.0.0.1:1", "http://127.0.0.1:2"],
    f"user:{KEY}@127.0.0.1:1",
    f"http://user:{KEY}@127.0.0.1:port",
)


@pytest.mark.parametrize("address", ADDRESSES, ids=range(len(ADDRESSES)))
@pytest.mark.parametrize("make", [embedder, reranker])
def test_secrets_in_addresses(
    embedding_dir: Path, reranker_dir: Path, address: Any, make: Callable[..., Any]
) -> None:
    """Refuse an address that holds a secret without repeating it, given or set later."""
    directory = embedding_dir if make is embedder else reranker_dir
    with pytest.raises(InvalidArgumentError, match="base_url") as caught:
        make(directory, base_url=address)
    assert KEY not in told(caught.value)
    component = make(directory)
    with pytest.raises(InvalidArgumentError, match="base_url") as caught:
        component.base_url = address
    assert KEY not in told(caught.value)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_certificates_are_verified(embedding_dir: Path, tmp_path: Path) -> None:
    """Send nothing to a server whose certificate nobody vouches for."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out",
         str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    server = subprocess.Popen(
        ["openssl", "s_server", "-accept", str(port), "-cert", str(certificate), "-key", str(key),
         "-quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.PIPE,
    )  # fmt: skip
    try:
        model = embedder(
            embedding_dir, base_url=f"https://localhost:{port}", api_key=KEY, timeout_s=5.0
        )
        with pytest.raises(ServerError, match=r"(?i)certificate|verif") as caught:
            model.get_text_embedding("a")
        assert KEY not in told(caught.value)
    finally:
        server.kill()
        received, _ = server.communicate()
    assert KEY.encode() not in received


# --- copies, threads, loops and processes ----------------------------------------------------------


@pytest.fixture(scope="module")
def expected(embedding_dir: Path) -> HashedVectors:
    """Return what servers of hashed vectors must lead to."""
    return HashedVectors(embedding_dir)


def test_pickled(
    serve: Serve,
    embedding_dir: Path,
    expected: HashedVectors,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Leave the key behind in a pickle, and find one in the environment after it."""
    server = serve("vllm", embedding_dir, vectors="hashed", key=KEY)
    model = served_embedder(server, embedding_dir, api_key=KEY, max_in_flight=5)
    for _ in range(2):
        again = pickle.loads(pickle.dumps(model))
        assert again.api_key is None
        assert (again.base_url, again.max_in_flight) == (server.url, 5)
        with pytest.raises(ServerAccessError):
            again.get_text_embedding("a")
        with monkeypatch.context() as patch:
            patch.setenv("QWEN3_API_KEY", KEY)
            again = pickle.loads(pickle.dumps(model))
            assert close(again.get_text_embedding("a"), expected.document("a"))
        # The second time with a connection that is open.
        assert close(model.get_text_embedding("a"), expected.document("a"))


def test_copied(serve: Serve, embedding_dir: Path, expected: HashedVectors) -> None:
    """Work as before in copies, which share the connection."""
    server = serve("vllm", embedding_dir, vectors="hashed", key=KEY)
    model = served_embedder(server, embedding_dir, api_key=KEY)
    model.get_text_embedding("a")
    before = server.counts()["requests"]
    for i, again in enumerate(
        (copy.deepcopy(model), copy.copy(model), model.model_copy(), model.model_copy(deep=True))
    ):
        assert close(again.get_text_embedding(f"{i}"), expected.document(f"{i}"))
    assert server.counts()["requests"] == before + 4
    assert close(model.get_text_embedding("b"), expected.document("b"))


def test_closed(serve: Serve, embedding_dir: Path, expected: HashedVectors) -> None:
    """Let go of the connection, and make another when there is something to do."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir)
    other = model.with_task("Another")
    model.get_text_embedding("a")
    for _ in range(2):
        model.close()
        assert close(model.get_text_embedding("a"), expected.document("a"))
    assert close(other.get_text_embedding("a"), expected.document("a"))


def test_loops(serve: Serve, embedding_dir: Path, expected: HashedVectors) -> None:
    """Work in one event loop after the other, and in several at once."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir)
    texts = [f"{i}" for i in range(100)]
    for _ in range(3):
        assert expected.wrong(texts, asyncio.run(model.aget_text_embedding_batch(texts))) == []
        assert close(model.get_text_embedding("sync"), expected.document("sync"))
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(lambda _: asyncio.run(model.aget_text_embedding_batch(texts)), range(4))
        )
    assert [expected.wrong(texts, vectors) for vectors in results] == [[]] * 4


def test_threads(serve: Serve, embedding_dir: Path, expected: HashedVectors) -> None:
    """Meet a server once, and give each thread its own vectors, when many begin together."""
    server = serve("vllm", embedding_dir, vectors="hashed", delay_s=0.01)
    model = served_embedder(server, embedding_dir)
    together = threading.Barrier(8)

    def work(number: int) -> list[str]:
        together.wait()
        texts = [f"{number} {i}" for i in range(50)]
        return expected.wrong(texts, model.get_text_embedding_batch(texts))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [[]] * 8
    listed = [record for record in server.requests() if record["path"] == "/v1/models"]
    assert len(listed) == 1


def test_connections_are_kept(serve: Serve, embedding_dir: Path) -> None:
    """Use a connection again instead of making one a request."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir)
    for i in range(20):
        model.get_query_embedding(f"{i}")
    connections = {record["connection"] for record in server.requests()}
    assert len(connections) <= 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_forked(serve: Serve, embedding_dir: Path, expected: HashedVectors, is_async: bool) -> None:
    """Work in a child that was forked after use, and in the parent meanwhile and afterwards."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir)

    def embed(text: str) -> list[float]:
        if is_async:
            return in_time(model.aget_text_embedding(text))
        return model.get_text_embedding(text)

    embed("a")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps([embed(f"child {i}") for i in range(3)]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    ours = [embed(f"parent {i}") for i in range(3)]
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    assert [close(v, expected.document(f"parent {i}")) for i, v in enumerate(ours)] == [True] * 3
    assert data, "the child gave nothing"
    theirs = json.loads(data)
    assert [close(v, expected.document(f"child {i}")) for i, v in enumerate(theirs)] == [True] * 3


def test_in_worker_processes(
    serve: Serve, embedding_dir: Path, expected: HashedVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Go to the workers of an ingestion pipeline, which find the key in the environment."""
    monkeypatch.setenv("QWEN3_API_KEY", KEY)
    server = serve("vllm", embedding_dir, vectors="hashed", key=KEY)
    pipeline = IngestionPipeline(
        transformations=[served_embedder(server, embedding_dir)], disable_cache=True
    )
    nodes = [TextNode(text=f"{i}", id_=f"{i}") for i in range(8)]
    done = pipeline.run(nodes=nodes, num_workers=2)
    vectors = {node.node_id: node.embedding for node in done}
    assert all(close(vectors[f"{i}"] or [], expected.document(f"{i}")) for i in range(8))
    assert keys_sent(server) == {f"Bearer {KEY}"}
