"""Which tokens run once for several rows, and how long their keys and values are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .network import Network, Prefix, Segment

if TYPE_CHECKING:
    import torch

_Key = tuple[int, ...]
# A token's keys and values of one layer, which attention copies for each row, against all that a
# token of the row's own takes.
_SHARED_COST = 4
# Enough for the prompts of several tasks; a longer beginning is shared up to this size.
_CAPACITY = 128 * 2**20


@dataclass(frozen=True)
class Row:
    """Token ids of one text, whose first `cuts` tokens other rows are likely to have as well.

    Cuts ascend and are less than the number of ids: the last token is always the row's own. `head`
    is what stands before the last cut, one object for all rows that share it.
    """

    ids: Sequence[int]
    cuts: tuple[int, ...] = ()
    head: tuple[int, ...] = ()

    @property
    def cost(self) -> int:
        """Tokens to run; of shared ones the part that each row takes memory for by itself."""
        return len(self.ids) - len(self.head) + len(self.head) // _SHARED_COST


def common_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Return how many first ids all rows have in common, leaving each at least one of its own."""
    first, last = min(rows), max(rows)
    most = min(len(row) for row in rows) - 1
    for i in range(most):
        if first[i] != last[i]:
            return i
    return most


class PrefixCache:
    """Keys and values of the prefixes used last, by their token ids, on one device."""

    def __init__(self, network: Network, capacity: int = _CAPACITY) -> None:
        """Keep at most `capacity` bytes of one device's network."""
        self._network = network
        self._kept: OrderedDict[_Key, Prefix] = OrderedDict()
        size = network.bytes_per_token
        # Tokens of the longest prefix that fits; rows must not cut later than that.
        self.most_tokens = capacity // size if size else 0

    def run(self, rows: Sequence[Row]) -> torch.Tensor:
        """Run rows in one forward pass; return float32 [rows, hidden]."""
        made: dict[_Key, Prefix] = {}
        heads: list[Segment] = []
        own: list[Segment] = []
        for row in rows:
            prefix, at = self._find(row, made, heads)
            own.append(Segment(row.ids[at:], prefix))
        hidden = self._network.forward([*heads, *own])
        # Only now are they whole: a pass that failed leaves nothing behind.
        for key, prefix in made.items():
            self._keep(key, prefix)
        return hidden

    def _find(
        self, row: Row, made: dict[_Key, Prefix], heads: list[Segment]
    ) -> tuple[Prefix | None, int]:
        """Return what a row begins with, planning its computation if it is not kept."""
        prefix: Prefix | None = None
        for cut in row.cuts:
            at = prefix.length if prefix else 0
            key = tuple(row.ids[:cut])
            known = self._kept.get(key) or made.get(key)
            if known is None:
                known = made[key] = Prefix(cut)
                heads.append(Segment(row.ids[at:cut], prefix, keep=known))
            elif key in self._kept:
                self._kept.move_to_end(key)
            prefix = known
        return prefix, prefix.length if prefix else 0

    def _keep(self, key: _Key, prefix: Prefix) -> None:
        self._kept[key] = prefix
        while sum(kept.length for kept in self._kept.values()) > self.most_tokens:
            self._kept.popitem(last=False)
