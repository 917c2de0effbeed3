"""What the LlamaIndex adapters ask of an engine, local or served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class EncodeRequest:
    """Texts to embed under one task.

    `dimensions` keeps that many leading values (None keeps all); `max_length` and
    `max_batch_tokens` count tokens, padding included in the latter. `bulk` work gives way to
    queries between two forward passes.
    """

    texts: Sequence[str]
    task: str | None
    max_length: int
    dimensions: int | None = None
    normalize: bool = True
    max_batch_tokens: int | None = None
    bulk: bool = False


@dataclass(frozen=True)
class EncodeResult:
    """Vectors [texts, dimensions] in input order, and the number of tokens cut from each text."""

    vectors: list[list[float]]
    truncated: list[int]


@dataclass(frozen=True)
class ScoreRequest:
    """Documents to judge against one query."""

    query: str
    documents: Sequence[str]
    instruction: str
    max_length: int
    max_batch_tokens: int | None = None


@dataclass(frozen=True)
class ScoreResult:
    """Log-odds yes - no [documents] in input order, and the tokens cut from each document."""

    log_odds: list[float]
    truncated: list[int]


class Encoder(Protocol):
    """Turns texts into vectors."""

    def encode(self, request: EncodeRequest) -> EncodeResult:
        """Embed and wait."""

    async def aencode(self, request: EncodeRequest) -> EncodeResult:
        """Embed without blocking the event loop; cancelling stops before the next pass."""


class Scorer(Protocol):
    """Judges documents against a query."""

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Score and wait."""

    async def ascore(self, request: ScoreRequest) -> ScoreResult:
        """Score without blocking the event loop; cancelling stops before the next pass."""
