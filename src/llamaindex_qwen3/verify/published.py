"""Values that were published of Qwen3's models, to hold an installation against."""

from __future__ import annotations

from typing import Final

#: Tokens before the added ones; a tokenizer with another number is not Qwen3's.
VOCABULARY: Final = 151_643

# Source: tokenizer.json of Qwen/Qwen3-Embedding-0.6B and Qwen/Qwen3-Reranker-0.6B.
TOKEN_IDS: Final = {
    "yes": 9693,
    "no": 2152,
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<think>": 151667,
    "</think>": 151668,
}
# Source: the same.
TEXT_IDS: Final = {
    "\n": [198],
    "\n\n": [271],
    "test": [1944],
    "test again": [1944, 1549],
}
# Source: the model card of Qwen/Qwen3-Reranker-0.6B, its prefix and suffix under that tokenizer.
RERANKER_PREFIX_IDS: Final = [
    151644, 8948, 198, 60256, 3425, 279, 11789, 20027, 279, 8502, 3118, 389, 279, 11361, 323, 279,
    758, 1235, 3897, 13, 7036, 429, 279, 4226, 646, 1172, 387, 330, 9693, 1, 476, 330, 2152, 3263,
    151645, 198, 151644, 872, 198,
]  # fmt: skip
RERANKER_SUFFIX_IDS: Final = [151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271]

# Source: the model cards of Qwen/Qwen3-Embedding-0.6B, -4B and -8B: cosines of the two queries, under
# the default task, with the two documents.
QUERIES: Final = ("What is the capital of China?", "Explain gravity")
DOCUMENTS: Final = (
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
    "objects and is responsible for the movement of planets around the sun.",
)
SIMILARITIES: Final = {
    "0.6b": [[0.76456, 0.14143], [0.13550, 0.59995]],
    "4b": [[0.7534, 0.1147], [0.0320, 0.6258]],
    "8b": [[0.7493, 0.0751], [0.0880, 0.6318]],
}

# Source: huggingface/sentence-transformers, tests/cross_encoder/test_model.py: Qwen3-Reranker-0.6B
# in float32 under the default task.
PLANET_QUERY: Final = "Which planet is known as the Red Planet?"
PLANETS: Final = (
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
)
LOG_ODDS: Final = {"0.6b": [-3.109298, 7.120390, -0.378755, 3.541637]}
