"""The demo models' tokenizer, and the queries that are drawn for a passage."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from corpus import Pair
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.trainers import BpeTrainer

from llamaindex_qwen3 import prompts

END = "<|endoftext|>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]
SPECIAL += ["<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"]
SPECIAL += ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>"]
PLAIN = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
PLAIN += ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"]
PLAIN += ["<think>", "</think>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCAB, BODY_TOKENS, QUERY_TOKENS = 8192, 144, 40
QUESTIONS = [
    "how do I {}?", "how to {}", "how can I {}?", "what does it mean to {}?", "why would I {}?",
    "{}?", "what is the way to {}?", "can I {}?", "when should I {}?", "is it possible to {}?",
    "what happens if I {}?", "where do I {}?", "which option lets me {}?", "I want to {}",
    "what is {}?", "what controls {}?", "does it {}?", "tell me about {}", "explain {}",
]  # fmt: skip


def train_tokenizer(pairs: Sequence[Pair]) -> Tokenizer:
    """Train a byte-level BPE with Qwen3's split rule and its control tokens at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(SPLIT), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL) - len(PLAIN),
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The fixed prompt texts are repeated so that they cost few tokens; yes and no must be one each.
    fixed = [
        prompts.RERANKER_PREFIX,
        prompts.format_pair(prompts.DEFAULT_TASK, "", ""),
        "yes",
        "no",
    ]
    fixed += [prompts.format_query(prompts.DEFAULT_TASK, "")]
    texts = [f"{p.title}\n{p.body}" for p in pairs] + fixed * 200
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in PLAIN])
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def make_query(pair: Pair, rng: random.Random) -> tuple[str, str]:
    """Draw a query for a passage: its title, a span of it or key words; return query and body."""
    kind, body = rng.random(), pair.body
    if kind < 0.45:
        query = pair.title
    else:
        sentences = [s for s in re.split(r"(?<=[.!?:])\s+|\n", body) if len(s.split()) >= 5]
        if not sentences:
            return pair.title, body
        sentence = rng.choice(sentences)
        words = sentence.split()
        if len(sentences) > 2 and rng.random() < 0.7:  # the answer seldom repeats the question
            body = body.replace(sentence, "", 1)
        if kind < 0.75:
            size = rng.randint(5, 16)
            start = rng.randrange(max(1, len(words) - size + 1))
            words = [w for w in words[start : start + size] if rng.random() > 0.15]
            query = " ".join(words)
        else:
            words = sorted({w.strip("().,:;`'\"") for w in words + pair.title.split()}, key=len)
            words = [w for w in words[-10:] if len(w) > 3]
            rng.shuffle(words)
            query = " ".join(words[: rng.randint(2, 6)])
    if rng.random() < 0.4 and query:
        query = rng.choice(QUESTIONS).format(query[0].lower() + query[1:])
    if rng.random() < 0.3:
        query = query.lower()
    if len(body) > 400 and rng.random() < 0.5:  # a passage may begin anywhere in its page
        cut = rng.randrange(len(body) // 2)
        body = body[cut + body[cut:].find(" ") + 1 :]
    elif rng.random() < 0.5 and kind >= 0.45:  # sections are stored with their heading
        body = f"{pair.title}\n\n{body}"
    return query or pair.title, body


def batches(pairs: Sequence[Pair], size: int, run: int, rng: random.Random) -> Iterator[list[Pair]]:
    """Yield batches without end; each holds runs of one source, so that negatives share a topic."""
    sources: dict[str, list[Pair]] = {}
    for pair in pairs:
        sources.setdefault(pair.source, []).append(pair)
    while True:
        runs: list[list[Pair]] = []
        for members in sources.values():
            rng.shuffle(members)
            runs += [members[i : i + run] for i in range(0, len(members), run)]
        rng.shuffle(runs)
        flat = [pair for r in runs for pair in r]
        yield from (flat[i : i + size] for i in range(0, len(flat) - size + 1, size))


class Encoder:
    """Turns texts into the ids that the two official prompts give."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(END)
        self.yes_no = [tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")]
        assert None not in self.yes_no, "yes and no must each be one token"
        self.prefix = tokenizer.encode(prompts.RERANKER_PREFIX).ids
        self.suffix = tokenizer.encode(prompts.RERANKER_SUFFIX).ids
        body = prompts.format_pair(prompts.DEFAULT_TASK, "", "").partition("<Query>:")
        self.instruction = tokenizer.encode(body[0] + body[1]).ids

    def queries(self, texts: Sequence[str]) -> list[list[int]]:
        head = prompts.format_query(prompts.DEFAULT_TASK, "")
        limit = len(self.tokenizer.encode(head).ids) + QUERY_TOKENS
        rows = self.tokenizer.encode_batch([head + t for t in texts])
        return [[*r.ids[:limit], self.end] for r in rows]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [r.ids for r in self.tokenizer.encode_batch_fast(list(texts))]

    def bodies(self, texts: Sequence[str], limit: int = BODY_TOKENS) -> list[list[int]]:
        return [[*r.ids[:limit], self.end] for r in self.tokenizer.encode_batch(list(texts))]

    def pairs(self, queries: Sequence[str], bodies: Sequence[str]) -> list[list[int]]:
        texts = [
            prompts.format_pair(prompts.DEFAULT_TASK, q, b)
            for q, b in zip(queries, bodies, strict=True)
        ]
        limit = len(self.instruction) + QUERY_TOKENS + BODY_TOKENS
        rows = self.tokenizer.encode_batch(texts)
        return [self.prefix + r.ids[:limit] + self.suffix for r in rows]
