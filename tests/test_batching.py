"""How texts are put together: every one once, within the budget, with little padding."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from llamaindex_qwen3.engine.batching import group_lengths, plan_batches
from llamaindex_qwen3.engine.prefixes import common_length

lengths_strategy = st.lists(st.integers(1, 2000), max_size=120)


@given(lengths_strategy, st.integers(1, 70_000))
def test_batches_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    """Plan each text once, longest first; only a text that is too long alone goes over."""
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= budget or len(batch) == 1
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(order, reverse=True)


@given(lengths_strategy)
def test_groups_have_little_padding(lengths: list[int]) -> None:
    """Group each text once with at most 5 % of padding."""
    groups = group_lengths(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max(lengths[i] for i in group)
        assert sum(lengths[i] for i in group) >= 0.95 * padded


def test_groups_are_few() -> None:
    """Run texts of like length together: that is what groups are for."""
    rng = random.Random(0)
    assert len(group_lengths([100] * 50)) == 1
    assert len(group_lengths([rng.randint(95, 100) for _ in range(50)])) == 1
    assert len(group_lengths([rng.randint(10, 1000) for _ in range(200)])) < 60


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=6))
def test_common_length(rows: list[list[int]]) -> None:
    """Find the longest beginning that all rows have, short of a whole row."""
    size = common_length(rows)
    assert 0 <= size < min(map(len, rows))
    assert len({tuple(row[:size]) for row in rows}) == 1
    if size + 1 < min(map(len, rows)):
        assert len({tuple(row[: size + 1]) for row in rows}) > 1
