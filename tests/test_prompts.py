"""Templates, letter by letter and id by id."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape, save_embedding, save_reranker
from components import COSINE_TOLERANCE, SCORE_TOLERANCE, cosine_distance, embedder, reranker
from reference import ReferenceEmbedder, ReferenceReranker, ReferenceTokenizer
from texts import EDGE_TEXTS, random_pairs, random_texts
from tokenizers import Tokenizer

from llamaindex_qwen3.prompts import (
    DEFAULT_TASK,
    RERANKER_PREFIX,
    RERANKER_SUFFIX,
    TASKS,
    format_pair,
    format_query,
)

SHARED = Path(
    os.environ.get("LLAMAINDEX_QWEN3_SHARED", Path(__file__).resolve().parents[2] / "shared")
)
needs_real_tokenizer = pytest.mark.skipif(
    not (SHARED / "qwen3-tokenizer" / "tokenizer.json").is_file(),
    reason="needs Qwen3's own tokenizer: set LLAMAINDEX_QWEN3_SHARED to the folder that has it",
)


def test_default_task() -> None:
    """Give the model cards' default task."""
    assert (
        DEFAULT_TASK == "Given a web search query, retrieve relevant passages that answer the query"
    )


def test_reranker_prefix() -> None:
    """Give the system turn and the start of the user turn."""
    assert RERANKER_PREFIX == (
        "<|im_start|>system\n"
        "Judge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )


def test_reranker_suffix() -> None:
    """Give the empty thought, with both of its final newlines."""
    assert RERANKER_SUFFIX == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_format_query() -> None:
    """Put no space after `Query:`."""
    assert (
        format_query("Find the answer", "What is gravity?")
        == "Instruct: Find the answer\nQuery:What is gravity?"
    )


def test_format_pair() -> None:
    """Put one space after each of the three labels."""
    assert format_pair("Find the answer", "What is gravity?", "A force.") == (
        "<Instruct>: Find the answer\n<Query>: What is gravity?\n<Document>: A force."
    )


@pytest.mark.parametrize(
    "text",
    ["", " ", "{task} {query} {0} {", "%s %(query)s %", "a\nQuery:b", "\\n $query", "\u0301"],
)
def test_formats_take_any_text_as_it_is(text: str) -> None:
    """Change nothing in the caller's text, white space and braces included."""
    assert format_query(text, text) == "Instruct: " + text + "\nQuery:" + text
    assert format_pair(text, text, text) == (
        "<Instruct>: " + text + "\n<Query>: " + text + "\n<Document>: " + text
    )


def test_tasks_are_single_sentences() -> None:
    """Offer tasks by name, each one line that can follow `Instruct: `."""
    assert DEFAULT_TASK in TASKS.values()
    for name, task in TASKS.items():
        assert re.fullmatch(r"[a-z0-9_\-]+", name), name
        assert task == task.strip(), name
        assert "\n" not in task, name
        assert "Instruct:" not in task, name
        assert len(task.split()) >= 2, name
    assert len(set(TASKS.values())) == len(TASKS)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """Return the published values."""
    return dict(json.loads((SHARED / "golden.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def real_tokenizer() -> Tokenizer:
    """Return Qwen3's own tokenizer."""
    return Tokenizer.from_file(str(SHARED / "qwen3-tokenizer" / "tokenizer.json"))


@needs_real_tokenizer
def test_templates_are_the_published_ones(golden: dict[str, Any]) -> None:
    """Agree with the published templates."""
    templates = golden["templates"]
    assert templates["reranker_prefix"] == RERANKER_PREFIX
    assert templates["reranker_suffix"] == RERANKER_SUFFIX
    assert templates["default_task"] == DEFAULT_TASK
    assert templates["embedding_query"].format(task="t", query="q") == format_query("t", "q")
    body = templates["reranker_body"].format(instruction="i", query="q", document="d")
    assert body == format_pair("i", "q", "d")


@needs_real_tokenizer
def test_prefix_and_suffix_ids(golden: dict[str, Any], real_tokenizer: Tokenizer) -> None:
    """Encode to the published 39 and 9 ids."""
    prefix = real_tokenizer.encode(RERANKER_PREFIX, add_special_tokens=False).ids
    suffix = real_tokenizer.encode(RERANKER_SUFFIX, add_special_tokens=False).ids
    assert (len(prefix), len(suffix)) == (39, 9)
    assert prefix == golden["reranker_prefix_ids"]
    assert suffix == golden["reranker_suffix_ids"]


@needs_real_tokenizer
def test_ids_of_the_reference(golden: dict[str, Any]) -> None:
    """Hold the reference's ids against the published ones."""
    tokenizer = ReferenceTokenizer(SHARED / "qwen3-tokenizer")
    for text, ids in golden["embedding_tokens"].items():
        assert [*tokenizer.text(text), tokenizer.end] == ids
    for token, expected in golden["token_ids"].items():
        assert tokenizer.markup(token) == [expected]


@needs_real_tokenizer
def test_query_prompt_ids(real_tokenizer: Tokenizer) -> None:
    """Encode the query's template to the ids typed here."""
    ids = real_tokenizer.encode(format_query("test", "test again"), add_special_tokens=False).ids
    # The colon and the query's first word are one token: they cannot be encoded apart.
    assert ids == [641, 1235, 25, 1273, 198, 2859, 84476, 1549]


@needs_real_tokenizer
def test_vectors_with_the_real_tokenizer(tmp_path: Path, real_tokenizer: Tokenizer) -> None:
    """Give the reference's vectors for Qwen3's own ids, prompts included."""
    shape = Shape(hidden_size=32, layers=1)
    directory = save_embedding(tmp_path, real_tokenizer, shape)
    model, reference = embedder(directory), ReferenceEmbedder(directory)
    texts = ["test", "test again", *EDGE_TEXTS, *random_texts(20, 33)]
    for text, vector in zip(texts, model.get_text_embedding_batch(texts), strict=True):
        assert cosine_distance(vector, reference.document(text)) < COSINE_TOLERANCE, text
    for text in texts[::4]:
        vector = model.get_query_embedding(text)
        assert cosine_distance(vector, reference.query(text)) < COSINE_TOLERANCE, text


@needs_real_tokenizer
def test_scores_with_the_real_tokenizer(tmp_path: Path, real_tokenizer: Tokenizer) -> None:
    """Give the reference's scores for Qwen3's own ids."""
    shape = Shape(hidden_size=32, layers=1)
    directory = save_reranker(tmp_path, real_tokenizer, shape)
    model, reference = reranker(directory), ReferenceReranker(directory)
    documents = ["What?\nYes.", *EDGE_TEXTS, *[text for _, text in random_pairs(21, 11)]]
    for query in ("Which planet is red?\n", "?", " \u0301 two  spaces "):
        expected = [reference.score(query, document) for document in documents]
        assert model.score(query, documents) == pytest.approx(expected, abs=SCORE_TOLERANCE)
