"""Prove an installation, a fine-tune or a server right: prompts, vectors and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..embedding import Qwen3Embedding
from ..engine.checkpoint import Checkpoint, Role
from ..errors import CheckpointError, Qwen3Error
from ..reranker import Qwen3Reranker
from . import embedding, reranker
from .check import Check, Status, Tolerance, largest, tolerance_of, within
from .tokens import PromptIds

__all__ = ["Check", "Status", "Subject", "verify"]

_REFERENCE = "transformers' own pass"


@dataclass(frozen=True)
class Subject:
    """A model to verify.

    Attributes:
        role: "embedding" or "reranker".
        model: Hub id or directory; a directory may hold a tokenizer alone.
        size: "0.6b", "4b" or "8b" if the weights are Qwen's own, which values are published for.
        dtype: Precision to run in, or that the server runs in.
        base_url: Servers that run it; None runs it here.
        weights: False checks the token ids alone.
    """

    role: Role
    model: str
    size: str | None = None
    dtype: str = "auto"
    base_url: str | list[str] | None = None
    weights: bool = True

    @property
    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self.role, self.model, dtype=self.dtype)

    @property
    def is_directory(self) -> bool:
        """Whether the model is a directory here."""
        return self._checkpoint.is_local

    @property
    def _has_weights(self) -> bool:
        return any(Path(self.model).expanduser().glob("*.safetensors"))


def verify(subject: Subject) -> Iterator[Check]:
    """Yield the outcome of one check after another; failures are outcomes, not errors."""
    try:
        ids = PromptIds(subject._checkpoint)
    except CheckpointError as error:
        status: Status = "fail" if subject.is_directory else "not checked"
        yield Check("token ids", status, note=str(error))
        return
    yield from ids.check(subject.role, must_be_qwen3=subject.size is not None)
    if reason := _why_not(subject):
        results = "vectors" if subject.role == "embedding" else "scores"
        yield Check(results, "not checked", note=reason)
        return
    try:
        if subject.role == "embedding":
            yield from _verify_embedding(subject)
        else:
            yield from _verify_reranker(subject)
    except Qwen3Error as error:
        yield Check("the model runs", "fail", note=str(error))


def _why_not(subject: Subject) -> str | None:
    """Say why the model cannot run, if so."""
    if not subject.weights:
        return "only token ids were asked for"
    if subject.base_url is None and subject.is_directory and not subject._has_weights:
        return f"{subject.model} holds no weights (*.safetensors)"
    return None


def _verify_embedding(subject: Subject) -> Iterator[Check]:
    model = Qwen3Embedding(subject.model, **_options(subject)).load()
    tolerance = _tolerance(subject)
    yield embedding.check_published(model, subject.size, tolerance)
    yield from embedding.check_vectors(model, tolerance)
    found = embedding.sample_vectors(model)
    model.close()

    def compare(other: dict[str, Any]) -> float:
        reference = Qwen3Embedding(subject.model, **other).load()
        return embedding.largest_distance(found, embedding.sample_vectors(reference))

    yield _check_reference(subject, "cosine distance", compare, tolerance.cosine_distance)


def _verify_reranker(subject: Subject) -> Iterator[Check]:
    model = Qwen3Reranker(subject.model, **_options(subject)).load()
    tolerance = _tolerance(subject)
    yield from reranker.check_published(model, subject.size, tolerance)
    yield from reranker.check_scores(model, tolerance)
    found = reranker.sample_scores(model)
    model.close()

    def compare(other: dict[str, Any]) -> float:
        reference = Qwen3Reranker(subject.model, **other).load()
        return largest(found, reranker.sample_scores(reference))

    yield _check_reference(subject, "probability", compare, tolerance.probability)


def _check_reference(
    subject: Subject, unit: str, compare: Callable[[dict[str, Any]], float], tolerance: float
) -> Check:
    """Compare with transformers' own forward pass, or a server with the model run here."""
    if subject.base_url is None:
        options = {"dtype": subject.dtype, "attn_implementation": "eager"}
        return within(f"{_REFERENCE}, {unit}", compare(options), tolerance)
    name = f"the same model run here, {unit}"
    if not subject.is_directory or not subject._has_weights:
        return Check(name, "not checked", note="its weights are not in a directory here")
    return within(name, compare({"dtype": "float32"}), tolerance)


def _options(subject: Subject) -> dict[str, Any]:
    if subject.base_url is None:
        return {"dtype": subject.dtype}
    return {"base_url": subject.base_url}


def _tolerance(subject: Subject) -> Tolerance:
    """Return the tolerance of the precision in use; a server's is not known unless given."""
    if subject.base_url is not None:
        return tolerance_of(subject.dtype)
    from ..engine.loading import resolve

    return tolerance_of(resolve(replace(subject._checkpoint)).dtype)
