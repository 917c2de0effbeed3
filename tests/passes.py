"""Watch the forward passes of Qwen3 models, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from typing_extensions import Self


class ForwardPasses:
    """Count forward passes, and hold them up where a test asks for it.

    A pass is a call of a model's first layer, so that it counts whichever class runs it.
    `before` is called with the pass's number, from 1, in the thread that computes.
    """

    def __init__(self) -> None:
        self.count = 0
        self.before: Callable[[int], None] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._handle = register_module_forward_pre_hook(self._hook)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _hook(self, module: nn.Module, _inputs: Any) -> None:
        if not isinstance(module, Qwen3DecoderLayer) or module.self_attn.layer_idx != 0:
            return
        with self._lock:
            self.count += 1
            number = self.count
        if self.before is not None:
            self.before(number)

    def during(self, work: Callable[[], object]) -> int:
        """Return how many passes happen while `work` runs."""
        before = self.count
        work()
        return self.count - before
