"""The progress bars of transformers and of the model hub, which write past our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden_bars(downloads: bool = False) -> Iterator[None]:
    """Hide them, and leave them afterwards as they were.

    Args:
        downloads: Show those of the hub: what takes long there is the network.
    """
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging

    loading, downloading = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # the hub's as well
    if downloads and downloading:
        enable_progress_bars()
    try:
        yield
    finally:
        if loading:
            logging.enable_progress_bar()
        if downloading:
            enable_progress_bars()
        elif loading:
            disable_progress_bars()
