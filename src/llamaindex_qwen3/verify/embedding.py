"""Checks of an embedding model that runs, here or on a server."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..embedding import Qwen3Embedding
from . import published
from .check import Check, Tolerance, effect, within
from .samples import OTHER_TASK, QUERY, TEXTS

Vector = Sequence[float]
_UNIT = 1e-5


def check_published(model: Qwen3Embedding, size: str | None, tolerance: Tolerance) -> Check:
    """Compare the model card's similarities."""
    name = "similarities of the model card"
    if size is None:
        return Check(name, "not checked", note="published for Qwen's own weights alone")
    queries = [model.get_query_embedding(text) for text in published.QUERIES]
    documents = model.get_text_embedding_batch(list(published.DOCUMENTS))
    found = [_cosine(query, document) for query in queries for document in documents]
    expected = [value for row in published.SIMILARITIES[size] for value in row]
    difference = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    told = ", ".join(f"{value:.5f}" for value in found)
    return within(name, difference, tolerance.published_cosine, f"found {told}")


def check_vectors(model: Qwen3Embedding, tolerance: Tolerance) -> Iterator[Check]:
    """Check what holds for vectors of any weights."""
    together = model.get_text_embedding_batch(list(TEXTS))
    short = model.model_copy(update={"dimensions": min(64, model.dim)})
    cut = short.get_text_embedding_batch(list(TEXTS[:2]))
    lengths = [math.sqrt(sum(x * x for x in vector)) for vector in [*together, *cut]]
    yield within("length of vectors, less 1", max(abs(n - 1) for n in lengths), _UNIT)
    alone = [model.get_text_embedding(text) for text in TEXTS]
    noise = largest_distance(alone, together)
    yield within("a text alone and in a batch, cosine distance", noise, tolerance.cosine_distance)
    default, other = (
        each.get_query_embedding(QUERY) for each in (model, model.with_task(OTHER_TASK))
    )
    bare = model.get_text_embedding(QUERY)
    moved = min(1 - _cosine(default, other), 1 - _cosine(default, bare))
    yield effect("the task reaches the model", moved, noise, "another task moves a query")


def sample_vectors(model: Qwen3Embedding) -> list[list[float]]:
    """Return vectors of a query and of documents, for another path to be compared with."""
    return [model.get_query_embedding(QUERY), *model.get_text_embedding_batch(list(TEXTS))]


def largest_distance(left: Sequence[Vector], right: Sequence[Vector]) -> float:
    """Return the largest cosine distance of two lists of vectors."""
    return max(1 - _cosine(a, b) for a, b in zip(left, right, strict=True))


def _cosine(left: Vector, right: Vector) -> float:
    product = math.fsum(a * b for a, b in zip(left, right, strict=True))
    return product / math.sqrt(math.fsum(a * a for a in left) * math.fsum(b * b for b in right))
