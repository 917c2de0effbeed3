"""Causal attention after a prefix that every query sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    grouped = _flash_is_there(q)
    if not grouped:
        # Only the slowest kernel would take fewer heads of keys than of queries.
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    mask = None if length == total else causal_lower_right(length, total)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=1.0, enable_gqa=grouped
    )


def _flash_is_there(q: torch.Tensor) -> bool:
    if q.device.type != "cuda":
        return True
    return q.dtype != torch.float32 and torch.cuda.get_device_capability(q.device) >= (8, 0)


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


@dataclass(frozen=True)
class Packing:
    """Where rows of different lengths begin in packed queries and keys.

    Offsets are int32 [rows + 1]; a row's queries are the last of its keys.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    longest_query: int
    longest_key: int


Packed = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Packing], torch.Tensor]


def attend_packed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing
) -> torch.Tensor:
    """Attend without any padding, by the kernel that torch has for it on GPUs.

    Args:
        q: Queries, scaled, [queries, heads, head_dim].
        k: Keys [keys, kv_heads, head_dim].
        v: Values, as the keys.
        packing: Which queries belong to which keys.

    Returns:
        What each query gathers, in the shape of `q`.
    """
    from torch.nn.attention.varlen import varlen_attn

    gathered = varlen_attn(
        q,
        k,
        v,
        packing.queries,
        packing.keys,
        packing.longest_query,
        packing.longest_key,
        scale=1.0,
        window_size=(-1, 0),
        enable_gqa=k.shape[1] != q.shape[1],
    )
    assert isinstance(gathered, torch.Tensor)  # no auxiliary outputs were asked for
    return gathered


def packed_attention(heads: int, kv_heads: int, like: torch.Tensor) -> Packed | None:
    """Return `attend_packed` if it is there for such tensors and right, else None.

    The kernel is young and its arguments have changed between versions of torch, so it is held
    against `attend_sdpa` before it is trusted.
    """
    if like.device.type != "cuda" or like.dtype == torch.float32:
        return None
    return attend_packed if _is_right(attend_packed, heads, kv_heads, like) else None


def _is_right(packed: Packed, heads: int, kv_heads: int, like: torch.Tensor) -> bool:
    lengths, prefixes, dim = (70, 3), (0, 40), like.shape[-1]
    generator = torch.Generator().manual_seed(0)

    def random(rows: int, width: int) -> torch.Tensor:
        return torch.randn(rows, width, dim, generator=generator, device="cpu").to(like)

    rows = [
        (random(n, heads) * dim**-0.5, random(n + p, kv_heads), random(n + p, kv_heads))
        for n, p in zip(lengths, prefixes, strict=True)
    ]
    expected = [
        attend_sdpa(*(x.transpose(0, 1)[None] for x in row))[0].transpose(0, 1) for row in rows
    ]
    keys = [n + p for n, p in zip(lengths, prefixes, strict=True)]
    packing = Packing(
        offsets(lengths, like.device), offsets(keys, like.device), max(lengths), max(keys)
    )
    try:
        q, k, v = (torch.cat(parts) for parts in zip(*rows, strict=True))
        found = packed(q, k, v, packing)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return torch.allclose(found.float(), torch.cat(expected).float(), rtol=0.02, atol=0.02)


def offsets(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return where rows of these lengths begin, and where the last ends: int32 [rows + 1]."""
    ends = torch.tensor([0, *lengths], device=device).cumsum(0)
    return ends.to(torch.int32)
