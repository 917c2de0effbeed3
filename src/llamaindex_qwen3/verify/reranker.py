"""Checks of a reranker that runs, here or on a server."""

from __future__ import annotations

from collections.abc import Iterator

from ..reranker import Qwen3Reranker
from . import published
from .check import Check, Tolerance, effect, largest, within
from .samples import OTHER_TASK, QUERY, TEXTS


def check_published(
    model: Qwen3Reranker, size: str | None, tolerance: Tolerance
) -> Iterator[Check]:
    """Compare the published log-odds, and the order that every size must give."""
    name = "published log-odds"
    if size is None:
        yield Check(name, "not checked", note="published for Qwen's own weights alone")
        return
    logit = model.model_copy(update={"score_type": "logit"})
    found = logit.score(published.PLANET_QUERY, list(published.PLANETS))
    if expected := published.LOG_ODDS.get(size):
        told = ", ".join(f"{value:.4f}" for value in found)
        yield within(name, largest(found, expected), tolerance.published_log_odds, f"found {told}")
    else:
        yield Check(name, "not checked", note=f"none are published for {size}")
    best = found.index(max(found))
    yield Check(
        "the passage that answers comes first",
        "pass" if best == 1 else "fail",
        note="" if best == 1 else f"{published.PLANETS[best]!r} did",
    )


def check_scores(model: Qwen3Reranker, tolerance: Tolerance) -> Iterator[Check]:
    """Check what holds for scores of any weights."""
    together = sample_scores(model)
    alone = [model.score(QUERY, [text])[0] for text in TEXTS]
    noise = largest(alone, together)
    yield within("a text alone and in a batch, probability", noise, tolerance.probability)
    turned = model.score(QUERY, list(reversed(TEXTS)))
    yield within(
        "the order of the texts, probability",
        largest(together, list(reversed(turned))),
        tolerance.probability,
    )
    other = largest(together, sample_scores(model.with_task(OTHER_TASK)))
    yield effect("the task reaches the model", other, noise, "another task moves a score")


def sample_scores(model: Qwen3Reranker) -> list[float]:
    """Return the scores of the samples, for another path to be compared with."""
    return model.score(QUERY, list(TEXTS))
