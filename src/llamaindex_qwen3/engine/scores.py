"""Log-odds from a server: how they are asked for, and when they are those of one model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .endpoint import Endpoint
from .wire import WrongAnswerError, classification, read_classification

# Log-odds between runs of one prompt in bfloat16, in batches of other sizes.
SAME = 0.25


async def classify(
    endpoint: Endpoint,
    model: str,
    prompts: Sequence[Sequence[int]],
    raw: bool,
    private: Sequence[str] = (),
) -> list[float]:
    """Ask a server for log-odds [prompts] of whole prompts; for `private` see `Endpoint.post`."""
    answer = await endpoint.post("/classify", classification(model, prompts, raw), private)
    values = read_classification(answer, len(prompts))
    return values if raw else [log_odds(value) for value in values]


def log_odds(probability: float) -> float:
    """Return the log-odds of a probability, finite also where it is rounded to 0 or 1."""
    if not 0 <= probability <= 1:
        raise WrongAnswerError(f"a score of {probability:.4g}, which is no probability")
    bounded = min(max(probability, 1e-12), 1 - 6e-8)
    return math.log(bounded / (1 - bounded))


def farthest(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest difference between scores of the same prompts."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def sigmoid(value: float) -> float:
    """Return the probability of log-odds."""
    return 1 / (1 + math.exp(-min(max(value, -60), 60)))
