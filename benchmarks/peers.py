"""The contenders, each set up to compute the right thing where it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamaindex_qwen3.prompts import DEFAULT_TASK, RERANKER_PREFIX, RERANKER_SUFFIX, format_pair

Score = Callable[[str, Sequence[str]], list[float]]


def model_card_reranker(directory: Path, device: str, dtype: torch.dtype, batch: int = 10) -> Score:
    """Score as the model card's example does: padded batches, the whole vocabulary everywhere."""
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device).eval()
    prefix, suffix = (
        tokenizer.encode(text, add_special_tokens=False)
        for text in (RERANKER_PREFIX, RERANKER_SUFFIX)
    )
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))

    @torch.no_grad()
    def score(query: str, documents: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(documents), batch):
            bodies = [format_pair(DEFAULT_TASK, query, d) for d in documents[start : start + batch]]
            room = 8192 - len(prefix) - len(suffix)
            inputs = tokenizer(
                bodies, padding=False, truncation="longest_first", max_length=room,
                add_special_tokens=False,
            )  # fmt: skip
            rows = [[*prefix, *row, *suffix] for row in inputs["input_ids"]]
            padded = tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt")
            logits = model(**padded.to(device)).logits[:, -1, :]
            two = torch.stack([logits[:, no], logits[:, yes]], dim=1)
            scores += torch.log_softmax(two, dim=1)[:, 1].exp().float().tolist()
        return scores

    return score


def cross_encoder(directory: Path, device: str, dtype: torch.dtype) -> Score:
    """Score by sentence-transformers, told the model card's template."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(directory), device=device, model_kwargs={"dtype": dtype})

    def score(query: str, documents: Sequence[str]) -> list[float]:
        pairs = [(query, document) for document in documents]
        return [float(s) for s in model.predict(pairs, show_progress_bar=False)]

    return score


def llama_index_reranker(directory: Path, device: str, dtype: torch.dtype) -> Score:
    """Score by LlamaIndex's SentenceTransformerRerank, told the model card's template."""
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank

    model = SentenceTransformerRerank(
        model=str(directory),
        device=device,
        top_n=10_000,
        cross_encoder_kwargs={"model_kwargs": {"dtype": dtype}},
    )

    def score(query: str, documents: Sequence[str]) -> list[float]:
        nodes = [NodeWithScore(node=TextNode(text=d, id_=str(i))) for i, d in enumerate(documents)]
        ranked = model.postprocess_nodes(nodes, query_str=query)
        by_id = {node.node_id: float(node.score or 0) for node in ranked}
        return [by_id[str(i)] for i in range(len(documents))]

    return score
