"""Networks of Qwen3's architecture that are built from a bag of tokens, to train on or to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from text import VOCAB, Encoder
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from llamaindex_qwen3 import prompts

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
# Where the built networks keep a token's weight and a constant, and the rotary pair they compare in.
ONE, COSINE, SINE = range(HIDDEN - 3, HIDDEN)
LOW, HIGH = HEAD_DIM // 2 - 1, HEAD_DIM - 1
MAX_WEIGHT = 5.0


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
