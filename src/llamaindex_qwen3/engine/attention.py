"""Causal attention after a prefix that every query sees."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

# Queries of one step: few enough that their scores stay in a CPU's caches, and that most of what
# causality hides is never computed.
_QUERY_BLOCK = 64


def attend_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend by plain matrix products, a block of queries at a time.

    On a CPU this takes less than scaled_dot_product_attention: half of it in bfloat16.

    Args:
        q: Queries, scaled, [count, heads, length, head_dim].
        k: Keys [count, kv_heads, prefix + length, head_dim].
        v: Values, as the keys.

    Returns:
        What each query gathers, in the shape of `q`.
    """
    count, heads, length, dim = q.shape
    kv_heads, seen = k.shape[1], k.shape[2] - length
    batch, share = count * kv_heads, heads // kv_heads
    out = torch.empty_like(q)
    q, to = q.view(batch, share, length, dim), out.view(batch, share, length, dim)
    k, v = k.view(batch, -1, dim), v.view(batch, -1, dim)
    hidden = q.new_full((_QUERY_BLOCK, _QUERY_BLOCK), float("-inf")).triu_(1)
    for start in range(0, length, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, length)
        size, ends = stop - start, seen + stop
        block = q[:, :, start:stop].reshape(batch, share * size, dim)
        scores = torch.bmm(block, k[:, :ends].transpose(1, 2))
        scores.view(batch, share, size, ends)[..., seen + start :] += hidden[:size, :size]
        gathered = torch.bmm(torch.softmax(scores, -1), v[:, :ends])
        to[:, :, start:stop] = gathered.view(batch, share, size, dim)
    return out


def attend_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Do as `attend_blocks` does with torch's fused kernels, which GPUs have."""
    length, total = q.shape[2], k.shape[2]
    mask = None if length == total else causal_lower_right(length, total)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=1.0, enable_gqa=True
    )


def attend_last(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Attend from one position of each row.

    Args:
        q: Queries, scaled, [count, heads, head_dim].
        k: Keys [count, kv_heads, length, head_dim].
        v: Values, as the keys.
        ends: Position of each query, which sees what stands up to there, [count].

    Returns:
        What each query gathers, in the shape of `q`.
    """
    count, kv_heads, length, dim = k.shape
    scores = q.view(count, kv_heads, -1, dim) @ k.transpose(2, 3)
    later = torch.arange(length, device=q.device) > ends[:, None]
    scores.masked_fill_(later[:, None, None], float("-inf"))
    return (torch.softmax(scores, -1) @ v).view(q.shape)
