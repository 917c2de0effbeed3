"""What model servers are sent and what they answer: pure functions on JSON.

Sources: the API references of vLLM, text-embeddings-inference, infinity and OpenAI.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Input = Sequence[str] | Sequence[Sequence[int]]
Vectors = NDArray[np.float32]
Kind = Literal["vllm", "tei", "infinity", "openai"]


class WrongAnswerError(Exception):
    """An answer that is not what its API promises; asking again may help."""


def openai_embeddings(model: str, inputs: Input, kind: Kind, normalize: bool) -> dict[str, Any]:
    """Build a request for vectors in OpenAI's form, which vLLM and infinity speak as well.

    `dimensions` is never sent: servers differ in whether they know it and scale again after it.
    """
    body: dict[str, Any] = {"model": model, "input": inputs}
    if kind == "vllm":
        body["encoding_format"] = "base64"  # a quarter of the bytes, and no digits to parse
        if not normalize:
            body["use_activation"] = False
    return body


def tei_embeddings(inputs: Input, normalize: bool) -> dict[str, Any]:
    """Build a request for vectors in text-embeddings-inference's own form."""
    return {"inputs": inputs, "normalize": normalize, "truncate": False}


def classification(model: str, prompts: Input, raw: bool) -> dict[str, Any]:
    """Build a request to judge whole prompts; `raw` asks for log-odds."""
    body: dict[str, Any] = {"model": model, "input": prompts}
    return {**body, "use_activation": False} if raw else body


def reranking(
    model: str, query: str, documents: Sequence[str], instruction: str, raw: bool
) -> dict[str, Any]:
    """Build a request to judge documents, for which the server renders the prompts."""
    body: dict[str, Any] = {
        "model": model,
        "query": query,
        "documents": list(documents),
        "instruction": instruction,
    }
    return {**body, "use_activation": False} if raw else body


def read_openai_embeddings(answer: Any, count: int) -> Vectors:
    """Read vectors [count, width] from OpenAI's form, in the order of their indices."""
    rows = _indexed(answer, "data", count)
    return _matrix([_vector(row.get("embedding")) for row in rows])


def read_tei_embeddings(answer: Any, count: int) -> Vectors:
    """Read vectors [count, width] from a list of lists."""
    if not isinstance(answer, list) or len(answer) != count:
        raise WrongAnswerError(f"{_count(answer)} vectors for {count} texts")
    return _matrix([_vector(row) for row in answer])


def read_classification(answer: Any, count: int) -> list[float]:
    """Read one number [count] of each prompt.

    Raises:
        WrongAnswerError: Something else; `args[1]` is the number of classes where there are several.
    """
    rows = _indexed(answer, "data", count)
    values = [row.get("probs") for row in rows]
    classes = {len(value) for value in values if isinstance(value, list)}
    if classes - {1}:
        raise WrongAnswerError(f"{max(classes)} classes instead of one", max(classes))
    return [_number(value[0] if isinstance(value, list) else value) for value in values]


def read_reranking(answer: Any, count: int) -> list[float]:
    """Read one score [count] of each document, back in their given order."""
    return [
        _number(row.get("relevance_score", row.get("score")))
        for row in _indexed(answer, "results", count)
    ]


def _indexed(answer: Any, key: str, count: int) -> list[dict[str, Any]]:
    """Return rows in the order of their indices, each exactly once."""
    rows = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise WrongAnswerError(f"no list of results under {key!r}")
    if len(rows) != count:
        raise WrongAnswerError(f"{len(rows)} results for {count} texts")
    indices = [row.get("index") for row in rows]
    if sorted(i for i in indices if isinstance(i, int)) != list(range(count)):
        raise WrongAnswerError(f"indices that are not 0 to {count - 1}, each once")
    return [rows[place] for place in np.argsort(np.array(indices, dtype=np.int64))]


def _vector(value: Any) -> Vectors:
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
        return np.asarray(value, dtype=np.float32)
    except (ValueError, TypeError, OverflowError, binascii.Error):
        raise WrongAnswerError("something that is not a vector") from None


def _matrix(rows: Sequence[Vectors]) -> Vectors:
    if any(row.ndim != 1 or len(row) != len(rows[0]) or not len(row) for row in rows):
        raise WrongAnswerError("vectors of unequal length")
    matrix = np.stack(rows)
    if not np.isfinite(matrix).all():
        raise WrongAnswerError("a vector with NaN or infinity")
    if not matrix.any(axis=1).all():
        raise WrongAnswerError("a vector of zeros")
    return matrix


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise WrongAnswerError(f"a score that is not a finite number: {str(value)[:20]}")
    return number


def _count(answer: Any) -> str:
    return str(len(answer)) if isinstance(answer, list) else "no list of"
