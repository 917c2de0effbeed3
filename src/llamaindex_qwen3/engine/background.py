"""One event loop on a thread of its own, which every client of model servers shares."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_starting = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_pid = -1


def _after_fork() -> None:
    global _starting
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the shared loop, from any thread and beside any other loop.

    Connections belong to one event loop: on this one they outlive the loops of callers, and
    synchronous and asynchronous calls share them. Cancelling the future cancels the coroutine.
    """
    return asyncio.run_coroutine_threadsafe(work, _running())


def wait(future: Future[T]) -> T:
    """Return what a future brings; an interrupt cancels it first."""
    try:
        return future.result()
    except BaseException:
        # Ctrl-C stops the job before its next pass.
        future.cancel()
        raise
    finally:
        # An error holds this frame: held by it in turn, both would stay, and the weights too.
        del future


def _running() -> asyncio.AbstractEventLoop:
    global _loop, _pid
    # A forked child inherits the loop but not the thread that runs it.
    with _starting:
        if _loop is None or _pid != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(
                target=loop.run_forever, name="qwen3-served-models", daemon=True
            ).start()
            _loop, _pid = loop, os.getpid()
        return _loop
