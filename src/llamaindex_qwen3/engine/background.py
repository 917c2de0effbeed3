"""One event loop on a thread of its own, which every client of model servers shares."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
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


class Crew:
    """Runs coroutines side by side, a limited number of them; the first error ends all.

    Used as a context: its end waits for all of them.

    Args:
        most: Coroutines of this crew at once.
        places: Limits those of several crews together.
    """

    def __init__(self, most: int, places: asyncio.Semaphore | None = None) -> None:
        self._most, self._places = most, places
        self._running: set[asyncio.Task[None]] = set()

    async def add(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine, waiting for another to end if need be."""
        try:
            await self._shrink(self._most - 1)
            if self._places:
                await self._places.acquire()
        except BaseException:
            work.close()
            raise
        task = asyncio.ensure_future(work)
        if places := self._places:
            # A task that is cancelled before it begins runs no line of its own.
            task.add_done_callback(lambda _: places.release())
        self._running.add(task)

    async def _shrink(self, most: int) -> None:
        while len(self._running) > most:
            done, self._running = await asyncio.wait(
                self._running, return_when=asyncio.FIRST_COMPLETED
            )
            # All are read: asyncio complains of errors that nobody has seen.
            errors = [error for task in done if (error := task.exception())]
            if errors:
                raise errors[0]

    async def __aenter__(self) -> Crew:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self._shrink(0)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)


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


def start(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Have the shared loop run a coroutine some time, if there is one; takes no lock.

    Garbage collection may call this in any thread, with any lock held.
    """
    if _loop is not None and _pid == os.getpid():
        _loop.call_soon_threadsafe(lambda: asyncio.ensure_future(make(), loop=_loop))


def _running() -> asyncio.AbstractEventLoop:
    global _loop, _pid
    if _loop is not None and _pid == os.getpid():
        return _loop
    # A forked child inherits the loop but not the thread that runs it.
    with _starting:
        if _loop is None or _pid != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(
                target=loop.run_forever, name="qwen3-served-models", daemon=True
            ).start()
            _loop, _pid = loop, os.getpid()
        return _loop
