"""What vectors and scores must be, computed in the plainest way.

One text at a time, no padding, no cache, the whole forward pass in float32, and for the
reranker the logits of every position and every word.

Source: the model cards of Qwen3-Embedding and Qwen3-Reranker. They differ in two places from
what is written here, as the package's rules say: text is encoded without the added tokens, so
that it is always text, and only the document is cut.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM, Qwen3Model

TASK = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
    'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class ReferenceTokenizer:
    """A checkpoint's tokenizer, and its copy without the added tokens."""

    def __init__(self, directory: Path) -> None:
        text = (directory / "tokenizer.json").read_text(encoding="utf-8")
        self.full = Tokenizer.from_str(text)
        without = {**json.loads(text), "added_tokens": [], "post_processor": None}
        self.plain = Tokenizer.from_str(json.dumps(without))
        self.end = self.full.token_to_id("<|endoftext|>")

    def text(self, text: str) -> list[int]:
        """Return the ids of a text that is only text."""
        return self.plain.encode(text, add_special_tokens=False).ids

    def markup(self, text: str) -> list[int]:
        """Return the ids of a text whose control tokens count."""
        return self.full.encode(text, add_special_tokens=False).ids


class ReferenceEmbedder:
    """Vectors of Qwen3-Embedding."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = ReferenceTokenizer(directory)
        self.model = Qwen3Model.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def query_ids(self, query: str, task: str = TASK, max_length: int = 8192) -> list[int]:
        """Return the ids of a query with its task."""
        return self.document_ids(f"Instruct: {task}\nQuery:{query}", max_length)

    def document_ids(self, text: str, max_length: int = 8192) -> list[int]:
        """Return the ids of a text, cut before the end token."""
        return [*self.tokenizer.text(text)[: max_length - 1], self.tokenizer.end]

    def vector(
        self, ids: list[int], dimensions: int | None = None, normalize: bool = True
    ) -> torch.Tensor:
        """Return the last token's state, truncated, then of unit length."""
        with torch.no_grad():
            states = self.model(input_ids=torch.tensor([ids])).last_hidden_state
        vector = states[0, -1, :dimensions]
        return vector / torch.linalg.vector_norm(vector) if normalize else vector

    def query(self, query: str, task: str = TASK, dimensions: int | None = None) -> torch.Tensor:
        """Return the vector of a query."""
        return self.vector(self.query_ids(query, task), dimensions)

    def document(self, text: str, dimensions: int | None = None) -> torch.Tensor:
        """Return the vector of a document."""
        return self.vector(self.document_ids(text), dimensions)


class ReferenceReranker:
    """Scores of Qwen3-Reranker."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = ReferenceTokenizer(directory)
        self.prefix = self.tokenizer.markup(PREFIX)
        self.suffix = self.tokenizer.markup(SUFFIX)
        self.yes = self.tokenizer.full.token_to_id("yes")
        self.no = self.tokenizer.full.token_to_id("no")
        self.model = Qwen3ForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def body(self, query: str, document: str, instruction: str = TASK) -> list[int]:
        """Return the ids between the prefix and the suffix, nothing cut."""
        return self.tokenizer.text(
            f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        )

    def ids(
        self, query: str, document: str, instruction: str = TASK, max_length: int = 8192
    ) -> list[int]:
        """Return all ids of a pair; the body's end, which is the document's, is cut."""
        room = max_length - len(self.prefix) - len(self.suffix)
        return [*self.prefix, *self.body(query, document, instruction)[:room], *self.suffix]

    def length(self, query: str, document: str, instruction: str = TASK) -> int:
        """Return how many tokens a pair has, nothing cut."""
        return len(self.prefix) + len(self.body(query, document, instruction)) + len(self.suffix)

    def log_odds(self, ids: list[int]) -> float:
        """Return the log-odds of yes against no after the ids."""
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1]
        log_no, log_yes = torch.log_softmax(logits[[self.no, self.yes]].double(), dim=0).tolist()
        return float(log_yes - log_no)

    def probability(self, ids: list[int]) -> float:
        """Return the probability of yes against no after the ids."""
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1]
        return float(torch.log_softmax(logits[[self.no, self.yes]], dim=0).exp()[1])

    def score(self, query: str, document: str, instruction: str = TASK) -> float:
        """Return the score of a pair."""
        return self.probability(self.ids(query, document, instruction))
