"""`embeddings_cache`: each kind of vector has its own place in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape
from components import embedder
from llama_index.core.storage.kvstore import SimpleKVStore
from passes import ForwardPasses

from llamaindex_qwen3.errors import TruncationWarning

LONG = "The capital of China is Beijing. " * 12

# What may differ between two components that share a cache.
VARIATIONS: dict[str, dict[str, Any]] = {
    "task": {"query_instruction": "Find similar code"},
    "text instruction": {"text_instruction": "Find similar code"},
    "dimensions": {"dimensions": 40},
    "dtype": {"dtype": "bfloat16"},
    "max_length": {"max_length": 64},
    "normalisation": {"normalize": False},
}


def embed_all(model: Any) -> list[list[float]]:
    """Return the vectors of a text by every public method."""
    return [
        model.get_text_embedding("Paris"),
        model.get_query_embedding("Paris"),
        *model.get_text_embedding_batch(["Paris", "Berlin"]),
        asyncio.run(model.aget_text_embedding("Paris")),
        asyncio.run(model.aget_query_embedding("Paris")),
        *asyncio.run(model.aget_text_embedding_batch(["Paris", "Berlin"])),
    ]


def test_query_and_document_are_kept_apart(embedding_dir: Path) -> None:
    """Give the vectors that there are without a cache, whatever was cached first."""
    expected = embed_all(embedder(embedding_dir))
    model = embedder(embedding_dir, embeddings_cache=SimpleKVStore())
    for _ in range(2):
        for vector, plain in zip(embed_all(model), expected, strict=True):
            assert vector == pytest.approx(plain, abs=1e-6)
    reverse = embedder(embedding_dir, embeddings_cache=SimpleKVStore())
    assert reverse.get_query_embedding("Paris") == pytest.approx(expected[1], abs=1e-6)
    assert reverse.get_text_embedding("Paris") == pytest.approx(expected[0], abs=1e-6)


def test_second_call_runs_no_model(embedding_dir: Path, passes: ForwardPasses) -> None:
    """Take every vector that is in the cache from it, sync and async."""
    cache = SimpleKVStore()
    model = embedder(embedding_dir, embeddings_cache=cache)
    first: list[list[float]] = []
    assert passes.during(lambda: first.extend(embed_all(model))) > 0
    second: list[list[float]] = []
    assert passes.during(lambda: second.extend(embed_all(model))) == 0
    assert second == first
    again = embedder(embedding_dir, embeddings_cache=cache)
    assert passes.during(lambda: embed_all(again)) == 0


def test_only_new_texts_are_computed(embedding_dir: Path, passes: ForwardPasses) -> None:
    """Fill the gaps of a batch, in order."""
    plain = embedder(embedding_dir)
    model = embedder(embedding_dir, embeddings_cache=SimpleKVStore())
    model.get_text_embedding_batch(["b", "d"])
    texts = ["a", "b", "c", "d", "a"]
    expected = plain.get_text_embedding_batch(texts)
    assert passes.during(lambda: model.get_text_embedding_batch(["d", "b"])) == 0
    for vector, other in zip(model.get_text_embedding_batch(texts), expected, strict=True):
        assert vector == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("variation", VARIATIONS.values(), ids=VARIATIONS)
def test_settings_are_kept_apart(make_embedding: Callable[..., Path], variation: Any) -> None:
    """Not take a vector that was computed with other settings."""
    directory = make_embedding()
    cache = SimpleKVStore()
    shared = [embedder(directory, embeddings_cache=cache, **v) for v in ({}, variation)]
    plain = [embedder(directory, **v) for v in ({}, variation)]

    def embed(model: Any) -> list[list[float]]:
        return [model.get_text_embedding(LONG), model.get_query_embedding(LONG)]

    if "max_length" in variation:
        with pytest.warns(TruncationWarning):
            embed(plain[1])
    expected = [embed(model) for model in plain]
    assert expected[0] != expected[1]
    for _ in range(2):
        for model, vectors in zip(shared, expected, strict=True):
            for vector, other in zip(embed(model), vectors, strict=True):
                assert vector == pytest.approx(other, abs=1e-6)


def test_revisions_are_kept_apart(embedding_dir: Path, passes: ForwardPasses) -> None:
    """Not take a vector that another revision of the model gave."""
    cache = SimpleKVStore()
    embedder(embedding_dir, embeddings_cache=cache).get_text_embedding("Paris")
    other = embedder(embedding_dir, embeddings_cache=cache, revision="v2")
    assert passes.during(lambda: other.get_text_embedding("Paris")) == 1


def test_models_are_kept_apart(make_embedding: Callable[..., Path]) -> None:
    """Not take another checkpoint's vector."""
    cache = SimpleKVStore()
    for seed in (1, 2):
        directory = make_embedding(shape=Shape(seed=seed))
        expected = embed_all(embedder(directory))
        model = embedder(directory, embeddings_cache=cache)
        for vector, plain in zip(embed_all(model), expected, strict=True):
            assert vector == pytest.approx(plain, abs=1e-6)


def test_layout_settings_share(embedding_dir: Path, passes: ForwardPasses) -> None:
    """Take vectors that were computed in batches of another size."""
    cache = SimpleKVStore()
    model = embedder(embedding_dir, embeddings_cache=cache)
    model.get_text_embedding("Paris")
    other = embedder(
        embedding_dir, embeddings_cache=cache, embed_batch_size=3, max_batch_tokens=100
    )
    assert passes.during(lambda: other.get_text_embedding("Paris")) == 0


def test_serialises_with_a_cache(embedding_dir: Path) -> None:
    """Leave the cache out of what is written."""
    model = embedder(embedding_dir, embeddings_cache=SimpleKVStore())
    model.get_text_embedding("Paris")
    assert "Paris" not in model.to_json()
    assert type(model).from_json(model.to_json()).get_text_embedding("a")
