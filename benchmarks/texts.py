"""Texts whose lengths in tokens are those of real chunks."""

from __future__ import annotations

import math
import random
from pathlib import Path

from tokenizers import Tokenizer

from .checkpoints import ROOT

QUERY = "How does a vector database keep its index when rows are deleted?"
MEDIAN, SIGMA, LONGEST = 150, 0.7, 1024


def texts(tokenizer_dir: Path, count: int, seed: int = 0, longest: int = LONGEST) -> list[str]:
    """Return texts of log-normal length, median 150 tokens, at most `longest`."""
    rng = random.Random(seed)
    lengths = [
        max(8, min(longest, round(rng.lognormvariate(math.log(MEDIAN), SIGMA))))
        for _ in range(count)
    ]
    return texts_of(tokenizer_dir, lengths, seed)


def texts_of(tokenizer_dir: Path, lengths: list[int], seed: int = 0) -> list[str]:
    """Return texts of about these lengths in tokens."""
    rng = random.Random(seed)
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    pages = (ROOT / "examples" / "data" / "milvus_faq").glob("*.md")
    words = " ".join(page.read_text(encoding="utf-8") for page in sorted(pages)).split()
    made = []
    for length in lengths:
        start = rng.randrange(len(words))
        text = " ".join(words[(start + i) % len(words)] for i in range(length))
        encoding = tokenizer.encode(text, add_special_tokens=False)
        made.append(text[: encoding.offsets[min(length, len(encoding.ids)) - 1][1]])
    return made


def tokens(tokenizer_dir: Path, of: list[str]) -> int:
    """Return how many tokens texts have together."""
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    return sum(len(row.ids) for row in tokenizer.encode_batch(of, add_special_tokens=False))
