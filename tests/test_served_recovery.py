"""A server that went away is asked who it is before its next answer is used."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape
from components import COSINE_TOLERANCE, SCORE_TOLERANCE, cosine_distance
from reference import ReferenceEmbedder, ReferenceReranker
from served import WAIT_S, HashedVectors, close, in_time, served_embedder, served_reranker
from servers.fake_servers import FakeServer

from llamaindex_qwen3.engine import pool
from llamaindex_qwen3.errors import ModelNotServedError, ServerError, ServerMismatchError

Serve = Callable[..., FakeServer]
Factory = Callable[..., Path]

TEXTS = [f"The text of number {i}." for i in range(100)]


@pytest.fixture(scope="module")
def other_embedding_dir(make_embedding: Factory) -> Path:
    """Return a model with the tokenizer and the width of `embedding_dir`, and other weights."""
    return make_embedding(shape=Shape(seed=7))


@pytest.fixture(scope="module")
def other_reranker_dir(make_reranker: Factory) -> Path:
    """Return a model with the tokenizer of `reranker_dir`, and other weights."""
    return make_reranker(shape=Shape(seed=7))


def lose(server: FakeServer, ask: Callable[[], Any], url: str = "") -> None:
    """Stop a server, and have its client notice."""
    server.stop()
    with pytest.raises(ServerError, match=url or server.url):
        ask()


def posts_of(server: FakeServer, before: int) -> list[int]:
    """Return how many texts each later POST brought."""
    return [record["texts"] for record in server.requests("POST")[before:]]


# --- another model ------------------------------------------------------------------------------

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vLLM": ("vllm", {}),
    "OpenAI's, texts only": ("openai", {"takes_ids": False}),
    "infinity": ("infinity", {}),
    "TEI": ("tei", {}),
}


@pytest.mark.parametrize(("kind", "settings"), KINDS.values(), ids=KINDS)
def test_another_embedding_model(
    serve: Serve,
    embedding_dir: Path,
    other_embedding_dir: Path,
    reference_embedder: ReferenceEmbedder,
    kind: str,
    settings: dict[str, Any],
) -> None:
    """Refuse it, as often as it is asked, until the right one is back."""
    server = serve(kind, embedding_dir, **settings)
    model = served_embedder(server, embedding_dir, retry_s=0.3)
    right = reference_embedder.document("a text")
    assert cosine_distance(model.get_text_embedding("a text"), right) < COSINE_TOLERANCE
    lose(server, lambda: model.get_text_embedding("a text"))
    server.change(directory=str(other_embedding_dir))
    server.start()
    for _ in range(2):
        with pytest.raises(ServerMismatchError, match="another model") as caught:
            model.get_text_embedding("a text")
        assert caught.value.url == server.url
        assert server.url in str(caught.value)
        assert "cosine distance" in str(caught.value)
    server.change(directory=str(embedding_dir))
    assert cosine_distance(model.get_text_embedding("a text"), right) < COSINE_TOLERANCE


def test_another_width(serve: Serve, embedding_dir: Path, make_embedding: Factory) -> None:
    """Name both lengths of vectors."""
    server = serve("vllm", embedding_dir)
    model = served_embedder(server, embedding_dir, retry_s=0.3)
    model.get_text_embedding("a")
    lose(server, lambda: model.get_text_embedding("a"))
    server.change(directory=str(make_embedding(shape=Shape(hidden_size=96))))
    server.start()
    with pytest.raises(ServerMismatchError, match="96") as caught:
        model.get_text_embedding("a")
    assert "64" in str(caught.value)


def test_another_model_in_the_middle(
    serve: Serve, embedding_dir: Path, other_embedding_dir: Path
) -> None:
    """End an ingest whose server comes back with another model."""
    server = serve("vllm", embedding_dir, delay_s=0.02)
    model = served_embedder(server, embedding_dir, max_in_flight=2, max_batch_tokens=64)
    model.get_text_embedding("a")

    def swap() -> None:
        server.until(10)
        server.stop()
        server.change(directory=str(other_embedding_dir))
        server.start()

    thread = threading.Thread(target=swap)
    thread.start()
    with pytest.raises(ServerMismatchError, match="another model"):
        model.get_text_embedding_batch(TEXTS)
    thread.join()


def test_another_model_after_idle_minutes(
    serve: Serve,
    embedding_dir: Path,
    other_embedding_dir: Path,
    reference_embedder: ReferenceEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Notice a server that was changed while nobody asked it, though no connection shows it."""
    server = serve("vllm", embedding_dir)
    model = served_embedder(server, embedding_dir)
    model.get_text_embedding("a")
    before = server.counts()["posts"]
    model.get_text_embedding("a")
    assert posts_of(server, before) == [1]
    monkeypatch.setattr(pool, "_IDLE_S", 0.0)
    server.change(directory=str(other_embedding_dir))
    for _ in range(2):
        with pytest.raises(ServerMismatchError, match="another model"):
            model.get_text_embedding("a text")
    server.change(directory=str(embedding_dir))
    right = reference_embedder.document("a text")
    assert cosine_distance(model.get_text_embedding("a text"), right) < COSINE_TOLERANCE


def test_idle_minutes_cost_no_time(
    serve: Serve, embedding_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ask a server that was idle what it is beside the request, not before it."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir)
    model.get_text_embedding("a")
    before = server.counts()["posts"]
    monkeypatch.setattr(pool, "_IDLE_S", 0.0)
    server.change(hold_from=1)
    with ThreadPoolExecutor(1) as threads:
        vector = threads.submit(model.get_text_embedding, "b")
        try:
            server.until(2, "held")
        finally:
            server.release()
        assert close(vector.result(WAIT_S), HashedVectors(embedding_dir).document("b"))
    assert posts_of(server, before) == [1, 1]


def test_an_answer_on_the_way(serve: Serve, embedding_dir: Path, other_embedding_dir: Path) -> None:
    """Use no answer that arrives after another request's connection broke, until all is well."""
    server = serve("vllm", embedding_dir)
    model = served_embedder(server, embedding_dir)
    model.get_text_embedding("a")
    server.change(hold_from=2)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(model.get_text_embedding_batch, ["b", "c"])
        try:
            server.until(1, "held")
            server.change(
                faults=["closed"], fault_count=1, every=1, directory=str(other_embedding_dir)
            )
            with pytest.raises(ServerMismatchError):
                model.get_query_embedding("d")
        finally:
            server.release()
        with pytest.raises(ServerMismatchError):
            batch.result(WAIT_S)


@pytest.mark.parametrize("renders", [False, True], ids=["whole prompts", "template"])
@pytest.mark.parametrize("raw_scores", [True, False], ids=["log-odds", "probabilities"])
def test_another_reranker(
    serve: Serve,
    reranker_dir: Path,
    other_reranker_dir: Path,
    reference_reranker: ReferenceReranker,
    raw_scores: bool,
    renders: bool,
) -> None:
    """Refuse another reranker, too, and use the right one again."""
    server = serve("vllm", reranker_dir, role="reranker", raw_scores=raw_scores)
    model = served_reranker(
        server, reranker_dir, retry_s=0.3, **({"server": "openai"} if renders else {})
    )
    right = [reference_reranker.score("q", text) for text in TEXTS[:3]]
    assert model.score("q", TEXTS[:3]) == pytest.approx(right, abs=SCORE_TOLERANCE)
    lose(server, lambda: model.score("q", ["a"]))
    server.change(directory=str(other_reranker_dir))
    server.start()
    for _ in range(2):
        with pytest.raises(ServerMismatchError, match="another model") as caught:
            model.score("q", ["a"])
        assert caught.value.url == server.url
        assert server.url in str(caught.value)
        assert "log-odds" in str(caught.value)
    server.change(directory=str(reranker_dir))
    assert model.score("q", TEXTS[:3]) == pytest.approx(right, abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("template", ["none", "lost newline", "ignores the task"])
def test_another_template(serve: Serve, make_reranker: Factory, template: str) -> None:
    """Refuse the same model with another template, where the server renders the prompts."""
    # As in a trained model, much depends on the instruction.
    directory = make_reranker(shape=Shape(gain=2.0))
    server = serve("vllm", directory, role="reranker")
    model = served_reranker(server, directory, server="openai", retry_s=0.3)
    model.score("q", ["a"])
    lose(server, lambda: model.score("q", ["a"]))
    server.change(template=template)
    server.start()
    with pytest.raises(ServerMismatchError, match="template") as caught:
        model.score("q", ["a"])
    assert server.url in str(caught.value)


def test_a_proxy_that_points_elsewhere(
    serve: Serve, embedding_dir: Path, reranker_dir: Path
) -> None:
    """Refuse a server that takes other requests now, with what it says."""
    server = serve("openai", embedding_dir)
    model = served_embedder(server, embedding_dir, retry_s=0.3)
    model.get_text_embedding("a")
    lose(server, lambda: model.get_text_embedding("a"))
    server.change(takes_ids=False)
    server.start()
    with pytest.raises(ServerMismatchError, match="list of strings") as caught:
        model.get_text_embedding("a")
    assert caught.value.status == 400
    server.change(takes_ids=True, name="another")
    with pytest.raises(ModelNotServedError, match=server.url):
        model.get_text_embedding("a")


def test_one_of_two_comes_back_as_another(
    serve: Serve,
    embedding_dir: Path,
    other_embedding_dir: Path,
    reference_embedder: ReferenceEmbedder,
) -> None:
    """Name the one that is another, and use nothing of it."""
    right, wrong = (serve("vllm", embedding_dir, delay_s=0.01) for _ in "ab")
    model = served_embedder([right, wrong], embedding_dir, max_batch_tokens=64)
    model.get_text_embedding_batch(TEXTS)
    wrong.stop()
    model.get_text_embedding_batch(TEXTS)
    wrong.change(directory=str(other_embedding_dir))
    wrong.start()

    def embed() -> None:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            vectors = model.get_text_embedding_batch(TEXTS[:20])
            for text, vector in zip(TEXTS, vectors, strict=False):
                expected = reference_embedder.document(text)
                assert cosine_distance(vector, expected) < COSINE_TOLERANCE

    with pytest.raises(ServerMismatchError, match=wrong.url):
        embed()


# --- the same model -----------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["embedding", "reranker"])
def test_one_small_request_for_all_who_wait(
    serve: Serve, embedding_dir: Path, reranker_dir: Path, role: str
) -> None:
    """Ask a server that is back once, whoever waits for it, and no more after that."""
    if role == "embedding":
        server = serve("vllm", embedding_dir, vectors="hashed")
        embedding = served_embedder(server, embedding_dir)
        ask: Callable[[str], Any] = embedding.aget_query_embedding
        small = 1
    else:
        server = serve("vllm", reranker_dir, role="reranker")
        ranker = served_reranker(server, reranker_dir)

        def ask(text: str) -> Any:
            return ranker.ascore(text, ["a", "b", "c"])

        small = 2
    in_time(ask("We have met"))
    before = server.counts()["posts"]

    async def work() -> None:
        server.stop()
        calls = [asyncio.create_task(ask(f"query {i}")) for i in range(8)]
        await asyncio.sleep(0.3)
        server.start()
        await asyncio.gather(*calls)

    in_time(work())
    sent = posts_of(server, before)
    assert len(sent) == 8 + 1
    assert sent[0] == small
    before += len(sent)
    in_time(ask("after that"))
    assert len(posts_of(server, before)) == 1


@pytest.mark.parametrize("fault", ["429", "408", "500", "nan", "half-written JSON"])
def test_no_request_more_without_an_outage(serve: Serve, embedding_dir: Path, fault: str) -> None:
    """Ask nothing of a server that was there all the time."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir)
    model.get_text_embedding("We have met")
    before = server.counts()["posts"]
    server.change(faults=[fault], fault_count=1)
    model.get_text_embedding("a")
    assert len(posts_of(server, before)) == 2


def test_resets_under_load(serve: Serve, embedding_dir: Path) -> None:
    """Add one small request to each connection that broke, at most."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir, embed_batch_size=2048, max_batch_tokens=64)
    model.get_text_embedding("We have met")
    before = server.counts()["posts"]
    server.change(faults=["reset in the body"], every=10)
    texts = [f"Text {i}" for i in range(2000)]
    expected = HashedVectors(embedding_dir)
    wanted = [expected.ids(text) for text in texts]
    assert expected.wrong(texts, model.get_text_embedding_batch(texts)) == []
    records = server.requests("POST")[before:]
    faults = sum(record["fault"] is not None for record in records)
    assert faults >= 10
    asked = [record for record in records if record["body"]["input"][0] not in wanted]
    assert 1 <= len(asked) <= faults
    assert all(record["texts"] == 1 for record in asked)
    assert server.counts()["peak"] <= model.max_in_flight


def test_cancelling_who_asked(serve: Serve, embedding_dir: Path) -> None:
    """Let one who gives up break nothing for the others, nor ask anew."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir, retry_s=5.0)
    model.get_text_embedding("We have met")
    server.change(faults=["closed"], fault_count=1)

    async def work() -> list[float]:
        before = server.counts()["posts"]
        first = asyncio.create_task(model.aget_query_embedding("first"))
        await asyncio.to_thread(server.until, before + 1)
        server.change(hold_from=1)
        await asyncio.to_thread(server.until, 1, "held")
        second = asyncio.create_task(model.aget_query_embedding("second"))
        await asyncio.sleep(0.1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert server.counts()["held"] == 1
        await asyncio.to_thread(server.release)
        vector = await second
        # The broken one, the question who it is, and the second call.
        assert len(posts_of(server, before)) == 3
        return vector

    assert close(in_time(work()), HashedVectors(embedding_dir).query("second"))


@pytest.mark.parametrize("fault", ["nan", "503", "closed", "too few", "short vector"])
def test_faults_of_the_question_itself(serve: Serve, embedding_dir: Path, fault: str) -> None:
    """Ask again if the answer to it is broken, as for any other."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir)
    model.get_text_embedding("We have met")
    server.change(faults=["closed", fault], fault_count=2)
    vector = model.get_text_embedding("a")
    assert close(vector, HashedVectors(embedding_dir).document("a"))
    assert server.counts()["faults"] == 2


# --- less room ----------------------------------------------------------------------------------

LONG = ["a word and then " * 60 + str(i) for i in range(24)]


@pytest.mark.parametrize("kind", ["vllm", "tei"])
def test_late_server_with_less_room(serve: Serve, embedding_dir: Path, kind: str) -> None:
    """Have a text that is too long for a server that joins late embedded by another, whole."""
    roomy = serve(kind, embedding_dir, vectors="hashed", delay_s=0.1)
    narrow = serve(kind, embedding_dir, vectors="hashed", delay_s=0.1, max_tokens=50)
    narrow.stop()
    model = served_embedder([roomy, narrow], embedding_dir, max_in_flight=1, max_batch_tokens=300)
    model.get_text_embedding("We have met")
    # By then, nobody waits for it any more.
    time.sleep(1.0)
    narrow.start()
    vectors = model.get_text_embedding_batch([*LONG, *TEXTS])
    assert HashedVectors(embedding_dir).wrong([*LONG, *TEXTS], vectors) == []
    refused = [record for record in narrow.requests("POST") if record["status"] in (400, 413)]
    # It was there, or this shows nothing; and each request was refused once.
    assert 1 <= len(refused) <= len(LONG)
    assert roomy.counts()["peak"] == 1


def test_late_reranker_with_less_room(
    serve: Serve, reranker_dir: Path, reference_reranker: ReferenceReranker
) -> None:
    """Have pairs judged whole by the server that takes them."""
    roomy = serve("vllm", reranker_dir, role="reranker", delay_s=0.1)
    narrow = serve("vllm", reranker_dir, role="reranker", delay_s=0.1, max_tokens=200)
    narrow.stop()
    model = served_reranker([roomy, narrow], reranker_dir, max_in_flight=1, max_batch_tokens=600)
    model.score("q", ["a"])
    time.sleep(1.0)
    narrow.start()
    documents = LONG[:8]
    right = [reference_reranker.score("q", text) for text in documents]
    assert model.score("q", documents) == pytest.approx(right, abs=SCORE_TOLERANCE)
    assert 400 in [record["status"] for record in narrow.requests("POST")]


def test_the_roomy_server_dies(serve: Serve, embedding_dir: Path) -> None:
    """End with an error where no server that is left takes a text."""
    roomy = serve("vllm", embedding_dir, vectors="hashed")
    narrow = serve("vllm", embedding_dir, vectors="hashed", max_tokens=50)
    narrow.stop()
    model = served_embedder([roomy, narrow], embedding_dir, retry_s=2.0)
    model.get_text_embedding("We have met")
    roomy.change(hold_from=1)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(model.get_text_embedding, LONG[0])
        roomy.until(1, "held")
        narrow.start()
        roomy.stop()
        with pytest.raises(ServerError, match=roomy.url) as caught:
            work.result(WAIT_S)
    assert "50 tokens" in str(caught.value)
    assert "word" not in str(caught.value)
    assert len([record for record in narrow.requests("POST") if record["status"] == 400]) == 1


def test_a_server_comes_back_with_less_room(serve: Serve, embedding_dir: Path) -> None:
    """Say what it refuses, at once, and go on with what it takes."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir, retry_s=0.3)
    model.get_text_embedding("We have met")
    lose(server, lambda: model.get_text_embedding("a"))
    server.change(max_tokens=50)
    server.start()
    before = server.counts()["posts"]
    with pytest.raises(ServerError, match="50 tokens"):
        model.get_text_embedding(LONG[0])
    assert len(posts_of(server, before)) == 2
    vector = model.get_text_embedding("short")
    assert close(vector, HashedVectors(embedding_dir).document("short"))
