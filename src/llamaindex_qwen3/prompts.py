"""The prompts of Qwen3-Embedding and Qwen3-Reranker, as pure functions on text.

Source: the model cards of Qwen/Qwen3-Embedding-0.6B and Qwen/Qwen3-Reranker-0.6B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from .errors import InputTooLongError

DEFAULT_TASK: Final = "Given a web search query, retrieve relevant passages that answer the query"

RERANKER_PREFIX: Final = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
RERANKER_SUFFIX: Final = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

#: Tasks in one English sentence each, which the model cards advise even for other languages.
TASKS: Final[dict[str, str]] = {
    "web_search": DEFAULT_TASK,
    "question_answering": "Given a question, retrieve passages that answer the question",
    "faq": "Given a user's question, retrieve the entry of a FAQ that answers it",
    "documentation": "Given a question about a software product, retrieve the sections of its "
    "documentation that answer it",
    "code_search": "Given a description of what code does, retrieve the code that does it",
    "fact_checking": "Given a claim, retrieve documents that support or refute the claim",
    "legal": "Given a legal question, retrieve the provisions and rulings that answer it",
    "medical": "Given a medical question, retrieve passages that answer the question",
    "similarity": "Retrieve semantically similar text",
    "duplicate_questions": "Given a question, retrieve questions that ask the same",
    "bitext": "Retrieve parallel sentences",
    "clustering": "Identify the topic of the given text",
}


def format_query(task: str, query: str) -> str:
    """Put a query under its task, as the embedding model was trained to read it.

    There is no space after ``Query:``. Documents stay bare, unless the task is symmetric.
    """
    return f"Instruct: {task}\nQuery:{query}"


def format_pair(instruction: str, query: str, document: str) -> str:
    """Return the body of a reranker prompt: what stands between its prefix and its suffix."""
    return f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"


# --- ids ------------------------------------------------------------------------------------

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Turns texts into token ids, reading control tokens in them as plain text."""


def embedding_ids(
    encode: Encode, end_id: int, task: str | None, texts: Sequence[str], max_length: int
) -> tuple[list[list[int]], list[int]]:
    """Assemble the ids the embedding model reads: prompt, text, end token.

    Args:
        encode: Plain-text tokenizer.
        end_id: Id of ``<|endoftext|>``, whose hidden state becomes the vector.
        task: One sentence put before each text; None leaves the texts bare.
        texts: Queries or documents.
        max_length: Most tokens of one row, prompt and end token included.

    Returns:
        The ids of each text, and how many tokens of its end were cut (0 for most).

    Raises:
        InputTooLongError: The prompt leaves no room for any text.
    """
    if task is not None:
        head = len(encode([format_query(task, "")])[0])
        if head + 1 >= max_length:
            raise InputTooLongError(
                f"max_length={max_length} leaves no room for text: the prompt of this task takes "
                f"{head} tokens and the end token one. Raise max_length or shorten the task."
            )
        texts = [format_query(task, text) for text in texts]
    rows = encode(texts)
    room = max_length - 1
    return [[*row[:room], end_id] for row in rows], [max(0, len(row) - room) for row in rows]


def pair_ids(
    encode: Encode,
    prefix: Sequence[int],
    suffix: Sequence[int],
    instruction: str,
    query: str,
    documents: Sequence[str],
    max_length: int,
) -> tuple[list[list[int]], list[int]]:
    """Assemble the ids the reranker reads: prefix, instruction, query, document, suffix.

    Each body is encoded whole, as the reference does, and only the end of its document is cut.

    Returns:
        The ids of each pair, and how many tokens of its document were cut (0 for most).

    Raises:
        InputTooLongError: Instruction and query leave the document no room.
    """
    room = max_length - len(prefix) - len(suffix)
    head = len(encode([format_pair(instruction, query, "").removesuffix(" ")])[0])
    if head >= room:
        raise InputTooLongError(
            f"max_length={max_length} leaves the document no room: template, instruction and query "
            f"take {len(prefix) + head + len(suffix)} tokens. Shorten the query or raise max_length."
        )
    rows = encode([format_pair(instruction, query, document) for document in documents])
    ids = [[*prefix, *row[:room], *suffix] for row in rows]
    return ids, [max(0, len(row) - room) for row in rows]
