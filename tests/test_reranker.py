"""Qwen3Reranker: its arguments, and the scores it gives."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Shape, edit_weights
from components import SCORE_TOLERANCE, candidates, reranker
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode
from reference import ReferenceReranker
from texts import random_texts

from llamaindex_qwen3 import Qwen3Reranker
from llamaindex_qwen3.errors import InvalidArgumentError, NonFiniteError
from llamaindex_qwen3.prompts import DEFAULT_TASK

QUERY = "How is data stored?"
TEXTS = random_texts(200, 12)
Factory = Callable[..., Path]


def test_is_a_node_postprocessor() -> None:
    """Be LlamaIndex's kind of component, with the promised defaults."""
    model = Qwen3Reranker()
    assert isinstance(model, BaseNodePostprocessor)
    assert model.class_name() == "Qwen3Reranker"
    assert model.model == "Qwen/Qwen3-Reranker-0.6B"
    assert (model.top_n, model.max_length, model.instruction) == (3, 8192, DEFAULT_TASK)
    assert (model.score_type, model.score_threshold) == ("probability", None)
    assert (model.keep_retrieval_score, model.metadata_mode) == (False, MetadataMode.EMBED)
    for field in ("revision", "device", "attn_implementation", "max_batch_tokens"):
        assert getattr(model, field) is None, field
    for field in ("base_url", "api_key", "server"):
        assert getattr(model, field) is None, field


def test_scores_are_floats_in_input_order(
    reranker_dir: Path, reference_reranker: ReferenceReranker
) -> None:
    """Return one probability a text, where the text stood, sync and async."""
    model = reranker(reranker_dir, top_n=1)
    expected = [reference_reranker.score(QUERY, text) for text in TEXTS]
    for scores in (model.score(QUERY, TEXTS), asyncio.run(model.ascore(QUERY, TEXTS))):
        assert type(scores) is list
        assert all(type(score) is float and 0.0 < score < 1.0 for score in scores)
        assert scores == pytest.approx(expected, abs=SCORE_TOLERANCE)


def test_no_texts(reranker_dir: Path, passes: Any) -> None:
    """Return nothing for nothing, without a forward pass."""
    model = reranker(reranker_dir)
    assert model.score(QUERY, []) == []
    assert asyncio.run(model.ascore(QUERY, [])) == []
    assert model.postprocess_nodes([], query_str=QUERY) == []
    assert model.postprocess_nodes([]) == []
    assert asyncio.run(model.apostprocess_nodes([])) == []
    assert passes.count == 0


def test_log_odds(reranker_dir: Path, reference_reranker: ReferenceReranker) -> None:
    """Return yes - no, whose sigmoid is the probability."""
    logits = reranker(reranker_dir, score_type="logit").score(QUERY, TEXTS)
    expected = [reference_reranker.log_odds(reference_reranker.ids(QUERY, text)) for text in TEXTS]
    assert logits == pytest.approx(expected, abs=1e-4)
    assert min(logits) < 0.0 < max(logits)
    probabilities = reranker(reranker_dir).score(QUERY, TEXTS)
    sigmoids = [1.0 / (1.0 + math.exp(-logit)) for logit in logits]
    assert probabilities == pytest.approx(sigmoids, abs=1e-6)


def test_difference_is_taken_in_float32(make_reranker: Factory) -> None:
    """Keep scores of bfloat16 models apart, which bfloat16 logits would tie."""
    directory = make_reranker(shape=Shape(dtype=torch.bfloat16))
    texts = random_texts(210, 55)
    logits = reranker(directory, dtype="bfloat16", score_type="logit").score(QUERY, texts)
    # Logits of this size, rounded to bfloat16's 8 bits, differ by multiples of 2**-12.
    coarse = sum((logit * 2**12).is_integer() for logit in logits)
    assert coarse < len(texts) // 5
    reference = ReferenceReranker(directory)
    expected = [reference.log_odds(reference.ids(QUERY, text)) for text in texts]
    assert logits == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("instruction", ["Find similar code", "a {b} %s\n\nc "])
def test_instruction(
    reranker_dir: Path, reference_reranker: ReferenceReranker, instruction: str
) -> None:
    """Put the instruction into the prompt as it is."""
    scores = reranker(reranker_dir, instruction=instruction).score(QUERY, TEXTS)
    expected = [reference_reranker.score(QUERY, text, instruction) for text in TEXTS]
    assert scores == pytest.approx(expected, abs=SCORE_TOLERANCE)


def test_with_task(reranker_dir: Path, reference_reranker: ReferenceReranker) -> None:
    """Return a component of another instruction with all other settings."""
    model = reranker(reranker_dir, top_n=5, score_threshold=0.25)
    other = model.with_task("Find similar code")
    assert isinstance(other, Qwen3Reranker)
    assert (other.instruction, model.instruction) == ("Find similar code", DEFAULT_TASK)
    assert (other.top_n, other.score_threshold) == (5, 0.25)
    expected = [reference_reranker.score(QUERY, text, "Find similar code") for text in TEXTS]
    assert other.score(QUERY, TEXTS) == pytest.approx(expected, abs=SCORE_TOLERANCE)


def test_lone_surrogate(reranker_dir: Path) -> None:
    """Refuse a text that is not text, naming its place, and score the rest afterwards."""
    model = reranker(reranker_dir)
    for scores in (model.score, lambda *args: asyncio.run(model.ascore(*args))):
        with pytest.raises(InvalidArgumentError, match=r"(?<!\d)2(?!\d)"):
            scores(QUERY, ["a", "b", "x\ud800y", "c"])
        with pytest.raises(InvalidArgumentError):
            scores("x\udfffy", ["a"])
    assert len(model.score(QUERY, ["a", "b"])) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_scores(make_reranker: Factory, value: float) -> None:
    """Raise rather than return a score that is not a number."""
    directory = make_reranker()
    edit_weights(directory, lambda weights: weights["model.norm.weight"].fill_(value))
    model = reranker(directory)
    with pytest.raises(NonFiniteError):
        model.score(QUERY, ["a", "b"])
    with pytest.raises(NonFiniteError):
        asyncio.run(model.ascore(QUERY, ["a"]))
    with pytest.raises(NonFiniteError):
        model.postprocess_nodes(candidates(["a"]), query_str=QUERY)


@pytest.mark.parametrize(
    "wrong",
    [{"top_n": 0}, {"top_n": -1}, {"score_type": "cosine"}, {"dtype": "int8"}, {"topn": 3}],
)
def test_wrong_arguments(reranker_dir: Path, wrong: dict[str, Any]) -> None:
    """Refuse values that are not offered and arguments that do not exist."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        reranker(reranker_dir, **wrong).score("a", ["b"])
