"""Recall, MRR and nDCG of rankings, by question and in the mean, with their uncertainty."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from llama_index.core.evaluation.retrieval.metrics import MRR, NDCG, Recall

CUTOFFS = (1, 3, 10)
NAMES = (*(f"recall@{k}" for k in CUTOFFS), "mrr@10", "ndcg@10")
LABELS = {name: name.replace("mrr", "MRR").replace("ndcg", "nDCG") for name in NAMES}
RESAMPLES = 2000
CONFIDENCE = 0.95
INTERVAL = (
    f"{CONFIDENCE:.0%} percentile bootstrap over questions, {RESAMPLES:,} resamples, fixed seed: how "
    "much a figure would vary with other questions of this kind on these documents"
)

Interval = tuple[float, float]
_Key = TypeVar("_Key", bound=Hashable)
# Numbers, so that many questions do not fill the memory.
_RESAMPLED_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Quality:
    """Means over questions, each from 0 to 1; MRR and nDCG are cut at 10.

    With several relevant sections, recall is the share of them that is found, and nDCG is 1 when
    they come first.
    """

    questions: int
    recall: dict[int, float]
    mrr: float
    ndcg: float

    def __getitem__(self, name: str) -> float:
        """Return one figure by its name in `NAMES`."""
        if name.startswith("recall@"):
            return self.recall[int(name.removeprefix("recall@"))]
        return {"mrr@10": self.mrr, "ndcg@10": self.ndcg}[name]


def measure(ranking: Sequence[str], relevant: Sequence[str]) -> dict[str, float]:
    """Return the figures of one question, by the names in `NAMES`.

    Args:
        ranking: What was found, best first, each once.
        relevant: What should have been found, in any order.
    """
    # LlamaIndex's metrics raise on an empty result, which finds nothing.
    if not ranking:
        return dict.fromkeys(NAMES, 0.0)
    expected, found = list(relevant), list(ranking)
    figures = {f"recall@{k}": _score(Recall(), expected, found[:k]) for k in CUTOFFS}
    figures["mrr@10"] = _score(MRR(), expected, found[:10])
    # Its ideal counts all that is relevant, of which ten places hold ten at most.
    ideal = _score(NDCG(), expected, expected[:10])
    figures["ndcg@10"] = _score(NDCG(), expected, found[:10]) / ideal
    return figures


def quality(figures: Sequence[Mapping[str, float]]) -> Quality:
    """Return the means over the questions, of which there is at least one."""
    mean = {name: float(np.mean([each[name] for each in figures])) for name in NAMES}
    return Quality(
        questions=len(figures),
        recall={k: mean[f"recall@{k}"] for k in CUTOFFS},
        mrr=mean["mrr@10"],
        ndcg=mean["ndcg@10"],
    )


def intervals(figures: Mapping[_Key, Sequence[float]]) -> dict[_Key, Interval]:
    """Return the bootstrap intervals of means; none of a single question.

    Args:
        figures: By any key, one value a question. For the difference of two settings, the difference at
            each question: both were asked the same, so that hard and easy questions cancel out.
    """
    values = np.asarray(list(figures.values()), dtype=np.float64)
    if values.ndim < 2 or values.shape[1] < 2:
        return {}
    # Imported here: it takes a second, and plain means do without.
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,),
        np.mean,
        axis=-1,
        n_resamples=RESAMPLES,
        batch=max(1, _RESAMPLED_AT_ONCE // values.size),
        confidence_level=CONFIDENCE,
        # BCa, which is more exact, is undefined where all questions have the same figure.
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    pairs = zip(np.ravel(found.low), np.ravel(found.high), strict=True)
    return {name: (float(a), float(b)) for name, (a, b) in zip(figures, pairs, strict=True)}


def _score(metric: Recall | MRR | NDCG, expected: list[str], found: list[str]) -> float:
    return float(metric.compute(expected_ids=expected, retrieved_ids=found).score)
