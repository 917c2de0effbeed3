"""Models behind servers give what local ones give, whatever the server takes."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import ADDED_TOKENS, Shape
from components import (
    COSINE_TOLERANCE,
    SCORE_TOLERANCE,
    candidates,
    cosine_distance,
    embedder,
    length,
    reranker,
)
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from reference import TASK, ReferenceEmbedder, ReferenceReranker
from served import HashedVectors, asked, close, in_time, served_embedder, served_reranker
from servers.fake_servers import FakeServer
from test_control_tokens import ATTACKS
from texts import EDGE_TEXTS, random_texts

from llamaindex_qwen3.errors import (
    AlteredTextWarning,
    InputTooLongError,
    InvalidArgumentError,
    ModelNotServedError,
    Qwen3Error,
    ServerMismatchError,
    TruncationWarning,
)

Serve = Callable[..., FakeServer]
Factory = Callable[..., Path]

TEXTS = [*random_texts(500, 40), "the same", "the same", *TASK.split()]
# What servers do that embed: the kind, and settings of the fake.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vLLM": ("vllm", {}),
    "vLLM, out of order": ("vllm", {"shuffled": True}),
    "OpenAI's, with ids": ("openai", {}),
    "OpenAI's, texts only": ("openai", {"takes_ids": False}),
    "OpenAI's, no list of models": ("openai", {"takes_ids": False, "lists_models": False}),
    "infinity": ("infinity", {}),
    "TEI": ("tei", {}),
}
kinds = pytest.mark.parametrize(("kind", "settings"), KINDS.values(), ids=KINDS)
TEXT_ONLY = {name: KINDS[name] for name in ("OpenAI's, texts only", "infinity", "TEI")}
text_only = pytest.mark.parametrize(("kind", "settings"), TEXT_ONLY.values(), ids=TEXT_ONLY)


def plain(text: str) -> bool:
    """Say whether every server can be sent a text as it is."""
    return text == text.strip() and text != ""


# --- vectors ------------------------------------------------------------------------------------


@kinds
def test_vectors(
    serve: Serve,
    embedding_dir: Path,
    reference_embedder: ReferenceEmbedder,
    kind: str,
    settings: dict[str, Any],
) -> None:
    """Give the reference's vectors of documents and queries, sync and async, in order."""
    model = served_embedder(
        serve(kind, embedding_dir, **settings), embedding_dir, served_model_name="qwen3"
    )
    texts = [text for text in TEXTS if plain(text)]
    vectors = model.get_text_embedding_batch(texts)
    for text, vector in zip(texts, vectors, strict=True):
        assert cosine_distance(vector, reference_embedder.document(text)) < COSINE_TOLERANCE, text
        assert length(vector) == pytest.approx(1.0, abs=1e-6)
    assert in_time(model.aget_text_embedding_batch(texts)) == vectors
    for query in texts[:5]:
        expected = reference_embedder.query(query)
        assert cosine_distance(model.get_query_embedding(query), expected) < COSINE_TOLERANCE
        vector = in_time(model.aget_query_embedding(query))
        assert cosine_distance(vector, expected) < COSINE_TOLERANCE


@pytest.mark.parametrize("kind", ["vllm", "openai"])
def test_edge_texts_as_ids(
    serve: Serve, embedding_dir: Path, reference_embedder: ReferenceEmbedder, kind: str
) -> None:
    """Keep white space and empty texts where ids are sent."""
    model = served_embedder(serve(kind, embedding_dir), embedding_dir)
    vectors = model.get_text_embedding_batch(list(EDGE_TEXTS))
    for text, vector in zip(EDGE_TEXTS, vectors, strict=True):
        assert cosine_distance(vector, reference_embedder.document(text)) < COSINE_TOLERANCE, text
        expected = reference_embedder.query(text)
        assert cosine_distance(model.get_query_embedding(text), expected) < COSINE_TOLERANCE, text


@text_only
@pytest.mark.parametrize("text", EDGE_TEXTS, ids=repr)
def test_edge_texts_as_texts(
    serve: Serve,
    embedding_dir: Path,
    reference_embedder: ReferenceEmbedder,
    kind: str,
    settings: dict[str, Any],
    text: str,
) -> None:
    """Embed a text that a server strips or refuses rightly, or say that it cannot be."""
    model = served_embedder(serve(kind, embedding_dir, **settings), embedding_dir)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            vector = model.get_text_embedding(text)
        except Qwen3Error as error:
            refused = str(error)
            assert (kind, text) == ("tei", ""), refused
            return
    if cosine_distance(vector, reference_embedder.document(text)) > COSINE_TOLERANCE:
        assert kind == "infinity"
        assert [warning.category for warning in caught] == [AlteredTextWarning]


@kinds
def test_dimensions(
    serve: Serve,
    embedding_dir: Path,
    reference_embedder: ReferenceEmbedder,
    kind: str,
    settings: dict[str, Any],
) -> None:
    """Cut vectors and scale them on the client, whatever the server could do."""
    model = served_embedder(
        serve(kind, embedding_dir, **settings),
        embedding_dir,
        dimensions=40,
        served_model_name="qwen3",
    )
    vector = model.get_text_embedding("a text")
    assert cosine_distance(vector, reference_embedder.document("a text", 40)) < COSINE_TOLERANCE
    assert length(vector) == pytest.approx(1.0, abs=1e-6)
    assert model.dim == 40


def test_tasks(serve: Serve, embedding_dir: Path, reference_embedder: ReferenceEmbedder) -> None:
    """Put tasks into the text, and share the connection among them."""
    server = serve("vllm", embedding_dir)
    model = served_embedder(server, embedding_dir, text_instruction="Say it again")
    vector = model.get_text_embedding("a")
    expected = reference_embedder.query("a", "Say it again")
    assert cosine_distance(vector, expected) < COSINE_TOLERANCE
    before = server.counts()["requests"]
    vector = model.with_task("Find a law").get_query_embedding("a")
    expected = reference_embedder.query("a", "Find a law")
    assert cosine_distance(vector, expected) < COSINE_TOLERANCE
    assert server.counts()["requests"] == before + 1


# --- what is sent -------------------------------------------------------------------------------


def test_requests_to_vllm(serve: Serve, embedding_dir: Path) -> None:
    """Send ids with the end token, ask for base64, and for nothing that changes vectors."""
    server = serve("vllm", embedding_dir, vectors="hashed", name="qwen/small")
    expected = HashedVectors(embedding_dir)
    served_embedder(server, embedding_dir, dimensions=40).get_text_embedding_batch(["a b", "c"])
    assert ("GET", "/v1/models") in asked(server.requests())
    record = server.requests("POST")[-1]
    assert record["path"] == "/v1/embeddings"
    body = record["body"]
    assert (body["model"], body["encoding_format"]) == ("qwen/small", "base64")
    assert sorted(body["input"]) == sorted([expected.ids("a b"), expected.ids("c")])
    assert not {"dimensions", "truncate_prompt_tokens", "input_type", "prompt_name"} & set(body)
    assert record["headers"].get("Authorization") is None


def test_requests_to_tei(serve: Serve, embedding_dir: Path) -> None:
    """Send texts, to be neither cut nor prompted by the server."""
    server = serve("tei", embedding_dir, vectors="hashed")
    served_embedder(server, embedding_dir).get_text_embedding("a b")
    assert ("GET", "/info") in asked(server.requests())
    record = server.requests("POST")[-1]
    assert (record["path"], record["body"]["inputs"]) == ("/embed", ["a b"])
    assert record["body"]["truncate"] is False
    assert not record["body"].get("prompt_name")


def test_batches(serve: Serve, embedding_dir: Path) -> None:
    """Send at most 32 texts and about 4,096 tokens at once, and equal texts once."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    expected = HashedVectors(embedding_dir)
    model = served_embedder(server, embedding_dir, embed_batch_size=2048)
    model.get_text_embedding("warm")
    before = len(server.requests("POST"))
    texts = [f"{i} " + "word " * (i % 7 * 100) for i in range(200)] * 2
    assert expected.wrong(texts, model.get_text_embedding_batch(texts)) == []
    records = server.requests("POST")[before:]
    assert all(record["texts"] <= 32 for record in records)
    assert all(sum(map(len, record["ids"])) <= 1.25 * 4096 for record in records)
    sent = [tuple(row) for record in records for row in record["ids"]]
    assert len(sent) == len(set(sent)) == 200
    total = sum(map(len, sent))
    assert len(records) <= 2 * max(200 / 32, total / 4096) + 1


@text_only
def test_batches_of_texts(
    serve: Serve, embedding_dir: Path, kind: str, settings: dict[str, Any]
) -> None:
    """Keep to what a server takes at once, if it says so: nothing is refused for its size."""
    limit = {"max_texts": 5} if kind == "tei" else {}
    server = serve(kind, embedding_dir, vectors="hashed", **settings, **limit)
    model = served_embedder(server, embedding_dir)
    texts = [f"text {i}" for i in range(100)]
    assert HashedVectors(embedding_dir).wrong(texts, model.get_text_embedding_batch(texts)) == []
    assert 413 not in [record["status"] for record in server.requests()]


# --- long texts ---------------------------------------------------------------------------------

LONG = "a word and then " * 60


@kinds
@pytest.mark.parametrize("limited_by", ["client", "server"])
def test_long_texts(
    serve: Serve, embedding_dir: Path, kind: str, settings: dict[str, Any], limited_by: str
) -> None:
    """Cut on the client as locally, with a warning, to the lower limit of client and server."""
    if limited_by == "server" and kind not in ("vllm", "tei"):
        pytest.skip("says nothing about its limit")
    limits = {"max_tokens": 50} if limited_by == "server" else {}
    server = serve(kind, embedding_dir, vectors="hashed", **settings, **limits)
    expected = HashedVectors(embedding_dir)
    model = served_embedder(
        server,
        embedding_dir,
        served_model_name="qwen3",
        **({"max_length": 50} if limited_by == "client" else {}),
    )
    assert len(expected.ids(LONG)) > 100
    with pytest.warns(TruncationWarning, match="50"):
        vectors = model.get_text_embedding_batch(["short", LONG, "last"])
    assert close(vectors[0], expected.document("short"))
    assert close(vectors[1], expected.document(LONG, 50))
    assert close(vectors[2], expected.document("last"))
    assert max(len(row) for record in server.requests() for row in record["ids"]) <= 50
    # Once a model.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.get_text_embedding_batch([LONG + "again"])


@kinds
def test_cut_anywhere(
    serve: Serve, embedding_dir: Path, kind: str, settings: dict[str, Any]
) -> None:
    """Cut within words, signs of several bytes and marks: never too long, exact where ids go."""
    server = serve(kind, embedding_dir, vectors="hashed", **settings)
    expected = HashedVectors(embedding_dir)
    texts = [text for text in random_texts(501, 44, longest=30) if plain(text)]
    for most in (9, 16, 23):
        model = served_embedder(server, embedding_dir, max_length=most, served_model_name="qwen3")
        with warnings.catch_warnings():
            # Once for all these models, which are one to the server.
            warnings.simplefilter("ignore", TruncationWarning)
            # A cut may leave white space at the end.
            warnings.simplefilter("ignore", AlteredTextWarning)
            vectors = model.get_text_embedding_batch(texts)
        for text, vector in zip(texts, vectors, strict=True):
            if len(expected.ids(text)) <= most or settings.get(
                "takes_ids", kind in ("vllm", "openai")
            ):
                assert close(vector, expected.document(text, most)), text
    sent = [row for record in server.requests() for row in record["ids"]]
    assert max(map(len, sent)) <= 23


def test_long_queries(serve: Serve, embedding_dir: Path) -> None:
    """Refuse a task that leaves a query no room, before anything is sent for it."""
    server = serve("vllm", embedding_dir, vectors="hashed", max_tokens=10)
    model = served_embedder(server, embedding_dir)
    with pytest.raises(InputTooLongError, match="10"):
        model.get_query_embedding("a")


# --- control tokens -----------------------------------------------------------------------------

CONTROL_TEXTS = [*(f"Ignore {token} it" for token in ADDED_TOKENS), *ADDED_TOKENS, *ATTACKS]


@kinds
def test_control_tokens(
    serve: Serve, embedding_dir: Path, kind: str, settings: dict[str, Any]
) -> None:
    """Let no text become a control token on a server, whose tokenizer lets them count."""
    server = serve(kind, embedding_dir, vectors="hashed", **settings)
    expected = HashedVectors(embedding_dir)
    tokenizer = expected.tokenizer.full
    model = served_embedder(server, embedding_dir, served_model_name="qwen3")
    model.get_text_embedding("We have met")
    before = server.counts()["requests"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AlteredTextWarning)
        vectors = model.get_text_embedding_batch(CONTROL_TEXTS)
        for text in CONTROL_TEXTS[::5]:
            model.get_query_embedding(text)
            model.with_task(f"Find {text}").get_query_embedding("a")
    control = {tokenizer.token_to_id(token) for token in ADDED_TOKENS}
    read = [row for record in server.requests()[before:] for row in record["ids"]]
    assert len(read) > len(CONTROL_TEXTS)
    assert all(row[-1] == expected.tokenizer.end for row in read)
    assert not any(control & set(row[:-1]) for row in read)
    if settings.get("takes_ids", kind in ("vllm", "openai")):
        assert expected.wrong(CONTROL_TEXTS, vectors) == []


# --- scores -------------------------------------------------------------------------------------

PAIRS = [text for text in random_texts(502, 24) if plain(text)]


@pytest.mark.parametrize("settings", [{}, {"shuffled": True}], ids=["in order", "out of order"])
def test_scores(
    serve: Serve,
    reranker_dir: Path,
    reference_reranker: ReferenceReranker,
    settings: dict[str, Any],
) -> None:
    """Give the reference's scores, with and without a task, sync and async, in order."""
    server = serve("vllm", reranker_dir, role="reranker", **settings)
    model = served_reranker(server, reranker_dir)
    expected = [reference_reranker.score("what is it?", text) for text in PAIRS]
    assert model.score("what is it?", PAIRS) == pytest.approx(expected, abs=SCORE_TOLERANCE)
    scores = in_time(model.ascore("what is it?", PAIRS))
    assert scores == pytest.approx(expected, abs=SCORE_TOLERANCE)
    other = model.with_task("Find the law")
    expected = [reference_reranker.score("what is it?", text, "Find the law") for text in PAIRS]
    assert other.score("what is it?", PAIRS) == pytest.approx(expected, abs=SCORE_TOLERANCE)
    assert server.requests("POST")[-1]["path"] == "/classify"


def test_edge_and_control_texts_are_scored(
    serve: Serve, reranker_dir: Path, reference_reranker: ReferenceReranker
) -> None:
    """Keep white space, and let no text become a control token, on either side."""
    server = serve("vllm", reranker_dir, role="reranker")
    model = served_reranker(server, reranker_dir)
    texts = [*EDGE_TEXTS, *ATTACKS, *CONTROL_TEXTS[:8]]
    expected = [reference_reranker.score("q", text) for text in texts]
    assert model.score("q", texts) == pytest.approx(expected, abs=SCORE_TOLERANCE)
    for query in texts[::3]:
        expected = [reference_reranker.score(query, "a document", query or TASK)]
        # An instruction that is empty is refused; anything else is text.
        if query.strip():
            scores = model.with_task(query).score(query, ["a document"])
            assert scores == pytest.approx(expected, abs=SCORE_TOLERANCE), query


@pytest.mark.parametrize("raw_scores", [True, False], ids=["vLLM", "older vLLM"])
def test_log_odds(
    serve: Serve, reranker_dir: Path, reference_reranker: ReferenceReranker, raw_scores: bool
) -> None:
    """Give log-odds, also of a server that knows probabilities only."""
    server = serve("vllm", reranker_dir, role="reranker", raw_scores=raw_scores)
    model = served_reranker(server, reranker_dir, score_type="logit")
    expected = [reference_reranker.log_odds(reference_reranker.ids("q", text)) for text in PAIRS]
    assert model.score("q", PAIRS) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("limited_by", ["client", "server"])
def test_long_documents(
    serve: Serve, reranker_dir: Path, reference_reranker: ReferenceReranker, limited_by: str
) -> None:
    """Cut the document alone, to the lower limit of client and server, and say so on its node."""
    most = 200
    server = serve(
        "vllm", reranker_dir, role="reranker", max_tokens=most if limited_by == "server" else 40960
    )
    options = {"max_length": most} if limited_by == "client" else {}
    model = served_reranker(server, reranker_dir, **options)
    ids = reference_reranker.ids("q", LONG, max_length=most)
    assert reference_reranker.length("q", LONG) > most + 20
    with pytest.warns(TruncationWarning):
        nodes = model.postprocess_nodes(candidates(["short", LONG]), query_str="q")
    by_id = {node.node.node_id: node for node in nodes}
    assert by_id["n1"].score == pytest.approx(
        reference_reranker.probability(ids), abs=SCORE_TOLERANCE
    )
    cut = reference_reranker.length("q", LONG) - most
    assert by_id["n1"].node.metadata["truncated_tokens"] == cut
    assert "truncated_tokens" not in by_id["n0"].node.metadata
    assert max(len(row) for record in server.requests() for row in record["ids"]) <= most
    with pytest.raises(InputTooLongError):
        model.score("word " * 2 * most, ["a"])


def test_rerank_with_the_right_template(
    serve: Serve, reranker_dir: Path, reference_reranker: ReferenceReranker
) -> None:
    """Let the server render where that is asked for and its template proves to be right."""
    server = serve("vllm", reranker_dir, role="reranker")
    model = served_reranker(server, reranker_dir, server="openai")
    expected = [reference_reranker.score("what is it?", text) for text in PAIRS]
    assert model.score("what is it?", PAIRS) == pytest.approx(expected, abs=SCORE_TOLERANCE)
    other = model.with_task("Find the law").score("q", PAIRS[:2])
    expected = [reference_reranker.score("q", text, "Find the law") for text in PAIRS[:2]]
    assert other == pytest.approx(expected, abs=SCORE_TOLERANCE)
    assert server.requests("POST")[-1]["path"] == "/v1/rerank"


# --- servers that would give wrong numbers -------------------------------------------------------

TEMPLATES = {"none": "joined", "lost newline": "line break", "ignores the task": "instruction"}


@pytest.mark.parametrize("classifies", [True, False])
@pytest.mark.parametrize(("template", "cause"), TEMPLATES.items(), ids=TEMPLATES)
def test_wrong_templates(
    serve: Serve, reranker_dir: Path, template: str, cause: str, classifies: bool
) -> None:
    """Refuse a server whose template is not the model's, with the cause, where it would be used."""
    server = serve("vllm", reranker_dir, role="reranker", classifies=classifies, template=template)
    model = served_reranker(server, reranker_dir, server="openai" if classifies else None)
    with pytest.raises(ServerMismatchError, match=r"template|prompt") as caught:
        model.score("q", ["a"])
    assert server.url in str(caught.value)
    if classifies:
        assert cause in str(caught.value)


@pytest.mark.parametrize("kind", ["vllm", "tei"])
def test_wrong_role(serve: Serve, embedding_dir: Path, reranker_dir: Path, kind: str) -> None:
    """Refuse an embedding server as a reranker, which vLLM's would answer, and the reverse."""
    with pytest.raises(ServerMismatchError):
        served_reranker(serve(kind, embedding_dir), reranker_dir).score("q", ["a"])
    server = serve(kind, reranker_dir, role="reranker")
    with pytest.raises(ServerMismatchError):
        served_embedder(server, embedding_dir).get_text_embedding("a")


def test_tei_as_a_reranker(serve: Serve, reranker_dir: Path) -> None:
    """Refuse TEI for reranking, which has no template for it."""
    server = serve("tei", reranker_dir, role="reranker")
    with pytest.raises(ServerMismatchError, match="text-embeddings-inference"):
        served_reranker(server, reranker_dir).score("q", ["a"])


def test_mean_pooling(serve: Serve, embedding_dir: Path) -> None:
    """Refuse a TEI that pools another way."""
    server = serve("tei", embedding_dir, pooling="mean")
    with pytest.raises(ServerMismatchError, match="mean") as caught:
        served_embedder(server, embedding_dir).get_text_embedding("a")
    assert "last" in str(caught.value)
    assert server.url in str(caught.value)


def test_wrong_dimension(serve: Serve, embedding_dir: Path, make_embedding: Factory) -> None:
    """Refuse a server of another model, with both lengths."""
    server = serve("vllm", make_embedding(shape=Shape(hidden_size=96)))
    model = served_embedder(server, embedding_dir, served_model_name="qwen3", dimensions=32)
    with pytest.raises(ServerMismatchError, match="96") as caught:
        model.get_text_embedding("a")
    assert "64" in str(caught.value)


def test_one_wrong_server_of_two(
    serve: Serve, embedding_dir: Path, make_embedding: Factory
) -> None:
    """Refuse two servers whose vectors differ, in length or in value."""
    right = serve("vllm", embedding_dir)
    for shape in (Shape(hidden_size=96), Shape(seed=7)):
        wrong = serve("vllm", make_embedding(shape=shape))
        for servers in ([right, wrong], [wrong, right]):
            model = served_embedder(servers, embedding_dir, served_model_name="qwen3")
            with pytest.raises(ServerMismatchError, match=wrong.url):
                model.get_text_embedding_batch([f"text {i}" for i in range(100)])


def test_one_wrong_reranker_of_two(
    serve: Serve, reranker_dir: Path, make_reranker: Factory
) -> None:
    """Refuse two rerankers whose scores differ."""
    right = serve("vllm", reranker_dir, role="reranker")
    wrong = serve("vllm", make_reranker(shape=Shape(seed=7)), role="reranker")
    model = served_reranker([right, wrong], reranker_dir, served_model_name="qwen3")
    with pytest.raises(ServerMismatchError):
        model.score("q", [f"text {i}" for i in range(100)])


@pytest.mark.parametrize("declared", ["vllm", "tei", "infinity", "openai"])
@pytest.mark.parametrize("kind", ["vllm", "tei", "infinity", "openai"])
def test_declared_kinds(
    serve: Serve,
    embedding_dir: Path,
    reference_embedder: ReferenceEmbedder,
    kind: str,
    declared: str,
) -> None:
    """Take the word for what a server is as far as its vectors are right, else refuse it."""
    model = served_embedder(
        serve(kind, embedding_dir), embedding_dir, server=declared, served_model_name="qwen3"
    )
    try:
        vector = model.get_text_embedding("a")
    except ServerMismatchError:
        assert kind != declared
    else:
        assert cosine_distance(vector, reference_embedder.document("a")) < COSINE_TOLERANCE


# --- names and addresses ------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize("prefix", ["", "/models/qwen"])
def test_addresses(serve: Serve, embedding_dir: Path, ending: str, prefix: str) -> None:
    """Take an address with and without /v1, and below a path."""
    server = serve("vllm", embedding_dir, vectors="hashed", prefix=prefix)
    model = served_embedder(server, embedding_dir, base_url=server.url + ending)
    assert close(model.get_text_embedding("a"), HashedVectors(embedding_dir).document("a"))


@pytest.mark.parametrize(
    "address", ["", "localhost:8000", "ftp://host", "http://", "http://host:port", [], ["", "x"]]
)
def test_wrong_addresses(embedding_dir: Path, address: Any) -> None:
    """Refuse at once what is no address."""
    with pytest.raises(InvalidArgumentError, match="base_url"):
        embedder(embedding_dir, base_url=address)


def test_model_names(serve: Serve, embedding_dir: Path, make_embedding: Factory) -> None:
    """Ask for the model that is listed, for the one that was named, and for no other."""
    server = serve("vllm", embedding_dir, vectors="hashed", name="some/name")
    served_embedder(server, embedding_dir).get_text_embedding("a")
    assert server.requests("POST")[-1]["body"]["model"] == "some/name"
    model = served_embedder(server, embedding_dir, served_model_name="another/name")
    with pytest.raises(ModelNotServedError, match="another/name") as caught:
        model.get_text_embedding("a")
    assert "some/name" in str(caught.value)
    assert server.url in str(caught.value)


def test_declared_values(embedding_dir: Path) -> None:
    """Refuse times and numbers that cannot work, with their names."""
    for name, value in (
        ("timeout_s", 0),
        ("timeout_s", -1.0),
        ("retry_s", -1.0),
        ("max_in_flight", 0),
    ):
        with pytest.raises(InvalidArgumentError, match=name):
            embedder(embedding_dir, base_url="http://localhost:1", **{name: value})


# --- in LlamaIndex ------------------------------------------------------------------------------


def test_no_weights(
    serve: Serve, make_embedding: Factory, make_reranker: Factory, loads: list[int]
) -> None:
    """Read no weights: a directory without them will do."""
    embedding, reranking = make_embedding(), make_reranker()
    servers = serve("vllm", embedding), serve("vllm", reranking, role="reranker")
    for directory in (embedding, reranking):
        (directory / "model.safetensors").unlink()
    loads.clear()
    assert len(served_embedder(servers[0], embedding).load().get_text_embedding("a")) == 64
    assert len(served_reranker(servers[1], reranking).load().score("a", ["b"])) == 1
    assert loads == []


def test_served_and_local_together(serve: Serve, embedding_dir: Path, reranker_dir: Path) -> None:
    """Find the same nodes with either part served."""
    embedding = serve("vllm", embedding_dir)
    reranking = serve("vllm", reranker_dir, role="reranker")
    nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(PAIRS)]

    def found(model: Any, ranker: Any) -> list[tuple[str, float]]:
        copies = [node.model_copy(deep=True) for node in nodes]
        retriever = VectorStoreIndex(copies, embed_model=model).as_retriever(similarity_top_k=8)
        ranked = ranker.postprocess_nodes(retriever.retrieve("what is it?"), query_str="what?")
        return [(node.node.node_id, node.score) for node in ranked]

    local = embedder(embedding_dir), reranker(reranker_dir)
    served = served_embedder(embedding, embedding_dir), served_reranker(reranking, reranker_dir)
    expected = found(*local)
    assert len(expected) == 3
    for model, ranker in ((served[0], local[1]), (local[0], served[1]), served):
        result = found(model, ranker)
        assert [name for name, _ in result] == [name for name, _ in expected]
        assert [score for _, score in result] == pytest.approx(
            [score for _, score in expected], abs=SCORE_TOLERANCE
        )


def test_to_dict(serve: Serve, embedding_dir: Path) -> None:
    """Come back from a dictionary as a component of the same server."""
    server = serve("vllm", embedding_dir, vectors="hashed")
    model = served_embedder(server, embedding_dir, served_model_name="qwen3")
    again = type(model).from_dict(model.to_dict())
    assert (again.base_url, again.served_model_name) == (server.url, "qwen3")
    assert close(again.get_text_embedding("a"), HashedVectors(embedding_dir).document("a"))


def test_sync_calls_in_a_running_loop(serve: Serve, embedding_dir: Path) -> None:
    """Answer sync calls made where a loop runs, as in a notebook."""
    model = served_embedder(serve("vllm", embedding_dir, vectors="hashed"), embedding_dir)

    async def cell() -> list[float]:
        await asyncio.sleep(0)
        return model.get_text_embedding("a")

    assert close(in_time(cell()), HashedVectors(embedding_dir).document("a"))
