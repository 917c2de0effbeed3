"""How many tokens the models read of a text, by their own tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..engine.tokenizer import load_tokenizer, token_id
from ..prompts import RERANKER_PREFIX, RERANKER_SUFFIX, embedding_ids, pair_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..component import Qwen3Component
    from ..embedding import Qwen3Embedding
    from ..reranker import Qwen3Reranker

Counts = tuple[list[int], list[int]]
"""For each text, the tokens read, prompt included, and the tokens cut from its end."""


class TokenCounter:
    """Assembles the ids that the models are given, and counts them."""

    def __init__(self, embed_model: Qwen3Embedding, reranker: Qwen3Reranker) -> None:
        checkpoint = embed_model._checkpoint()
        control, self._embedding = load_tokenizer(checkpoint)
        self._end_id = token_id(control, "<|endoftext|>", checkpoint)
        self._embedding_length = _max_length(embed_model)
        self._document_task = embed_model.text_instruction
        control, self._reranker = load_tokenizer(reranker._checkpoint())
        self._prefix, self._suffix = (
            control.encode(text, add_special_tokens=False).ids
            for text in (RERANKER_PREFIX, RERANKER_SUFFIX)
        )
        self._reranker_length = _max_length(reranker)

    def query(self, instruction: str, question: str) -> tuple[int, int]:
        """Count what the embedding model reads of a question, and what is cut from it."""
        read, cut = self._embedded([question], instruction)
        return read[0], cut[0]

    def documents(self, texts: Sequence[str]) -> Counts:
        """Count what the embedding model reads of documents."""
        return self._embedded(texts, self._document_task)

    def pairs(self, instruction: str, question: str, texts: Sequence[str]) -> Counts:
        """Count what the reranker reads of a question with each of these documents."""
        ids, cut = pair_ids(
            lambda batch: _plain_ids(self._reranker, batch),
            self._prefix,
            self._suffix,
            instruction,
            question,
            texts,
            self._reranker_length,
        )
        return [len(row) for row in ids], cut

    def bare(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of texts alone, for the reranker."""
        return [len(row) for row in _plain_ids(self._reranker, texts)]

    def _embedded(self, texts: Sequence[str], task: str | None) -> Counts:
        ids, cut = embedding_ids(
            lambda batch: _plain_ids(self._embedding, batch),
            self._end_id,
            task,
            texts,
            self._embedding_length,
        )
        return [len(row) for row in ids], cut


def _plain_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    rows = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [row.ids for row in rows]


def _max_length(component: Qwen3Component) -> int:
    return min(component.max_length, component._read_geometry().max_position_embeddings)
