"""An embedding that writes down which process loads its weights; Ray's actors import it."""

from __future__ import annotations

import os
from typing import Any

from llamaindex_qwen3 import Qwen3Embedding


class Counted(Qwen3Embedding):
    """Adds a line to `log`, the id of its process, for each load."""

    log: str

    def _open_engine(self, checkpoint: Any) -> Any:
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return super()._open_engine(checkpoint)
