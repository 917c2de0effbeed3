"""One worker thread per model: every call becomes a job, run one forward pass at a time."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import weakref
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A job: yields between two forward passes and returns its result."""

INTERACTIVE, BULK = 0, 1


class _Queue:
    """Jobs in order of priority, then of arrival; what the thread shares with its worker."""

    def __init__(self) -> None:
        self.ready = threading.Condition()
        self.jobs: list[tuple[int, int, Future[Any], Steps[Any]]] = []
        self.closed = False


class Worker:
    """Runs jobs for one model on one thread.

    Any thread may submit. Between two steps the waiting job of the highest priority goes on, so a
    query waits for at most one forward pass of an ingest. A cancelled job is dropped before its
    next step; an error reaches only the caller whose job raised it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._pid = -1
        self._queue = _Queue()

    def submit(self, steps: Steps[T], priority: int = INTERACTIVE) -> Future[T]:
        """Queue a job and return the future of its result."""
        future: Future[T] = Future()
        queue = self._running()
        with queue.ready:
            if queue.closed:
                raise RuntimeError("the interpreter is shutting down: its models have stopped")
            heapq.heappush(queue.jobs, (priority, next(self._order), future, steps))
            queue.ready.notify()
        return future

    def _running(self) -> _Queue:
        # A forked child inherits the object but not the thread.
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._queue = _Queue()
                thread = threading.Thread(
                    target=_run, args=(self._queue,), name="qwen3-worker", daemon=True
                )
                thread.start()
                # Also called at interpreter exit, so that no pass is cut off half-way.
                weakref.finalize(self, _stop, self._queue, thread)
            return self._queue


def _stop(queue: _Queue, thread: threading.Thread) -> None:
    with queue.ready:
        queue.closed = True
        queue.ready.notify()
    # The last reference may be dropped by the worker thread itself.
    if thread is not threading.current_thread():
        thread.join()


def _run(queue: _Queue) -> None:
    while True:
        with queue.ready:
            queue.ready.wait_for(lambda: queue.jobs or queue.closed)
            if queue.closed:
                jobs, queue.jobs = queue.jobs, []
                for _, _, future, steps in jobs:
                    steps.close()
                    future.cancel()
                return
            job = heapq.heappop(queue.jobs)
        if _step(job[2], job[3]):
            with queue.ready:
                heapq.heappush(queue.jobs, job)
        # Idle, the thread must hold nothing of the model: that keeps its weights alive.
        del job


def _step(future: Future[Any], steps: Steps[Any]) -> bool:
    """Advance a job by one step; return whether it has more."""
    # The future stays pending while its job runs, so that its caller can cancel it at any time.
    if future.cancelled():
        steps.close()
        return False
    try:
        next(steps)
        return True
    except StopIteration as done:
        if future.set_running_or_notify_cancel():
            future.set_result(done.value)
    except BaseException as error:
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
    return False
