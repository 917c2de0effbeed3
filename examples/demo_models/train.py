"""Train the demo embedding model and the demo reranker from scratch on two CPU cores.

    pip install -c constraints.txt -e ".[test]" && pip install --no-deps botocore==1.44.5
    python examples/demo_models/train.py

The training text is the documentation of the installed Python packages (corpus.py), nothing else:
neither examples/data nor its questions are read. Both models have the architecture, the prompts
and the file layout of Qwen3-Embedding and Qwen3-Reranker at a small size. Seeded; under an hour.
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

import torch
import torch.nn.functional as F
from corpus import Pair, collect
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

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
VOCAB, BODY_TOKENS, QUERY_TOKENS = 8192, 96, 32
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "dtype": "float32",
}
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
        [pre.Split(Regex(SPLIT), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL) - len(PLAIN),
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The fixed prompt texts are repeated so that they cost few tokens; yes and no must be one each.
    fixed = [prompts.RERANKER_PREFIX, prompts.format_pair(prompts.DEFAULT_TASK, "", ""), "yes", "no"]
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

    def queries(self, texts: Sequence[str]) -> list[list[int]]:
        head = prompts.format_query(prompts.DEFAULT_TASK, "")
        limit = len(self.tokenizer.encode(head).ids) + QUERY_TOKENS
        rows = self.tokenizer.encode_batch([head + t for t in texts])
        return [r.ids[:limit] + [self.end] for r in rows]

    def bodies(self, texts: Sequence[str], limit: int = BODY_TOKENS) -> list[list[int]]:
        return [r.ids[:limit] + [self.end] for r in self.tokenizer.encode_batch(list(texts))]

    def pairs(self, queries: Sequence[str], bodies: Sequence[str]) -> list[list[int]]:
        texts = [
            prompts.format_pair(prompts.DEFAULT_TASK, q, b)
            for q, b in zip(queries, bodies, strict=True)
        ]
        limit = 40 + QUERY_TOKENS + BODY_TOKENS
        rows = self.tokenizer.encode_batch(texts)
        return [self.prefix + r.ids[:limit] + self.suffix for r in rows]


# --- training -------------------------------------------------------------------------------


def optimise(
    model: Qwen3ForCausalLM, loss_of: Callable[[int], torch.Tensor], steps: int, rate: float
) -> None:
    """Run AdamW with warm-up and cosine decay, printing the mean loss now and then."""
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01, fused=True)
    model.train()
    start, losses = time.monotonic(), []
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100)
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * warm * decay
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            minutes = (time.monotonic() - start) / 60
            mean = sum(losses[-50:]) / 50
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


def recall(model: Qwen3ForCausalLM, encoder: Encoder, pairs: Sequence[Pair]) -> str:
    """Say how often a held-out title finds its body among all held-out bodies."""
    queries = embed(model, encoder.queries([p.title for p in pairs]))
    bodies = embed(model, encoder.bodies([p.body for p in pairs]))
    scores = queries @ bodies.T
    rank = (scores > scores.diagonal()[:, None]).sum(1)
    return f"first {(rank < 1).float().mean():.3f}, in ten {(rank < 10).float().mean():.3f}"


def train_embedding(
    encoder: Encoder, pairs: Sequence[Pair], held: Sequence[Pair], steps: int
) -> Qwen3ForCausalLM:
    """Train with in-batch InfoNCE at temperature 0.05, also on the first 64 dimensions."""
    model = Qwen3ForCausalLM(Qwen3Config(**CONFIG))
    rng = random.Random(1)
    stream = batches(pairs, 96, 16, rng)

    def loss_of(step: int) -> torch.Tensor:
        drawn = [make_query(p, rng) for p in next(stream)]
        limit = rng.choice([40, 56, 64, BODY_TOKENS])
        queries = last_hidden(model, encoder.queries([q for q, _ in drawn]))
        bodies = last_hidden(model, encoder.bodies([b for _, b in drawn], limit))
        target = torch.arange(len(drawn))
        loss = torch.zeros(())
        for size, weight in ((CONFIG["hidden_size"], 1.0), (64, 0.3)):
            scores = F.normalize(queries[:, :size], dim=-1) @ F.normalize(bodies[:, :size], dim=-1).T
            loss = loss + weight * F.cross_entropy(scores / 0.05, target)
            loss = loss + 0.3 * weight * F.cross_entropy(scores.T / 0.05, target)
        if step % 250 == 249:
            model.eval()
            print(f"  held out: {recall(model, encoder, held)}", flush=True)
            model.train()
        return loss

    optimise(model, loss_of, steps, 1.5e-3)
    print(f"embedding, {len(held)} held-out titles: {recall(model, encoder, held)}", flush=True)
    return model


def train_reranker(
    encoder: Encoder, embedding: Qwen3ForCausalLM, pairs: Sequence[Pair], steps: int
) -> Qwen3ForCausalLM:
    """Start from the embedding trunk and tell a passage from the embedder's own near misses."""
    model = Qwen3ForCausalLM(Qwen3Config(**CONFIG))
    model.load_state_dict(embedding.state_dict())
    rng = random.Random(2)
    bodies = embed(embedding, encoder.bodies([p.body for p in pairs]))
    queries_per_step, negatives = 12, 5

    def loss_of(step: int) -> torch.Tensor:
        chosen = [rng.randrange(len(pairs)) for _ in range(queries_per_step)]
        drawn = [make_query(pairs[i], rng) for i in chosen]
        vectors = embed(embedding, encoder.queries([q for q, _ in drawn]))
        near = (vectors @ bodies.T).topk(60).indices.tolist()
        queries, texts = [], []
        for (query, body), i, ranked in zip(drawn, chosen, near, strict=True):
            own = bodies[i] @ bodies[ranked].T
            misses = [j for j, c in zip(ranked, own.tolist(), strict=True) if j != i and c < 0.95]
            texts += [body, *(pairs[j].body for j in rng.sample(misses, negatives))]
            queries += [query] * (negatives + 1)
        hidden = last_hidden(model, encoder.pairs(queries, texts))
        logits = hidden @ model.lm_head.weight[encoder.yes_no].T
        odds = (logits[:, 0] - logits[:, 1]).view(queries_per_step, negatives + 1)
        right = torch.zeros_like(odds)
        right[:, 0] = 1.0
        listwise = F.cross_entropy(odds, torch.zeros(queries_per_step, dtype=torch.long))
        pointwise = F.binary_cross_entropy_with_logits(
            odds, right, pos_weight=torch.tensor(float(negatives))
        )
        return listwise + 0.5 * pointwise

    optimise(model, loss_of, steps, 8e-4)
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
                "word_embedding_dimension": CONFIG["hidden_size"],
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
        model_max_length=CONFIG["max_position_embeddings"], clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--embedding-steps", type=int, default=2200)
    parser.add_argument("--reranker-steps", type=int, default=1500)
    args = parser.parse_args()
    torch.manual_seed(0)
    start = time.monotonic()
    pairs = collect()
    random.Random(0).shuffle(pairs)
    held, pairs = pairs[:500], pairs[500:]
    print(f"{len(pairs)} pairs of {len({p.source for p in pairs})} sources", flush=True)
    tokenizer = train_tokenizer(pairs)
    encoder = Encoder(tokenizer)
    embedding = train_embedding(encoder, pairs, held, args.embedding_steps)
    save(embedding, tokenizer, args.out / "embedding", appends_end=True)
    embedding.float()
    reranker = train_reranker(encoder, embedding, pairs, args.reranker_steps)
    save(reranker, tokenizer, args.out / "reranker", appends_end=False)
    print(f"done in {(time.monotonic() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
