"""What a fake server computes: vectors and scores of a checkpoint, from texts or from token ids.

They are those of the plain reference, or cheap ones derived from the token ids, so that a test
can say what is right for each of very many texts.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

Row = tuple[int, Any]  # index, and a vector, a probability or None
Rows = list[Row]
Input = str | list[int]


@dataclasses.dataclass
class Settings:
    """How one server behaves; every field can be changed while it runs."""

    kind: str  # vllm, tei, infinity, openai
    directory: str
    role: str = "embedding"  # or reranker
    vectors: str = "reference"  # or hashed
    name: str = "qwen3"
    prefix: str = ""  # of every path
    max_tokens: int = 40960  # of one text
    max_texts: int | None = None  # of one request
    takes_ids: bool = True
    lists_models: bool = True
    classifies: bool = True
    raw_scores: bool = True  # knows "use_activation"
    template: str = "right"  # of /v1/rerank; or "none", "lost newline", "ignores the task"
    pooling: str = "last_token"
    shuffled: bool = False  # answers out of order, with the right indices
    key: str | None = None
    # Faults: each `every`-th POST gets the next of `faults`, at most `fault_count` of them.
    faults: list[str] = dataclasses.field(default_factory=list)
    every: int = 1
    fault_count: int | None = None
    # The answer to every request, in place of the right one: status, headers, body, and the
    # start of the paths that get it.
    instead: dict[str, Any] | None = None
    hold_from: int | None = None  # hold requests of at least so many texts until released
    delay_s: float = 0.0


@dataclasses.dataclass
class Answer:
    """Rows, how to put them into a document, and the token ids that the model has read."""

    document: Callable[[Rows], Any]
    rows: Rows = dataclasses.field(default_factory=list)
    ids: list[list[int]] = dataclasses.field(default_factory=list)


class RefusedError(Exception):
    """An answer that is no 200."""

    def __init__(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.document, self.headers = status, document, headers or {}


def hashed_vector(ids: Sequence[int], size: int) -> list[float]:
    """Return a vector of unit length that depends on every token id and on their order."""
    digest = hashlib.shake_256(np.asarray(ids, dtype="<u4").tobytes()).digest(2 * size)
    vector = np.frombuffer(digest, dtype="<i2").astype(np.float64)
    unit: list[float] = (vector / np.linalg.norm(vector)).astype(np.float32).tolist()
    return unit


@functools.cache
def reference_of(directory: str, role: str) -> Any:
    from reference import ReferenceEmbedder, ReferenceReranker

    return (ReferenceReranker if role == "reranker" else ReferenceEmbedder)(Path(directory))


class Model:
    """A checkpoint as a server uses it: in texts, its tokenizer lets control tokens count."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tokenizer = Tokenizer.from_file(f"{settings.directory}/tokenizer.json")
        config = json.loads((Path(settings.directory) / "config.json").read_text("utf-8"))
        self.size: int = config["hidden_size"]

    def read(self, item: Input) -> list[int]:
        """Return the ids of a text, its end token included, or ids as they are."""
        return self.tokenizer.encode(item).ids if isinstance(item, str) else item

    def vector(self, ids: list[int]) -> list[float]:
        """Return the vector of a text's ids."""
        if self.settings.vectors == "hashed":
            return hashed_vector(ids, self.size)
        vector: list[float] = (
            reference_of(self.settings.directory, "embedding").vector(ids).tolist()
        )
        return vector

    def probability(self, ids: list[int]) -> float:
        """Return the score of a whole prompt's ids."""
        score: float = reference_of(self.settings.directory, "reranker").probability(ids)
        return score

    def log_odds(self, ids: list[int]) -> float:
        """Return the log-odds of a whole prompt's ids."""
        odds: float = reference_of(self.settings.directory, "reranker").log_odds(ids)
        return odds
