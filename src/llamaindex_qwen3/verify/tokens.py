"""Token ids of the prompts, for which a tokenizer is enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from ..engine.checkpoint import Checkpoint
from ..engine.tokenizer import load_tokenizer, token_id
from ..prompts import (
    DEFAULT_TASK,
    RERANKER_PREFIX,
    RERANKER_SUFFIX,
    embedding_ids,
    format_pair,
    format_query,
    pair_ids,
)
from . import published
from .check import Check, same
from .samples import OTHER_TASK, QUERY, SCRIPTS, TEXTS

_NO_LIMIT = 1 << 30


class PromptIds:
    """The ids that a checkpoint's tokenizer makes of the prompts.

    Args:
        checkpoint: Where tokenizer.json is.

    Raises:
        CheckpointError: There is none, or it is not Qwen3's.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._control, self._plain = load_tokenizer(checkpoint)
        self._end = token_id(self._control, "<|endoftext|>", checkpoint)
        self._is_qwen3 = self._plain.get_vocab_size() == published.VOCABULARY

    def check(self, role: str, must_be_qwen3: bool) -> Iterator[Check]:
        """Yield the checks for a role.

        Args:
            role: "embedding" or "reranker".
            must_be_qwen3: Whether a tokenizer of another vocabulary is a failure.
        """
        if self._is_qwen3 or must_be_qwen3:
            yield from self._published(role)
        else:
            yield Check(
                "token ids as published",
                "not checked",
                note=f"this tokenizer has {self._plain.get_vocab_size():,} tokens of its own, and the "
                f"published ids are of Qwen3's {published.VOCABULARY:,}",
            )
        yield self._check_whole_prompts(role)
        yield self._check_task(role)
        yield self._check_plain_text()

    def _published(self, role: str) -> Iterator[Check]:
        tokens = {token: self._control.token_to_id(token) for token in published.TOKEN_IDS}
        yield same("ids of the control tokens, yes and no", tokens, published.TOKEN_IDS)
        texts = {text: self._text(text) for text in published.TEXT_IDS}
        yield same("ids of short texts", texts, published.TEXT_IDS)
        if role == "reranker":
            prefix, suffix = self._markup(RERANKER_PREFIX), self._markup(RERANKER_SUFFIX)
            yield same(
                "ids before the pair (39)",
                {"the prefix": prefix},
                {"the prefix": published.RERANKER_PREFIX_IDS},
            )
            yield same(
                "ids after the pair (9)",
                {"the suffix": suffix},
                {"the suffix": published.RERANKER_SUFFIX_IDS},
            )

    def _check_whole_prompts(self, role: str) -> Check:
        """Whether prompts put together from parts have the ids of the prompt written out."""
        found = self._prompts(role, DEFAULT_TASK)
        if role == "embedding":
            whole = [[*self._markup(format_query(DEFAULT_TASK, t)), self._end] for t in TEXTS]
        else:
            bodies = [format_pair(DEFAULT_TASK, QUERY, text) for text in TEXTS]
            whole = [self._markup(RERANKER_PREFIX + b + RERANKER_SUFFIX) for b in bodies]
        return same(
            f"ids of {len(TEXTS)} whole prompts, in {SCRIPTS} scripts",
            dict(zip(TEXTS, found, strict=True)),
            dict(zip(TEXTS, whole, strict=True)),
        )

    def _check_task(self, role: str) -> Check:
        """Whether the task stands in every prompt."""
        name = "another task gives other ids"
        pairs = zip(self._prompts(role, DEFAULT_TASK), self._prompts(role, OTHER_TASK), strict=True)
        if all(one != other for one, other in pairs):
            return Check(name, "pass")
        return Check(name, "fail", note=f"{DEFAULT_TASK!r} and {OTHER_TASK!r} give the same ids.")

    def _prompts(self, role: str, task: str) -> list[list[int]]:
        """Return the ids of the prompts of all texts, put together from parts."""
        if role == "embedding":
            found, _ = embedding_ids(self._encode, self._end, task, TEXTS, _NO_LIMIT)
            return found
        prefix, suffix = self._markup(RERANKER_PREFIX), self._markup(RERANKER_SUFFIX)
        found, _ = pair_ids(self._encode, prefix, suffix, task, QUERY, TEXTS, _NO_LIMIT)
        return found

    def _check_plain_text(self) -> Check:
        """Whether control tokens that stand in a text are read as text."""
        name = "control tokens in a text stay text"
        added = self._control.get_added_tokens_decoder()
        for token in map(str, added.values()):
            if set(self._text(f"before {token} after")) & set(added):
                return Check(name, "fail", note=f"{token!r} in a document would steer its score.")
        return Check(name, "pass")

    def _text(self, text: str) -> list[int]:
        return self._encode([text])[0]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [_ids(self._plain, text) for text in texts]

    def _markup(self, text: str) -> list[int]:
        return _ids(self._control, text)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
