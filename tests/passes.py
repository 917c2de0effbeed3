"""Watch the forward passes of Qwen3 models, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from typing_extensions import Self

from llamaindex_qwen3.engine import network


class ForwardPasses:
    """Count the engine's forward passes, and hold them up where a test asks for it.

    `before` is called with the pass's number, from 1, in the thread that computes; `rows` keeps
    how many texts each pass ran, `tokens` how many tokens.
    """

    def __init__(self) -> None:
        self.count = 0
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self.before: Callable[[int], None] | None = None
        self._lock = threading.Lock()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        for kind in (network.PackedNetwork, network.TransformersNetwork):
            self._patch.setattr(kind, "forward", self._counted(kind.forward))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _counted(self, forward: Any) -> Any:
        def run(model: Any, segments: Any) -> Any:
            with self._lock:
                self.count += 1
                number = self.count
                self.rows.append(sum(segment.keep is None for segment in segments))
                self.tokens.append(sum(len(segment.ids) for segment in segments))
            if self.before is not None:
                self.before(number)
            return forward(model, segments)

        return run

    def during(self, work: Callable[[], object]) -> int:
        """Return how many passes happen while `work` runs."""
        before = self.count
        work()
        return self.count - before
