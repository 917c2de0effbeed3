"""Qwen3Embedding: its arguments and what they change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Shape, edit_weights
from components import COSINE_TOLERANCE, cosine_distance, embedder, length
from llama_index.core.embeddings import BaseEmbedding
from reference import ReferenceEmbedder
from texts import random_texts

from llamaindex_qwen3 import Qwen3Embedding
from llamaindex_qwen3.errors import InvalidArgumentError, NonFiniteError, Qwen3Error
from llamaindex_qwen3.prompts import DEFAULT_TASK

HIDDEN = Shape().hidden_size
Factory = Callable[..., Path]


def test_is_an_embedding_model(embedding_dir: Path) -> None:
    """Be LlamaIndex's kind of component, with the promised defaults."""
    model = Qwen3Embedding()
    assert isinstance(model, BaseEmbedding)
    assert model.class_name() == "Qwen3Embedding"
    assert model.model_name == "Qwen/Qwen3-Embedding-0.6B"
    assert model.query_instruction == DEFAULT_TASK
    assert (model.max_length, model.normalize, model.dtype) == (8192, True, "auto")
    for field in ("revision", "dimensions", "text_instruction", "device", "attn_implementation"):
        assert getattr(model, field) is None, field
    for field in ("max_batch_tokens", "base_url", "api_key", "server"):
        assert getattr(model, field) is None, field


def test_vectors_are_lists_of_floats(embedding_dir: Path) -> None:
    """Return plain Python floats, which every vector store takes."""
    model = embedder(embedding_dir)
    vectors = [
        model.get_query_embedding("a"),
        model.get_text_embedding("a"),
        *model.get_text_embedding_batch(["a", "b"]),
        asyncio.run(model.aget_query_embedding("a")),
        asyncio.run(model.aget_text_embedding("a")),
        *asyncio.run(model.aget_text_embedding_batch(["a", "b"])),
    ]
    for vector in vectors:
        assert type(vector) is list
        assert len(vector) == HIDDEN
        assert all(type(value) is float for value in vector)


def test_no_texts(embedding_dir: Path, passes: Any) -> None:
    """Return nothing for nothing, without a forward pass."""
    model = embedder(embedding_dir)
    assert model.get_text_embedding_batch([]) == []
    assert asyncio.run(model.aget_text_embedding_batch([])) == []
    assert model._get_text_embeddings([]) == []
    assert passes.count == 0


@pytest.mark.parametrize("dimensions", [32, 33, 50, HIDDEN - 1, HIDDEN])
def test_dimensions(
    embedding_dir: Path, reference_embedder: ReferenceEmbedder, dimensions: int
) -> None:
    """Truncate, then make the length one again."""
    model = embedder(embedding_dir, dimensions=dimensions)
    assert model.dim == dimensions
    for text in random_texts(100 + dimensions, 11):
        document, query = model.get_text_embedding(text), model.get_query_embedding(text)
        assert len(document) == len(query) == dimensions
        assert length(document) == pytest.approx(1.0, abs=1e-6)
        assert length(query) == pytest.approx(1.0, abs=1e-6)
        expected = reference_embedder.document(text, dimensions)
        assert cosine_distance(document, expected) < COSINE_TOLERANCE
        expected = reference_embedder.query(text, dimensions=dimensions)
        assert cosine_distance(query, expected) < COSINE_TOLERANCE


@pytest.mark.parametrize("dimensions", [-1, 0, 31, HIDDEN + 1, 4096])
def test_dimensions_out_of_range(embedding_dir: Path, dimensions: int) -> None:
    """Refuse dimensions the checkpoint does not have, naming the number."""
    with pytest.raises(InvalidArgumentError, match=rf"(?<!\d){dimensions}(?!\d)") as caught:
        embedder(embedding_dir, dimensions=dimensions).get_text_embedding("a")
    assert "32" in str(caught.value)


def test_dim_needs_no_weights(make_embedding: Factory, loads: list[int]) -> None:
    """Know the length of vectors before the weights are loaded."""
    directory = make_embedding(shape=Shape(hidden_size=96))
    loads.clear()
    assert embedder(directory).dim == 96
    assert embedder(directory, dimensions=40).dim == 40
    assert loads == []


def test_normalize_false(embedding_dir: Path, reference_embedder: ReferenceEmbedder) -> None:
    """Return the last token's state as it is, truncated or not."""
    ids = reference_embedder.document_ids("some text")
    for dimensions in (None, 40):
        model = embedder(embedding_dir, normalize=False, dimensions=dimensions)
        vector = model.get_text_embedding("some text")
        expected = reference_embedder.vector(ids, dimensions, normalize=False)
        assert vector == pytest.approx(expected.tolist(), abs=1e-4)
        assert abs(length(vector) - 1.0) > 0.1


@pytest.mark.parametrize(
    "task", ["Find similar code", "Gib das passende Dokument zurück", "a {b} %s\n\nc "]
)
def test_query_instruction(
    embedding_dir: Path, reference_embedder: ReferenceEmbedder, task: str
) -> None:
    """Put the task before queries, and nothing before documents."""
    model = embedder(embedding_dir, query_instruction=task)
    expected = reference_embedder.query("a b", task)
    assert cosine_distance(model.get_query_embedding("a b"), expected) < COSINE_TOLERANCE
    assert cosine_distance(expected.tolist(), reference_embedder.query("a b")) > 1e-4
    document = model.get_text_embedding("a b")
    assert cosine_distance(document, reference_embedder.document("a b")) < COSINE_TOLERANCE


def test_text_instruction(embedding_dir: Path, reference_embedder: ReferenceEmbedder) -> None:
    """Put the task before documents, too, for symmetric tasks."""
    task = "Retrieve semantically similar text"
    model = embedder(embedding_dir, text_instruction=task)
    expected = reference_embedder.query("a b", task)
    for vector in (
        model.get_text_embedding("a b"),
        model.get_text_embedding_batch(["c", "a b"])[1],
        asyncio.run(model.aget_text_embedding("a b")),
        asyncio.run(model.aget_text_embedding_batch(["a b"]))[0],
    ):
        assert cosine_distance(vector, expected) < COSINE_TOLERANCE
    query = model.get_query_embedding("a b")
    assert cosine_distance(query, reference_embedder.query("a b")) < COSINE_TOLERANCE


def test_with_task(embedding_dir: Path, reference_embedder: ReferenceEmbedder) -> None:
    """Return a component of another task with all other settings, and leave the first alone."""
    model = embedder(embedding_dir, dimensions=40, max_length=300)
    other = model.with_task("Find similar code")
    assert isinstance(other, Qwen3Embedding)
    assert other.query_instruction == "Find similar code"
    assert model.query_instruction == DEFAULT_TASK
    assert (other.dimensions, other.max_length, other.dim) == (40, 300, 40)
    expected = reference_embedder.query("a", "Find similar code", dimensions=40)
    assert cosine_distance(other.get_query_embedding("a"), expected) < COSINE_TOLERANCE
    expected = reference_embedder.query("a", dimensions=40)
    assert cosine_distance(model.get_query_embedding("a"), expected) < COSINE_TOLERANCE


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_other_dtypes_are_close(
    embedding_dir: Path, reference_embedder: ReferenceEmbedder, dtype: str
) -> None:
    """Come near the float32 vectors in the dtypes made for speed, with exact length."""
    model = embedder(embedding_dir, dtype=dtype, dimensions=40)
    for text in random_texts(110, 11):
        vector = model.get_text_embedding(text)
        assert cosine_distance(vector, reference_embedder.document(text, 40)) < 0.01
        assert length(vector) == pytest.approx(1.0, abs=1e-6)


def test_auto_never_computes_in_float16(make_embedding: Factory) -> None:
    """Not follow a checkpoint into float16, where some texts give NaN."""
    directory = make_embedding(shape=Shape(dtype=torch.float16))

    def enlarge(weights: dict[str, torch.Tensor]) -> None:
        # Products of the two pass float16's largest number, 65504.
        for name in ("gate_proj", "up_proj"):
            weights[f"layers.0.mlp.{name}.weight"].mul_(2000)

    edit_weights(directory, enlarge)
    vector = embedder(directory, dtype="auto").get_text_embedding("some text")
    assert cosine_distance(vector, ReferenceEmbedder(directory).document("some text")) < 0.01


def test_float16_is_refused_for_the_largest_model(make_embedding: Factory) -> None:
    """Refuse float16 where it is known to give NaN, and say what to use."""
    shape = Shape(hidden_size=4096, layers=1, intermediate_size=32, dtype=torch.bfloat16)
    directory = make_embedding(shape=shape)
    with pytest.raises(Qwen3Error, match="float16") as caught:
        embedder(directory, dtype="float16").get_text_embedding("a")
    assert "bfloat16" in str(caught.value)


@pytest.mark.parametrize("dtype", ["int8", "float64", "", "fp32"])
def test_unknown_dtype(embedding_dir: Path, dtype: str) -> None:
    """Refuse a dtype that is not offered."""
    with pytest.raises(ValueError, match=r"dtype"):
        embedder(embedding_dir, dtype=dtype).get_text_embedding("a")


@pytest.mark.parametrize("index", [0, 2])
def test_lone_surrogate(embedding_dir: Path, index: int) -> None:
    """Refuse a text that is not text, naming its place, and embed the rest afterwards."""
    model = embedder(embedding_dir)
    texts = ["a", "b", "c", "d"]
    broken = [*texts[:index], "x\ud800y", *texts[index:]]
    with pytest.raises(InvalidArgumentError, match=rf"(?<!\d){index}(?!\d)"):
        model.get_text_embedding_batch(broken)
    with pytest.raises(InvalidArgumentError, match=rf"(?<!\d){index}(?!\d)"):
        asyncio.run(model.aget_text_embedding_batch(broken))
    with pytest.raises(InvalidArgumentError):
        model.get_query_embedding("x\udfffy")
    assert len(model.get_text_embedding_batch(texts)) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_vectors(make_embedding: Factory, value: float) -> None:
    """Raise rather than return a vector that is not a number."""
    directory = make_embedding()
    edit_weights(directory, lambda weights: weights["norm.weight"].fill_(value))
    model = embedder(directory)
    for work in (
        lambda: model.get_query_embedding("a"),
        lambda: model.get_text_embedding_batch(["a", "b"]),
        lambda: asyncio.run(model.aget_text_embedding("a")),
    ):
        with pytest.raises(NonFiniteError):
            work()


def test_one_non_finite_text_leaves_the_others(make_embedding: Factory) -> None:
    """Go on after a text that cannot be embedded."""
    directory = make_embedding()
    reference = ReferenceEmbedder(directory)
    (token,) = reference.tokenizer.text("yes")
    edit_weights(
        directory, lambda weights: weights["embed_tokens.weight"][token].fill_(float("nan"))
    )
    model = embedder(directory)
    with pytest.raises(NonFiniteError):
        model.get_text_embedding_batch(["a", "yes", "b"])
    vectors = model.get_text_embedding_batch(["a", "b"])
    assert cosine_distance(vectors[1], reference.document("b")) < COSINE_TOLERANCE


def test_misspelt_argument(embedding_dir: Path) -> None:
    """Refuse an argument that does not exist."""
    with pytest.raises(ValueError, match="dimension"):
        Qwen3Embedding(model_name=str(embedding_dir), dimension=64)


def test_path_object(embedding_dir: Path, reference_embedder: ReferenceEmbedder) -> None:
    """Take a local directory written with a trailing slash."""
    vector = embedder(embedding_dir, model_name=f"{embedding_dir}/").get_text_embedding("a")
    assert cosine_distance(vector, reference_embedder.document("a")) < COSINE_TOLERANCE
