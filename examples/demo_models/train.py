"""Train the demo embedding model and the demo reranker from scratch on two CPU cores.

    pip install -c constraints.txt -e ".[test]"
    pip install --no-deps --target build/corpus -r examples/demo_models/corpus-packages.txt
    python examples/demo_models/train.py --corpus build/corpus

The training text is the documentation of Python packages (corpus.py), nothing else: neither
examples/data nor its questions are read. Both models have the architecture, the prompts and the
file layout of Qwen3-Embedding and Qwen3-Reranker at a small size. Seeded; under an hour.

1. Token vectors and weights are trained as a bag of tokens, which is cheap and learns which words
   mean alike and which matter.
2. The embedding model is exactly that, written as a network: one layer finds the official query
   prompt, the next pools the other tokens by their weights. Two layers trained in the same time
   from any start did worse on text of another topic.
3. The reranker starts as a soft matcher of those tokens and learns to tell a passage from the near
   misses that the embedding model finds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from corpus import Pair, collect
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from llamaindex_qwen3 import prompts

HERE = Path(__file__).parent
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
HIDDEN, HEADS, HEAD_DIM = 256, 4, 64
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 256,
    "num_attention_heads": HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 8192,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
EMBEDDING = {**COMMON, "num_hidden_layers": 2, "num_key_value_heads": 4}
RERANKER = {**COMMON, "num_hidden_layers": 3, "num_key_value_heads": 4}
TEMPERATURE = 0.05
# Where the built networks keep a token's weight and a constant, and the rotary pair they compare in.
ONE, COSINE, SINE = range(HIDDEN - 3, HIDDEN)
LOW, HIGH = HEAD_DIM // 2 - 1, HEAD_DIM - 1
MAX_WEIGHT = 5.0
# Held out for watching progress: sources on one topic, so that near misses are really near.
HELD_SOURCES = {
    "rds", "s3", "redis", "elasticsearch", "pinecone", "weaviate", "pymongo", "dynamodb",
    "opensearch", "elasticache", "qdrant_client", "lancedb", "chromadb",
}  # fmt: skip
HELD = 400
QUESTIONS = [
    "how do I {}?", "how to {}", "how can I {}?", "what does it mean to {}?", "why would I {}?",
    "{}?", "what is the way to {}?", "can I {}?", "when should I {}?", "is it possible to {}?",
    "what happens if I {}?", "where do I {}?", "which option lets me {}?", "I want to {}",
    "what is {}?", "what controls {}?", "does it {}?", "tell me about {}", "explain {}",
]  # fmt: skip


# --- text -----------------------------------------------------------------------------------


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


def pad(rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad to ids [rows, longest] and return the index of each last token with them."""
    last = torch.tensor([len(r) - 1 for r in rows])
    ids = torch.zeros(len(rows), int(last.max()) + 1, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, last


def last_hidden(model: Qwen3ForCausalLM, rows: Sequence[list[int]]) -> torch.Tensor:
    """Return the final hidden state of each row's last token, float32 [rows, hidden]."""
    ids, last = pad(rows)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[torch.arange(len(rows)), last].float()


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


# --- training -------------------------------------------------------------------------------


def optimise(
    model: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    steps: int,
    rates: dict[str, float],
    decay: float = 0.01,
) -> None:
    """Run AdamW with warm-up and cosine decay; `rates` maps parts of parameter names to rates."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(next(r for n, r in rates.items() if n in name), []).append(parameter)
    optimiser = torch.optim.AdamW(
        [{"params": members, "peak": rate} for rate, members in groups.items()],
        weight_decay=decay, fused=True,
    )  # fmt: skip
    model.train()
    start, losses = time.monotonic(), []
    for step in range(steps):
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / 50) * cosine
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            minutes = (time.monotonic() - start) / 60
            mean = sum(losses[-100:]) / 100
            print(f"  step {step + 1}/{steps}  loss {mean:.3f}  {minutes:.1f} min", flush=True)
    model.eval()


@torch.inference_mode()
def embed(model: Qwen3ForCausalLM, rows: Sequence[list[int]]) -> torch.Tensor:
    """Return unit vectors [rows, hidden]."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = torch.empty(len(rows), model.config.hidden_size)
    for i in range(0, len(order), 64):
        index = order[i : i + 64]
        out[index] = F.normalize(last_hidden(model, [rows[j] for j in index]), dim=-1)
    return out


def watch(name: str, scores: torch.Tensor) -> None:
    """Print how high each query ranks its own body; scores are [queries, bodies]."""
    rank = 1 + (scores > scores.diagonal()[:, None]).sum(1).float()
    mrr = torch.where(rank <= 10, 1 / rank, 0.0).mean()
    first, ten = (rank <= 1).float().mean(), (rank <= 10).float().mean()
    print(f"  {name}: first {first:.3f}, in ten {ten:.3f}, MRR@10 {mrr:.3f}", flush=True)


def contrast(queries: torch.Tensor, bodies: torch.Tensor) -> torch.Tensor:
    """In-batch InfoNCE in both directions, on whole vectors and on their first 64 values."""
    target = torch.arange(len(queries))
    loss = torch.zeros(())
    for size, weight in ((HIDDEN, 1.0), (64, 0.3)):
        scores = F.normalize(queries[:, :size], dim=-1) @ F.normalize(bodies[:, :size], dim=-1).T
        loss = loss + weight * F.cross_entropy(scores / TEMPERATURE, target)
        loss = loss + 0.3 * weight * F.cross_entropy(scores.T / TEMPERATURE, target)
    return loss


class TokenBag(torch.nn.Module):
    """Unit token vectors, pooled with one learned weight a token."""

    def __init__(self) -> None:
        super().__init__()
        # Two dimensions stay free for the transformer to carry the weights in.
        self.vectors = torch.nn.Parameter(torch.randn(VOCAB, HIDDEN - 2))
        self.weights = torch.nn.Parameter(torch.zeros(VOCAB))

    def forward(self, rows: Sequence[list[int]]) -> torch.Tensor:
        flat = torch.tensor([i for row in rows for i in row])
        starts = torch.tensor([0, *(len(row) for row in rows)][:-1]).cumsum(0)
        return F.embedding_bag(
            flat, F.normalize(self.vectors, dim=-1), starts, mode="sum",
            per_sample_weights=self.bounded().exp()[flat],
        )  # fmt: skip

    def bounded(self) -> torch.Tensor:
        """Log-weights within the range that one attention score can take."""
        return 4.0 * torch.tanh(self.weights / 4.0)


def train_bag(
    encoder: Encoder, pairs: Sequence[Pair], held: Sequence[Pair], steps: int
) -> TokenBag:
    """Train token vectors on large batches; queries without the prompt."""
    bag, rng = TokenBag(), random.Random(1)
    stream = batches(pairs, 768, 48, rng)

    def ids(texts: Sequence[str], limit: int) -> list[list[int]]:
        return [row[:limit] or [encoder.end] for row in encoder.plain(texts)]

    def loss_of(step: int) -> torch.Tensor:
        if step % 500 == 0:
            with torch.no_grad():
                queries = F.normalize(bag(ids([p.title for p in held], 64)), dim=-1)
                bodies = F.normalize(bag(ids([p.body for p in held], 256)), dim=-1)
                watch("held out", queries @ bodies.T)
        drawn = [make_query(p, rng) for p in next(stream)]
        return contrast(bag(ids([q for q, _ in drawn], 48)), bag(ids([b for _, b in drawn], 160)))

    optimise(bag, loss_of, steps, {"vectors": 1e-2, "": 1e-2}, decay=0.0)
    return bag


@torch.no_grad()
def network(config: dict[str, Any], bag: TokenBag, content: int) -> Qwen3ForCausalLM:
    """Return a network whose token vectors are the bag's and whose layers hand their input on.

    The first `content` dimensions hold a token's vector, the last three its weight and a constant.
    Keys are normalised, so the log-weight is carried as the sine of an angle.
    """
    model = Qwen3ForCausalLM(Qwen3Config(**config))
    table = model.model.embed_tokens.weight
    table.zero_()
    table[:, :content] = F.normalize(bag.vectors[:, :content], dim=-1)
    table[:, SINE] = bag.bounded() / MAX_WEIGHT
    table[:, COSINE] = (1 - table[:, SINE].square()).sqrt()
    table[:, ONE] = 1.0
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.mul_(0.05)
        for proj in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(layer.self_attn, proj).weight.mul_(0.02)
    return model


def mark(layer: Qwen3Attention, head: int, marker: int, flag: int, sign: float) -> None:
    """Let each token learn whether it stands after a token with a 1 in dimension `marker`.

    Markers are compared in the rotary pair of the lowest frequency, which positions hardly turn.
    """
    base = head * HEAD_DIM
    layer.q_norm.weight.fill_(1.5)
    layer.q_proj.weight[base + HIGH, ONE] = 1.0
    layer.k_proj.weight[base + LOW, ONE] = 0.1
    layer.k_proj.weight[base + HIGH, marker] = 1.0
    layer.v_proj.weight[base, marker] = 1.0
    layer.o_proj.weight[flag, base] = (
        sign / 8
    )  # a marker's vector has length 2, a normalised one 16


@torch.no_grad()
def pooler(bag: TokenBag, encoder: Encoder) -> Qwen3ForCausalLM:
    """Build the embedding model that pools the tokens of a text as the bag does.

    0. Each token learns whether it belongs to a query's prompt: it stands after "Instruct" and
       not after "Query".
    1. The end token averages the tokens by their weights and leaves the prompt out.
    """
    content = HIDDEN - 6
    at_instruct, at_query, in_prompt = range(content, content + 3)
    model = network(EMBEDDING, bag, content)
    table = model.model.embed_tokens.weight
    head = encoder.plain([prompts.format_query(prompts.DEFAULT_TASK, "")])[0]
    table[head[0], at_instruct] = table[head[-2], at_query] = 1.0
    table[head[-2], in_prompt] = 1.0  # "Query" belongs to the prompt that it ends
    table[encoder.end, :content] = 0.0
    table[encoder.end, [COSINE, SINE]] = torch.tensor([1.0, 0.0])
    first, last = (layer.self_attn for layer in model.model.layers)
    mark(first, 0, at_instruct, in_prompt, 1.0)
    mark(first, 1, at_query, in_prompt, -1.0)
    away = 4.0
    last.q_norm.weight.fill_(MAX_WEIGHT * (1 + away**2) ** 0.5 / HEAD_DIM**0.5)
    last.v_proj.weight.copy_(torch.eye(HIDDEN))
    last.o_proj.weight.copy_(torch.eye(HIDDEN))
    last.o_proj.weight[content:] = 0.0
    for head_index in range(HEADS):
        base = head_index * HEAD_DIM
        last.q_proj.weight[base + HIGH, ONE], last.q_proj.weight[base + HIGH - 1, ONE] = 1.0, -away
        last.k_proj.weight[base + LOW, COSINE] = last.k_proj.weight[base + HIGH, SINE] = 1.0
        last.k_proj.weight[base + HIGH - 1, in_prompt] = 1.0
    model.model.norm.weight[content:] = 0.0
    return model.eval()


def held_out_scores(
    model: Qwen3ForCausalLM, encoder: Encoder, held: Sequence[Pair]
) -> torch.Tensor:
    """Return the cosines of held-out titles with all held-out bodies."""
    queries = embed(model, encoder.queries([p.title for p in held]))
    return queries @ embed(model, encoder.bodies([p.body for p in held])).T


@torch.no_grad()
def matcher(bag: TokenBag, encoder: Encoder) -> Qwen3ForCausalLM:
    """Build a reranker that counts which weighty tokens of the document the query has.

    Found by training alone, such a circuit takes far longer than a demo may. Layer by layer:

    0. Each token learns whether it stands after <Query> and after <Document> of the template.
    1. Each token looks for its like among the query's tokens. It also sees itself, which takes the
       attention when nothing in the query is near enough.
    2. The last token averages what the document's tokens found, by their weights.

    Content is compared in rotary pairs of low frequency, which positions hardly turn.
    """
    content = HIDDEN - 9
    at_query, at_document, result, match, in_query, in_document = range(content, content + 6)
    model = network(RERANKER, bag, content)
    table = model.model.embed_tokens.weight
    for place, word in ((at_query, "<Query>"), (at_document, "<Document>")):
        table[encoder.plain([word])[0][0], place] = 1.0
    yes, no = encoder.yes_no
    table[yes, result], table[no, result] = 0.05, -0.05
    model.model.norm.weight.fill_(0.05)
    model.model.norm.weight[result] = 20.0
    first, second, third = (layer.self_attn for layer in model.model.layers)
    mark(first, 0, at_query, in_query, 1.0)
    mark(first, 1, at_document, in_document, 1.0)

    second.q_norm.weight.fill_(2.5)
    turned_little = range(LOW - 18, LOW)
    places = [*turned_little, *(i + HEAD_DIM // 2 for i in turned_little)]
    for head in range(HEADS):
        base, start = head * HEAD_DIM, head * len(places)
        for offset, place in enumerate(places):
            for proj in (second.q_proj.weight, second.k_proj.weight):
                proj[base + place, start + offset] = (content / len(places)) ** 0.5
        second.q_proj.weight[base + HIGH, ONE] = 1.0
        for row in (second.k_proj.weight[base + HIGH], second.v_proj.weight[base]):
            row[in_query], row[in_document] = 1.0, -1.0
        second.o_proj.weight[match, base] = 1 / (8 * HEADS)

    third.q_norm.weight.fill_(1.5)
    for head in range(HEADS):
        base = head * HEAD_DIM
        third.q_proj.weight[base + HIGH, ONE] = third.q_proj.weight[base + HIGH - 1, ONE] = 1.0
        third.k_proj.weight[base + LOW, COSINE] = third.k_proj.weight[base + HIGH, SINE] = 1.0
        third.k_proj.weight[base + HIGH - 1, in_document] = 1.0
        third.v_proj.weight[base, match] = 1.0
        third.o_proj.weight[result, base] = 1 / (7 * HEADS)
    return model


def log_odds(
    model: Qwen3ForCausalLM, encoder: Encoder, queries: Sequence[str], bodies: Sequence[str]
) -> torch.Tensor:
    """Return yes - no of each pair; what all prompts begin with is run once."""
    rows = encoder.pairs(queries, bodies)
    shared = encoder.prefix + encoder.instruction
    assert all(row[: len(shared)] == shared for row in rows)
    ids, last = pad([row[len(shared) :] for row in rows])
    with torch.autocast("cpu", torch.bfloat16):
        cache = DynamicCache(config=model.config)
        model.model(input_ids=torch.tensor([shared]), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(rows))
        hidden = model.model(input_ids=ids, past_key_values=cache, use_cache=True)
    state = hidden.last_hidden_state[torch.arange(len(rows)), last].float()
    logits = state @ model.lm_head.weight[encoder.yes_no].T
    return logits[:, 0] - logits[:, 1]


def train_reranker(
    encoder: Encoder,
    bag: TokenBag,
    embedding: Qwen3ForCausalLM,
    pairs: Sequence[Pair],
    held: Sequence[Pair],
    steps: int,
) -> Qwen3ForCausalLM:
    """Tell a passage from the embedding model's near misses, listwise and pointwise."""
    model = matcher(bag, encoder)
    rng = random.Random(3)
    pairs = pairs[:30_000]  # enough near misses, in a fraction of the time
    bodies = embed(embedding, encoder.bodies([p.body for p in pairs]))
    dense = held_out_scores(embedding, encoder, held)
    many, negatives = 14, 5

    @torch.inference_mode()
    def watch_reranked() -> None:
        model.eval()
        some = dense[:150]
        ranked = torch.full_like(some, -math.inf)
        for i, query in enumerate(held[: len(some)]):
            near = dense[i].topk(10).indices.tolist()
            texts = [held[j].body for j in near]
            ranked[i, near] = log_odds(model, encoder, [query.title] * 10, texts)
            if i not in near:  # what is not retrieved ranks last
                ranked[i] = 0.0
                ranked[i, i] = -1.0
        watch("held out, dense", some)
        watch("held out, reranked", ranked)
        model.train()

    def loss_of(step: int) -> torch.Tensor:
        chosen = [rng.randrange(len(pairs)) for _ in range(many)]
        drawn = [make_query(pairs[i], rng) for i in chosen]
        vectors = embed(embedding, encoder.queries([q for q, _ in drawn]))
        near = (vectors @ bodies.T).topk(40).indices.tolist()
        queries, texts = [], []
        for (query, body), i, ranked in zip(drawn, chosen, near, strict=True):
            own = (bodies[i] @ bodies[ranked].T).tolist()
            misses = [j for j, c in zip(ranked, own, strict=True) if j != i and c < 0.95]
            texts += [body, *(pairs[j].body for j in rng.sample(misses, negatives))]
            queries += [query] * (negatives + 1)
        odds = log_odds(model, encoder, queries, texts).view(many, negatives + 1)
        right = torch.zeros_like(odds)
        right[:, 0] = 1.0
        listwise = F.cross_entropy(odds, torch.zeros(many, dtype=torch.long))
        weight = torch.tensor(float(negatives))
        pointwise = F.binary_cross_entropy_with_logits(odds, right, pos_weight=weight)
        if step % 200 == 199:
            watch_reranked()
        return listwise + 0.5 * pointwise

    optimise(model, loss_of, steps, {"embed_tokens": 1e-4, "": 5e-4})
    watch_reranked()
    return model


# --- files ----------------------------------------------------------------------------------


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path, appends_end: bool) -> None:
    """Write a checkpoint in bfloat16 with the files that the real ones have."""
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    if appends_end:
        tokenizer.post_processor = TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
        )
        write = {
            "modules.json": [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
            ],
            "1_Pooling/config.json": {
                "word_embedding_dimension": HIDDEN,
                "pooling_mode_cls_token": False,
                "pooling_mode_mean_tokens": False,
                "pooling_mode_lasttoken": True,
                "include_prompt": True,
            },
            "config_sentence_transformers.json": {
                "prompts": {"query": prompts.format_query(prompts.DEFAULT_TASK, ""), "document": ""},
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
        }  # fmt: skip
        (folder / "1_Pooling").mkdir(exist_ok=True)
        for name, content in write.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token=END, padding_side="left",
        model_max_length=COMMON["max_position_embeddings"], clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="packages to read as well")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--bag-steps", type=int, default=1500)
    parser.add_argument("--reranker-steps", type=int, default=700)
    args = parser.parse_args()
    torch.manual_seed(0)
    start = time.monotonic()
    pairs = collect(args.corpus)
    random.Random(0).shuffle(pairs)
    held = [p for p in pairs if p.source in HELD_SOURCES][:HELD]
    chosen = set(held)
    pairs = [p for p in pairs if p not in chosen]
    print(f"{len(pairs)} pairs of {len({p.source for p in pairs})} sources", flush=True)
    tokenizer = train_tokenizer(pairs)
    encoder = Encoder(tokenizer)
    bag = train_bag(encoder, pairs, held, args.bag_steps)
    embedding = pooler(bag, encoder)
    watch("embedding, held out", held_out_scores(embedding, encoder, held))
    save(embedding, tokenizer, args.out / "embedding", appends_end=True)
    embedding.float()
    reranker = train_reranker(encoder, bag, embedding, pairs, held, args.reranker_steps)
    save(reranker, tokenizer, args.out / "reranker", appends_end=False)
    print(f"done in {(time.monotonic() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
