"""The reference itself, held against other implementations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import ADDED_TOKENS, PLAIN_ADDED_TOKENS, Shape
from components import COSINE_TOLERANCE, SCORE_TOLERANCE, cosine_distance
from reference import PREFIX, SUFFIX, TASK, ReferenceEmbedder, ReferenceReranker
from sentence_transformers import SentenceTransformer
from texts import random_pairs, random_texts
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen3ForCausalLM


def test_tokenizer_is_of_qwens_kind(tokenizer: Tokenizer) -> None:
    """Hold the words of the template as single tokens and Qwen3's 26 added tokens."""
    assert len(ADDED_TOKENS) == 26
    assert len(PLAIN_ADDED_TOKENS) == 12
    for token in ("yes", "no", "\u010a\u010a", *ADDED_TOKENS):
        assert tokenizer.token_to_id(token) is not None, token
    assert tokenizer.encode("\n\n").tokens == ["\u010a\u010a"]
    assert tokenizer.encode("a?\nb").tokens[1] == "?\u010a"
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


def test_text_without_added_tokens_is_encoded_alike(
    reference_embedder: ReferenceEmbedder, embedding_dir: Path
) -> None:
    """Give the ids of the whole tokenizer wherever a text holds no control token."""
    tokenizer = reference_embedder.tokenizer
    whole = AutoTokenizer.from_pretrained(embedding_dir)
    for text in random_texts(5, 80):
        assert tokenizer.text(text) == whole(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.text("<think>") != tokenizer.markup("<think>")
    assert len(tokenizer.markup("<think>")) == 1


@pytest.mark.parametrize("layout", ["card", "model", "causal"])
def test_vectors_agree_with_sentence_transformers(
    make_embedding: Callable[..., Path], layout: str
) -> None:
    """Agree with sentence-transformers, which pads on the left and pools the last token."""
    directory = make_embedding(layout=layout)
    reference = ReferenceEmbedder(directory)
    model = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    texts = random_texts(7, 33)
    documents = model.encode(texts, batch_size=8, show_progress_bar=False)
    queries = model.encode(texts, batch_size=8, prompt_name="query", show_progress_bar=False)
    for text, document, query in zip(texts, documents, queries, strict=True):
        assert cosine_distance(document.tolist(), reference.document(text)) < COSINE_TOLERANCE
        assert cosine_distance(query.tolist(), reference.query(text)) < COSINE_TOLERANCE


@pytest.mark.parametrize("truncate_dim", [32, 50])
def test_truncated_vectors_agree_with_sentence_transformers(
    embedding_dir: Path, reference_embedder: ReferenceEmbedder, truncate_dim: int
) -> None:
    """Agree on truncated vectors once they have unit length again."""
    model = SentenceTransformer(
        str(embedding_dir),
        device="cpu",
        truncate_dim=truncate_dim,
        model_kwargs={"dtype": torch.float32},
    )
    for text in random_texts(8, 11):
        vector = model.encode(text, normalize_embeddings=True, show_progress_bar=False)
        expected = reference_embedder.document(text, truncate_dim)
        assert cosine_distance(vector.tolist(), expected) < COSINE_TOLERANCE
        assert float(expected.norm()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_scores_agree_with_the_model_card(make_reranker: Callable[..., Path], tied: bool) -> None:
    """Agree with the model card's code: one batch, left padding, full logits, log_softmax."""
    directory = make_reranker(shape=Shape(tied=tied))
    reference = ReferenceReranker(directory)
    pairs = random_pairs(9, 44)

    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model = Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    prefix = tokenizer.encode(PREFIX, add_special_tokens=False)
    suffix = tokenizer.encode(SUFFIX, add_special_tokens=False)
    texts = [
        f"<Instruct>: {TASK}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs
    ]
    bodies = tokenizer(
        texts,
        padding=False,
        truncation="longest_first",
        return_attention_mask=False,
        max_length=8192 - len(prefix) - len(suffix),
    )["input_ids"]
    batch = tokenizer.pad(
        {"input_ids": [prefix + body + suffix for body in bodies]},
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**batch).logits[:, -1, :]
    true = logits[:, tokenizer.convert_tokens_to_ids("yes")]
    false = logits[:, tokenizer.convert_tokens_to_ids("no")]
    scores = torch.log_softmax(torch.stack([false, true], dim=1), dim=1)[:, 1].exp().tolist()

    expected = [reference.score(query, document) for query, document in pairs]
    assert scores == pytest.approx(expected, abs=SCORE_TOLERANCE)


def test_scores_spread(reference_reranker: ReferenceReranker) -> None:
    """Tell texts apart: otherwise agreement of scores would show little."""
    scores = sorted(reference_reranker.score(*pair) for pair in random_pairs(10, 60))
    assert scores[0] < 0.2
    assert scores[-1] > 0.8
    assert scores[45] - scores[15] > 0.2


def test_vectors_spread(reference_embedder: ReferenceEmbedder) -> None:
    """Tell texts apart, and a query from a document of the same text."""
    texts = random_texts(11, 40)
    vectors = torch.stack([reference_embedder.document(text) for text in texts])
    cosines = vectors @ vectors.T
    assert float(cosines.fill_diagonal_(0.0).max()) < 0.99
    assert (
        cosine_distance(
            reference_embedder.query(texts[0]).tolist(), reference_embedder.document(texts[0])
        )
        > 0.01
    )
