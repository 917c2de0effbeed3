"""LlamaIndex's contract for a component: serialised, pickled, shared, without secrets."""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import operator
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape
from components import embedder, reranker
from llama_index.core.schema import MetadataMode

from llamaindex_qwen3 import Qwen3Embedding, Qwen3Reranker

Factory = Callable[..., Path]
SECRET = "sekrit-0451"

# Everything that changes vectors or scores, away from its default.
EMBEDDING_SETTINGS: dict[str, Any] = {
    "dimensions": 40,
    "query_instruction": "Find similar code",
    "text_instruction": "Find similar text",
    "max_length": 300,
    "normalize": False,
    "dtype": "float32",
}
RERANKER_SETTINGS: dict[str, Any] = {
    "top_n": 5,
    "instruction": "Find similar code",
    "max_length": 300,
    "score_threshold": 0.01,
    "score_type": "logit",
    "keep_retrieval_score": True,
    "metadata_mode": MetadataMode.LLM,
    "dtype": "float32",
}
# What does not: an ingestion cache must find the same vectors on another machine.
LAYOUT = ("device", "embed_batch_size", "max_batch_tokens", "num_workers", "callback_manager")


@pytest.fixture(params=["embedding", "reranker"])
def component(request: pytest.FixtureRequest, embedding_dir: Path, reranker_dir: Path) -> Any:
    """Return either component with settings of its own."""
    if request.param == "embedding":
        return embedder(embedding_dir, **EMBEDDING_SETTINGS)
    return reranker(reranker_dir, **RERANKER_SETTINGS)


def results(component: Any) -> list[Any]:
    """Return what a component computes."""
    if isinstance(component, Qwen3Embedding):
        return [component.get_text_embedding("a"), component.get_query_embedding("a")]
    return [component.score("a", ["b", "c"])]


def settings(component: Any) -> dict[str, Any]:
    """Return the settings that a component was made with."""
    names = EMBEDDING_SETTINGS if isinstance(component, Qwen3Embedding) else RERANKER_SETTINGS
    return {name: getattr(component, name) for name in names}


def test_round_trip(component: Any) -> None:
    """Come back from a dictionary, and from JSON, as it was."""
    data = component.to_dict()
    assert json.loads(json.dumps(data)) == data
    for copied in (
        type(component).from_dict(data),
        type(component).from_dict(json.loads(json.dumps(data))),
        type(component).from_json(component.to_json()),
    ):
        assert copied.to_dict() == data
        assert settings(copied) == settings(component)
        # The device is not written: this one has to be asked for again.
        assert results(type(component).from_dict(data, device="cpu")) == results(component)


def test_embedding_dictionary(embedding_dir: Path) -> None:
    """Write what changes vectors, and nothing about how they are computed."""
    model = embedder(embedding_dir, embed_batch_size=7, max_batch_tokens=500, **EMBEDDING_SETTINGS)
    data = model.to_dict()
    assert data["class_name"] == "Qwen3Embedding"
    assert data["model_name"] == str(embedding_dir)
    assert "revision" in data
    for name, value in EMBEDDING_SETTINGS.items():
        assert data[name] == value
    for name in LAYOUT:
        assert name not in data
    other = embedder(embedding_dir, embed_batch_size=9, device=None, **EMBEDDING_SETTINGS)
    assert other.to_dict() == data


@pytest.mark.parametrize("name", list(EMBEDDING_SETTINGS))
def test_settings_change_the_ingestion_key(embedding_dir: Path, name: str) -> None:
    """Differ in writing wherever vectors differ: LlamaIndex's ingestion cache goes by that."""
    plain = Qwen3Embedding(model_name=str(embedding_dir))
    other = Qwen3Embedding(model_name=str(embedding_dir), **{name: EMBEDDING_SETTINGS[name]})
    assert str(plain.to_dict()) != str(other.to_dict())


def test_dictionary_is_the_same_after_use(component: Any) -> None:
    """Not change in writing when the model is loaded: an ingestion cache would miss."""
    before = component.to_dict()
    results(component)
    assert component.to_dict() == before


def test_reranker_dictionary(reranker_dir: Path) -> None:
    """Write what changes scores, and nothing about how they are computed."""
    data = reranker(reranker_dir, max_batch_tokens=500, **RERANKER_SETTINGS).to_dict()
    assert data["class_name"] == "Qwen3Reranker"
    assert data["model"] == str(reranker_dir)
    assert "revision" in data
    for name, value in RERANKER_SETTINGS.items():
        assert data[name] == value
    for name in LAYOUT:
        assert name not in data


def test_default_max_length_survives(make_embedding: Factory, make_reranker: Factory) -> None:
    """Not take a default for the caller's wish when a component comes back."""
    shape = Shape(max_position_embeddings=200)
    for component in (
        embedder(make_embedding(shape=shape)),
        reranker(make_reranker(shape=shape)),
    ):
        expected = results(component)
        for copied in (
            type(component).from_dict(component.to_dict(), device="cpu"),
            pickle.loads(pickle.dumps(component)),
            copy.deepcopy(component),
            component.with_task("t"),
        ):
            assert len(results(copied)) == len(expected)


@pytest.mark.parametrize("used", [False, True])
def test_pickle(component: Any, used: bool) -> None:
    """Pickle the settings and not the weights, before and after use."""
    expected = results(component) if used else None
    data = pickle.dumps(component)
    assert len(data) < 20_000
    copied = pickle.loads(data)
    assert type(copied) is type(component)
    assert settings(copied) == settings(component)
    assert results(copied) == (expected or results(component))
    assert results(copy.deepcopy(component)) == results(component)


def test_use_in_another_process(embedding_dir: Path, reranker_dir: Path) -> None:
    """Compute the same in a new process, sent there after use."""
    model, ranker = embedder(embedding_dir), reranker(reranker_dir)
    vector, scores = model.get_query_embedding("a"), ranker.score("a", ["b", "c"])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        query = pool.submit(operator.methodcaller("get_query_embedding", "a"), model)
        assert query.result() == pytest.approx(vector, abs=1e-6)
        texts = pool.submit(operator.methodcaller("score", "a", ["b", "c"]), ranker)
        assert texts.result() == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("kind", [Qwen3Embedding, Qwen3Reranker])
def test_secrets(kind: type, caplog: pytest.LogCaptureFixture) -> None:
    """Show a key nowhere."""
    caplog.set_level(logging.DEBUG)
    component = kind(api_key=SECRET)
    shown = [repr(component), str(component), str(component.to_dict()), component.to_json()]
    shown += [str(component.dict()), component.model_dump_json(), str(vars(component))]
    if kind is Qwen3Embedding:
        shown.append(str(component.to_payload()))
    for text in shown:
        assert SECRET not in text
    assert SECRET.encode() not in pickle.dumps(component)
    assert SECRET.encode() not in pickle.dumps(component.with_task("t"))
    assert SECRET not in caplog.text


def test_payload_describes_the_model(embedding_dir: Path) -> None:
    """Tell observers which model it is."""
    payload = embedder(embedding_dir).to_payload()
    assert payload["model_name"] == str(embedding_dir)
    assert payload["class_name"] == "Qwen3Embedding"
    json.dumps(payload)
