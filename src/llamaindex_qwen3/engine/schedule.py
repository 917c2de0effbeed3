"""One queue per model: every call becomes a job, run one forward pass at a time."""

from __future__ import annotations

import os
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import DeviceMemoryError
from .batching import plan_batches
from .prefixes import Row

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Steps = Generator["list[Row] | None", Any, T]
"""A job: yields rows and is sent their hidden states, or yields None to give way to others."""

Run = Callable[[int, Sequence[Row]], "torch.Tensor"]
"""One forward pass on the device of that number: rows to float32 [rows, hidden]."""

INTERACTIVE, BULK = 0, 1


@dataclass(eq=False)
class _Job:
    priority: int
    steps: Steps[Any]
    run: Run
    budget: int
    future: Future[Any] = field(default_factory=Future)
    rows: Sequence[Row] = ()
    hidden: torch.Tensor | None = None
    batches: deque[list[int]] = field(default_factory=deque)
    missing: int = 0
    # A thread is advancing the generator.
    busy: bool = False

    @property
    def waits_to_advance(self) -> bool:
        return not self.busy and not self.missing

    def size(self, batch: Sequence[int]) -> int:
        """Padded tokens of a batch: at least what it takes."""
        return len(batch) * max(self.rows[i].own for i in batch)


class _Queue:
    """Jobs by priority, then arrival; what the threads share with their worker."""

    def __init__(self) -> None:
        self.ready = threading.Condition()
        self.jobs: list[_Job] = []
        self.closed = False
        # Once memory has run out: most tokens of a pass that may be tried again.
        self.limit: int | None = None


class Worker:
    """Runs jobs for one model, on one thread per device.

    Any thread may submit. Before each forward pass the waiting job of the highest priority is
    chosen, so a query waits for at most one pass of an ingest; jobs of the same priority that
    wait together and fit run in the same pass. A cancelled job is dropped before its next pass;
    an error reaches only the caller whose job raised it. When memory runs out, batches are halved.
    """

    def __init__(self, devices: int = 1) -> None:
        self._lock = threading.Lock()
        self._devices = devices
        self._pid = -1
        self._queue = _Queue()

    def submit(
        self, steps: Steps[T], run: Run, budget: int, priority: int = INTERACTIVE
    ) -> Future[T]:
        """Queue a job and return the future of its result.

        Args:
            steps: The job.
            run: Runs one forward pass; held, as the job, until the job has ended.
            budget: Most padded tokens of one pass.
            priority: INTERACTIVE or BULK.
        """
        queue = self._running()
        job = _Job(priority, steps, run, budget)
        with queue.ready:
            if queue.closed:
                raise RuntimeError("the interpreter is shutting down: its models have stopped")
            at = len(queue.jobs)
            while at and queue.jobs[at - 1].priority > priority:
                at -= 1
            queue.jobs.insert(at, job)
            queue.ready.notify()
        return job.future

    def _running(self) -> _Queue:
        # A forked child inherits the object but not the threads.
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._queue = _Queue()
                threads = [
                    threading.Thread(
                        target=_work, args=(self._queue, i), name=f"qwen3-worker-{i}", daemon=True
                    )
                    for i in range(self._devices)
                ]
                for thread in threads:
                    thread.start()
                # Also called at interpreter exit, so that no pass is cut off half-way.
                weakref.finalize(self, _stop, self._queue, threads)
            return self._queue


def _stop(queue: _Queue, threads: Sequence[threading.Thread]) -> None:
    with queue.ready:
        queue.closed = True
        queue.ready.notify_all()
    # The last reference may be dropped by one of them, with the queue locked: it must wait for none.
    if threading.current_thread() not in threads:
        for thread in threads:
            thread.join()


def _work(queue: _Queue, device: int) -> None:
    while True:
        with queue.ready:
            while (task := _next(queue)) is None and not queue.closed:
                queue.ready.wait()
            if task is None or queue.closed:
                for job in queue.jobs:
                    job.future.cancel()
                queue.jobs.clear()
                return
        if isinstance(task, _Job):
            _advance(queue, task)
        else:
            _pass(queue, task, device)
        # Idle, the thread must hold nothing of the model: that keeps its weights alive.
        del task


_Part = tuple[_Job, list[int]]


def _next(queue: _Queue) -> _Job | list[_Part] | None:
    """Choose what to do next: advance a job, or run parts of some in one pass."""
    for job in [job for job in queue.jobs if job.future.cancelled() and not job.busy]:
        queue.jobs.remove(job)
        job.steps.close()
    for priority in (INTERACTIVE, BULK):
        jobs = [job for job in queue.jobs if job.priority == priority]
        # First what makes batches, so that jobs that wait together run together.
        for job in jobs:
            if job.waits_to_advance:
                job.busy = True
                return job
        if parts := _gather(jobs, queue.limit):
            return parts
    return None


def _gather(jobs: Sequence[_Job], limit: int | None) -> list[_Part]:
    """Take the next batch of the first job that has one, and those of others that fit beside it."""
    parts: list[_Part] = []
    longest = count = 0
    budgets = [limit] if limit else []
    for job in jobs:
        if not job.batches:
            continue
        _halve(job, limit)
        batch = job.batches[0]
        budgets.append(job.budget)
        longest = max(longest, max(job.rows[i].own for i in batch))
        count += len(batch)
        # The first goes in any case: a text longer than the budget must run at some time.
        if parts and longest * count > min(budgets):
            break
        parts.append((job, job.batches.popleft()))
    return parts


def _halve(job: _Job, limit: int | None) -> None:
    """Cut a job's next batch as small as memory has shown to be needed."""
    batch = job.batches[0]
    if limit is not None and len(batch) > 1 and job.size(batch) > limit:
        job.batches.popleft()
        plan = plan_batches([job.rows[i].own for i in batch], limit)
        job.batches.extendleft([batch[i] for i in group] for group in reversed(plan))


def _advance(queue: _Queue, job: _Job) -> None:
    """Give a job what it asked for and see what it asks for next."""
    hidden, job.hidden = job.hidden, None
    try:
        rows = job.steps.send(hidden)
    except StopIteration as done:
        _end(queue, job, result=done.value)
        return
    except BaseException as error:
        _end(queue, job, error=error)
        return
    plan = plan_batches([row.own for row in rows or ()], job.budget)
    with queue.ready:
        job.rows, job.batches, job.missing = rows or (), deque(plan), len(rows or ())
        job.busy = False
        queue.ready.notify_all()


def _pass(queue: _Queue, parts: Sequence[_Part], device: int) -> None:
    """Run parts of jobs in one forward pass and deliver their hidden states."""
    rows = [job.rows[i] for job, batch in parts for i in batch]
    try:
        hidden = parts[0][0].run(device, rows)
    except BaseException as error:
        if _is_out_of_memory(error):
            # The frames hold the tensors that filled the memory.
            traceback.clear_frames(error.__traceback__)
            _try_smaller(queue, parts)
        elif len(parts) > 1:
            # Whose fault it is shows when each runs alone.
            for part in parts:
                _pass(queue, [part], device)
        else:
            _end(queue, parts[0][0], error=error)
        return
    start = 0
    with queue.ready:
        for job, batch in parts:
            if job.hidden is None:
                job.hidden = hidden.new_empty(len(job.rows), hidden.shape[1])
            job.hidden[batch] = hidden[start : start + len(batch)]
            start += len(batch)
            job.missing -= len(batch)
        queue.ready.notify_all()


def _try_smaller(queue: _Queue, parts: Sequence[_Part]) -> None:
    count = sum(len(batch) for _, batch in parts)
    longest = max(job.rows[i].own for job, batch in parts for i in batch)
    if count == 1:
        error = DeviceMemoryError(
            f"A text of {len(parts[0][0].rows[parts[0][1][0]].ids)} tokens does not fit into the "
            "memory of the device. Lower max_length, free memory, or use dtype='bfloat16', a smaller "
            "model or device='cpu'."
        )
        _end(queue, parts[0][0], error=error)
        return
    with queue.ready:
        half = max(count * longest // 2, 1)
        queue.limit = min(queue.limit or half, half)
        for job, batch in parts:
            job.batches.appendleft(batch)
        queue.ready.notify_all()


def _is_out_of_memory(error: BaseException) -> bool:
    # CPUs and Apple's GPUs raise a plain RuntimeError.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in str(error).lower() or "not enough memory" in str(error).lower()
             or "can't allocate memory" in str(error).lower())
    )  # fmt: skip


def _end(queue: _Queue, job: _Job, result: Any = None, error: BaseException | None = None) -> None:
    with queue.ready:
        # Another device may have ended it already.
        if job not in queue.jobs:
            return
        queue.jobs.remove(job)
    job.steps.close()
    # The future stays pending while its job runs, so that its caller can cancel it at any time.
    if job.future.set_running_or_notify_cancel():
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)
