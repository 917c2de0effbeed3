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
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import Pair, collect
from networks import COMMON, HIDDEN, TokenBag, matcher, pooler
from text import END, Encoder, batches, make_query, train_tokenizer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen3ForCausalLM

from llamaindex_qwen3 import prompts

HERE = Path(__file__).parent
TEMPERATURE = 0.05
# Held out for watching progress: sources on one topic, so that near misses are really near.
HELD_SOURCES = {
    "rds", "s3", "redis", "elasticsearch", "pinecone", "weaviate", "pymongo", "dynamodb",
    "opensearch", "elasticache", "qdrant_client", "lancedb", "chromadb",
}  # fmt: skip
HELD = 400


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


def held_out_scores(
    model: Qwen3ForCausalLM, encoder: Encoder, held: Sequence[Pair]
) -> torch.Tensor:
    """Return the cosines of held-out titles with all held-out bodies."""
    queries = embed(model, encoder.queries([p.title for p in held]))
    return queries @ embed(model, encoder.bodies([p.body for p in held])).T


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


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path, appends_end: bool) -> None:
    """Write a checkpoint in bfloat16 with the files that the real ones have."""
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # Older versions of transformers look for the rotary base at the top.
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = COMMON["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
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
