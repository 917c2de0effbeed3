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
