"""Which texts run together: pure functions on token counts."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Group texts of similar length so that no padded batch exceeds a token budget.

    Args:
        lengths: Tokens of each text.
        max_batch_tokens: Most tokens of one batch, padding included. A text longer than that
            runs alone.

    Returns:
        Indices into `lengths`, each exactly once, longest first: if memory is short, it shows at
        once and not at the end.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * longest <= max_batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def group_lengths(lengths: Sequence[int], most_padding: float = 0.05) -> list[list[int]]:
    """Group rows whose attention runs together, padded to the longest of each group.

    Args:
        lengths: Tokens of each row.
        most_padding: Share of a group's positions that may be padding.

    Returns:
        Indices into `lengths`, each exactly once, longest first.
    """
    groups: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups:
            room = lengths[groups[-1][0]] * (len(groups[-1]) + 1)
            if tokens + lengths[index] >= (1 - most_padding) * room:
                groups[-1].append(index)
                tokens += lengths[index]
                continue
        groups.append([index])
        tokens = lengths[index]
    return groups


def pack(lengths: Sequence[int], max_tokens: int, max_texts: int) -> list[list[int]]:
    """Group texts for requests to a server, which makes batches of its own without padding.

    Args:
        lengths: Tokens of each text.
        max_tokens: Most tokens of one request. A text longer than that goes alone.
        max_texts: Most texts of one request.

    Returns:
        Indices into `lengths`, each exactly once, in order.
    """
    groups: list[list[int]] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if groups and len(groups[-1]) < max_texts and tokens + length <= max_tokens:
            groups[-1].append(index)
            tokens += length
        else:
            groups.append([index])
            tokens = length
    return groups
