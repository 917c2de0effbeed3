"""What verify says of right models, and that each of its checks can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Shape, edit_json, save_embedding, save_reranker, save_tokenizer
from reference import ReferenceEmbedder, ReferenceReranker
from servers.fake_servers import FakeServer
from shell import Shell
from tokenizers import Tokenizer

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker
from llamaindex_qwen3.verify import Check, Subject, embedding, published, tokens, verify
from llamaindex_qwen3.verify.check import BFLOAT16, FLOAT32, effect, tolerance_of, within

SHARED = Path(__file__).parents[2] / "shared"
QWEN3 = SHARED / "qwen3-tokenizer"
needs_qwen3 = pytest.mark.skipif(
    not QWEN3.is_dir(), reason="needs Qwen3's tokenizer in ../shared/qwen3-tokenizer"
)


def outcomes(role: Any, model: Path | str, **options: Any) -> dict[str, Check]:
    """Return the outcome of each check by its name."""
    options = {"dtype": "float32", **options}
    checks = list(verify(Subject(role, str(model), **options)))
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def failed(checks: dict[str, Check]) -> list[str]:
    """Return the names of the checks that failed."""
    return [name for name, check in checks.items() if check.status == "fail"]


@pytest.fixture(scope="module")
def qwen3() -> Tokenizer:
    """Return the tokenizer that the published ids are of."""
    return Tokenizer.from_file(str(QWEN3 / "tokenizer.json"))


@pytest.fixture(scope="module")
def original(qwen3: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return random checkpoints of both roles with Qwen3's own tokenizer."""
    folder = tmp_path_factory.mktemp("original")
    return {
        "embedding": save_embedding(folder / "embedding", qwen3),
        "reranker": save_reranker(folder / "reranker", qwen3),
    }


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/golden.json")
def test_the_data_is_what_was_published() -> None:
    """Hold the values in the package against where they were collected."""
    golden = json.loads((SHARED / "golden.json").read_text())
    ids = {**published.TOKEN_IDS, "\n": 198, "\n\n": 271}
    assert ids == golden["token_ids"]
    assert golden["reranker_prefix_ids"] == published.RERANKER_PREFIX_IDS
    assert golden["reranker_suffix_ids"] == published.RERANKER_SUFFIX_IDS
    texts = {text: [*published.TEXT_IDS[text], 151643] for text in ("test", "test again")}
    assert texts == golden["embedding_tokens"]
    similarity = golden["embedding_similarity"]
    for size, values in published.SIMILARITIES.items():
        assert values == similarity[size.upper()]
    for text in (*published.QUERIES, *published.DOCUMENTS):
        assert repr(text) in similarity["source"].replace('"', "'")
    planets = golden["reranker_0.6b_fp32_log_odds"]
    assert planets["query"] == published.PLANET_QUERY
    assert planets["documents"] == list(published.PLANETS)
    assert planets["log_odds"] == published.LOG_ODDS["0.6b"]


def test_a_right_checkpoint_passes(embedding_dir: Path, reranker_dir: Path) -> None:
    """Pass everything but what is published of other weights and another tokenizer."""
    for role, model in (("embedding", embedding_dir), ("reranker", reranker_dir)):
        checks = outcomes(role, model)
        assert failed(checks) == []
        unchecked = [name for name, check in checks.items() if check.status == "not checked"]
        assert len(unchecked) == 2
        assert "tokens of its own" in checks[unchecked[0]].note
        assert "Qwen's own weights" in checks[unchecked[1]].note
        assert any("transformers" in name for name in checks)


@needs_qwen3
def test_published_ids(original: dict[str, Path]) -> None:
    """Pass with Qwen3's tokenizer, beside a model and alone."""
    for role, model in original.items():
        for place in (model, QWEN3):
            checks = outcomes(role, place, weights=False)
            assert failed(checks) == []
            assert "ids of short texts" in checks
            assert ("ids before the pair (39)" in checks) is (role == "reranker")
            [last] = [check for check in checks.values() if check.status == "not checked"]
            assert "asked for" in last.note


@needs_qwen3
def test_a_wrong_tokenizer_fails(qwen3: Tokenizer, tmp_path: Path) -> None:
    """Notice control tokens that changed their places, and say what they should be."""
    spec = json.loads(qwen3.to_str())
    ids = {token["content"]: token for token in spec["added_tokens"]}
    one, other = ids["<think>"], ids["</think>"]
    one["content"], other["content"] = other["content"], one["content"]
    save_tokenizer(Tokenizer.from_str(json.dumps(spec)), tmp_path)
    checks = outcomes("reranker", tmp_path)
    assert failed(checks) == ["ids of the control tokens, yes and no", "ids after the pair (9)"]
    assert "151667" in checks["ids after the pair (9)"].note


def test_a_tokenizer_that_is_not_qwen3s(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Fail where Qwen's own weights were named: their ids are known."""
    save_tokenizer(tokenizer, tmp_path)
    assert "ids of short texts" in failed(outcomes("embedding", tmp_path, size="0.6b"))
    assert failed(outcomes("embedding", tmp_path)) == []


@needs_qwen3
def test_published_similarities(original: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on other weights, and pass when the published values are these weights' own."""
    name = "similarities of the model card"
    checks = outcomes("embedding", original["embedding"], size="0.6b")
    assert failed(checks) == [name]
    reference = ReferenceEmbedder(original["embedding"])
    right = [
        [float(reference.query(query) @ reference.document(text)) for text in published.DOCUMENTS]
        for query in published.QUERIES
    ]
    monkeypatch.setitem(published.SIMILARITIES, "0.6b", right)
    check = outcomes("embedding", original["embedding"], size="0.6b")[name]
    assert check.status == "pass"
    assert check.difference is not None
    assert check.difference < 1e-5


@needs_qwen3
def test_published_log_odds(original: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on other weights, and pass when the published values are these weights' own."""
    checks = outcomes("reranker", original["reranker"], size="0.6b")
    assert "published log-odds" in failed(checks)
    reference = ReferenceReranker(original["reranker"])
    right = [
        reference.log_odds(reference.ids(published.PLANET_QUERY, text))
        for text in published.PLANETS
    ]
    monkeypatch.setitem(published.LOG_ODDS, "0.6b", right)
    checks = outcomes("reranker", original["reranker"], size="0.6b")
    assert checks["published log-odds"].status == "pass"
    order = checks["the passage that answers comes first"]
    assert (order.status == "pass") is (right.index(max(right)) == 1)
    # Of the other sizes the order alone is known.
    assert (
        outcomes("reranker", original["reranker"], size="4b")["published log-odds"].status
        == "not checked"
    )


def test_a_text_that_depends_on_its_batch(
    embedding_dir: Path, reranker_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail when a text alone has another vector or score than among others."""
    embed, score = Qwen3Embedding._get_text_embedding, Qwen3Reranker.score

    def turned(self: Qwen3Embedding, text: str) -> list[float]:
        vector = embed(self, text)
        return [vector[1], vector[0], *vector[2:]]

    def raised(self: Qwen3Reranker, query: str, texts: list[str]) -> list[float]:
        return [value + 0.001 * (len(texts) == 1) for value in score(self, query, texts)]

    monkeypatch.setattr(Qwen3Embedding, "_get_text_embedding", turned)
    monkeypatch.setattr(Qwen3Reranker, "score", raised)
    assert failed(outcomes("embedding", embedding_dir)) == [
        "a text alone and in a batch, cosine distance"
    ]
    assert failed(outcomes("reranker", reranker_dir)) == [
        "a text alone and in a batch, probability"
    ]


def test_another_forward_pass(embedding_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when transformers' own pass gives other vectors than the engine's."""
    real = embedding.sample_vectors

    def doubled(model: Qwen3Embedding) -> list[list[float]]:
        vectors = real(model)
        if model.attn_implementation == "eager":
            vectors[-1] = [*vectors[-1][1:], vectors[-1][0]]
        return vectors

    monkeypatch.setattr(embedding, "sample_vectors", doubled)
    assert failed(outcomes("embedding", embedding_dir)) == [
        "transformers' own pass, cosine distance"
    ]


def test_vectors_of_another_length(embedding_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when vectors are not scaled."""
    embed = Qwen3Embedding._get_text_embeddings
    monkeypatch.setattr(
        Qwen3Embedding,
        "_get_text_embeddings",
        lambda self, texts: [[1.01 * x for x in vector] for vector in embed(self, texts)],
    )
    assert failed(outcomes("embedding", embedding_dir)) == ["length of vectors, less 1"]


def test_a_task_that_does_not_reach_the_model(
    reranker_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail when prompts leave it out; an effect that may be noise is told and is no failure."""
    monkeypatch.setattr(Qwen3Reranker, "with_task", lambda self, instruction: self)
    checks = outcomes("reranker", reranker_dir)
    assert failed(checks) == []
    assert checks["the task reaches the model"].status == "not checked"
    assert "noise of" in checks["the task reaches the model"].note
    whole = tokens.pair_ids
    monkeypatch.setattr(
        tokens,
        "pair_ids",
        lambda encode, before, after, task, *rest: whole(encode, before, after, "same", *rest),
    )
    assert "another task gives other ids" in failed(outcomes("reranker", reranker_dir))


def test_an_effect_is_more_than_noise() -> None:
    """Pass what is larger than the noise of the run, and than rounding where there is none."""
    assert effect("x", 1e-3, 1e-4, "moved").status == "pass"
    assert effect("x", 1e-4, 1e-4, "moved").status == "not checked"
    assert effect("x", 1e-6, 0.0, "moved").status == "not checked"


def test_no_weights(embedding_dir: Path, tmp_path: Path) -> None:
    """Check the ids, and say what could not be checked and why."""
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((embedding_dir / name).read_bytes())
    checks = outcomes("embedding", tmp_path)
    assert failed(checks) == []
    assert checks["vectors"].status == "not checked"
    assert "holds no weights" in checks["vectors"].note


def test_a_checkpoint_that_does_not_load(make_embedding: Callable[..., Path]) -> None:
    """Count what cannot be loaded as a failure, in the words of its error."""
    directory = make_embedding()
    edit_json(directory / "config.json", hidden_size=32)
    assert failed(outcomes("embedding", directory)) == ["the model runs"]


def test_a_hub_that_cannot_be_reached() -> None:
    """Tell a model that could not be fetched from one that is wrong."""
    checks = outcomes("embedding", "Qwen/no-such-model", size="0.6b")
    assert [check.status for check in checks.values()] == ["not checked"]
    assert "hub" in checks["token ids"].note


@pytest.mark.parametrize("role", ["embedding", "reranker"])
def test_a_server(
    role: str,
    serve: Callable[..., FakeServer],
    embedding_dir: Path,
    reranker_dir: Path,
    make_embedding: Callable[..., Path],
    make_reranker: Callable[..., Path],
) -> None:
    """Run the same checks through a server, and notice that it serves other weights."""
    right = {"embedding": embedding_dir, "reranker": reranker_dir}[role]
    checks = outcomes(role, right, base_url=serve("vllm", right, role=role).url)
    assert failed(checks) == [], checks
    [compared] = [check for name, check in checks.items() if "run here" in name]
    assert compared.status == "pass"
    make = {"embedding": make_embedding, "reranker": make_reranker}[role]
    other = make(shape=Shape(seed=7))
    checks = outcomes(role, right, base_url=serve("vllm", other, role=role).url)
    assert [name for name in failed(checks) if "run here" in name]


def test_precision_decides_what_is_allowed() -> None:
    """Allow more where numbers are rounded, and where a server's precision is not known."""
    assert tolerance_of("float32") is FLOAT32
    assert tolerance_of("bfloat16") is tolerance_of("auto") is BFLOAT16
    assert within("x", float("nan"), 1.0).status == "fail"
    assert within("x", 1.0, 1.0).status == "pass"


def test_bfloat16(embedding_dir: Path, reranker_dir: Path) -> None:
    """Pass in bfloat16 by its own tolerance, by more than float32's."""
    assert torch.bfloat16
    for role, model in (("embedding", embedding_dir), ("reranker", reranker_dir)):
        assert failed(outcomes(role, model, dtype="bfloat16")) == []


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path, embedding_dir: Path, reranker_dir: Path) -> Shell:
    """Return a folder with a pair of models."""
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "embedding").symlink_to(embedding_dir)
    (tmp_path / "pair" / "reranker").symlink_to(reranker_dir)
    return Shell(tmp_path)


def test_the_command(shell: Shell) -> None:
    """Show a line for each check with its difference, and count them."""
    done = shell.run("verify", "--models", "pair", "--dtype", "float32")
    assert done.code == 0, done.err
    assert "14 passed, 0 failed, 4 not checked" in done.out
    assert done.out.count("✓") == 14
    assert "≤ 1e-06" in done.out
    data = json.loads(shell.run("verify", "--models", "pair", "--json", "--no-weights").out)
    assert data["passed"] is True
    assert [model["role"] for model in data["models"]] == ["embedding", "reranker"]


def test_the_command_fails_with_its_checks(shell: Shell) -> None:
    """Exit with 1 when a check fails, or when nothing could be checked at all."""
    done = shell.run("verify", "--models", "pair", "--original", "0.6b", "--no-weights")
    assert done.code == 1
    assert "✗" in done.out
    done = shell.run("verify", "--embedding", "Qwen/no-such-model")
    assert done.code == 1
    assert "0 passed, 0 failed, 1 not checked" in done.out


def test_one_checkpoint_is_no_pair(shell: Shell) -> None:
    """Say how one checkpoint is given; given so, check it alone."""
    done = shell.run("verify", "--models", "pair/embedding")
    assert done.code == 2
    assert "--embedding" in done.err
    done = shell.run("verify", "--reranker", "pair/reranker", "--no-weights")
    assert done.code == 0
    assert "as reranker" in done.out
    assert "as embedding" not in done.out


def test_servers_are_named_by_options_or_the_environment(
    shell: Shell, serve: Callable[..., FakeServer], embedding_dir: Path
) -> None:
    """Check through the servers that are given."""
    server = serve("vllm", embedding_dir)
    options = ("verify", "--embedding", "pair/embedding", "--dtype", "float32")
    done = shell.run(*options, "--embedding-url", server.url)
    assert done.code == 0, done.out
    assert server.url in done.out
    done = shell.run(*options, QWEN3_RAG_EMBEDDING_URL=server.url)
    assert server.url in done.out
    done = shell.run(*options, "--base-url", "http://127.0.0.1:9")
    assert done.code == 1
    assert "✗ the model runs" in done.out
