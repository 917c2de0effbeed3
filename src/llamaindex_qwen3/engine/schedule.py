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
_PASSES_BEFORE_MORE = 50


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
    # After a pass with others has failed: whose fault it was shows when each runs alone.
    alone: bool = False

    def longest(self, batch: Sequence[int]) -> int:
        return max(self.rows[i].cost for i in batch)


class _Queue:
    """Jobs by priority, then arrival; what the threads share with their worker.

    A job is in `fresh` while it waits to be advanced, in `ready` while it has batches, and in
    neither while a thread advances it or runs its last batch.
    """

    def __init__(self) -> None:
        self.ready_to_go = threading.Condition()
        self.jobs: set[_Job] = set()
        self.fresh: tuple[deque[_Job], ...] = (deque(), deque())
        self.ready: tuple[deque[_Job], ...] = (deque(), deque())
        self.closed = False
        # Once memory has run out: most tokens of a pass, until enough passes have gone well.
        self.limit: int | None = None
        self.passes_within = 0


# Held for moments only; a forked child gets a new one, since it may inherit it locked.
_starting = threading.Lock()


def _after_fork() -> None:
    global _starting
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Worker:
    """Runs jobs for one model, on one thread per device.

    Any thread may submit. Before each forward pass the waiting job of the highest priority is
    chosen, so a query waits for at most one pass of an ingest; jobs of the same priority that
    wait together and fit run in the same pass. A cancelled job is dropped before its next pass;
    an error reaches only the caller whose job raised it. When memory runs out, batches are halved.
    """

    def __init__(self, devices: int = 1) -> None:
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
        with queue.ready_to_go:
            if queue.closed:
                raise RuntimeError("the interpreter is shutting down: its models have stopped")
            queue.jobs.add(job)
            queue.fresh[priority].append(job)
            queue.ready_to_go.notify()
        return job.future

    def _running(self) -> _Queue:
        # A forked child inherits the object but not the threads.
        with _starting:
            if self._pid != os.getpid():
                queue = _Queue()
                threads = [
                    threading.Thread(
                        target=_work, args=(queue, i), name=f"qwen3-worker-{i}", daemon=True
                    )
                    for i in range(self._devices)
                ]
                try:
                    for thread in threads:
                        thread.start()
                except RuntimeError:  # no more threads: the next call tries again
                    _stop(queue, [], os.getpid())
                    raise
                # Also called at interpreter exit, so that no pass is cut off half-way.
                weakref.finalize(self, _stop, queue, threads, os.getpid())
                self._queue, self._pid = queue, os.getpid()
            return self._queue


def _stop(queue: _Queue, threads: Sequence[threading.Thread], pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked child has these locks as they were, and not these threads
    with queue.ready_to_go:
        queue.closed = True
        queue.ready_to_go.notify_all()
    # Only at exit: garbage collection may come here in any thread and with any lock held.
    if not threading.main_thread().is_alive():
        for thread in threads:
            thread.join()


_Part = tuple[_Job, list[int]]


def _work(queue: _Queue, device: int) -> None:
    while True:
        task: _Job | list[_Part] | None = None
        try:
            with queue.ready_to_go:
                while (task := _next(queue)) is None and not queue.closed:
                    queue.ready_to_go.wait()
                if queue.closed:
                    for job in queue.jobs:
                        job.future.cancel()
                    queue.jobs.clear()
                    return
            if isinstance(task, _Job):
                _advance(queue, task)
            elif task is not None:
                _pass(queue, task, device)
        except BaseException as error:
            # Of the queue's own work, such as memory for results: no call may wait for ever.
            for job in _jobs_of(task) or list(queue.jobs):
                _end(queue, job, error=error)
        # Idle, the thread must hold nothing of the model: that keeps its weights alive.
        del task


def _jobs_of(task: _Job | list[_Part] | None) -> list[_Job]:
    if isinstance(task, _Job):
        return [task]
    return [job for job, _ in task or ()]


def _next(queue: _Queue) -> _Job | list[_Part] | None:
    """Choose what to do next: advance a job, or run parts of some in one pass."""
    for priority in (INTERACTIVE, BULK):
        # First what makes batches, so that jobs that wait together run together.
        fresh = queue.fresh[priority]
        while fresh:
            job = fresh.popleft()
            if not _is_dropped(queue, job):
                return job
        if parts := _gather(queue, queue.ready[priority]):
            return parts
    return None


def _is_dropped(queue: _Queue, job: _Job) -> bool:
    """Say whether nobody waits for a job any more, and forget it."""
    if job.future.cancelled():
        queue.jobs.discard(job)
        job.steps.close()
    return job not in queue.jobs


def _gather(queue: _Queue, ready: deque[_Job]) -> list[_Part]:
    """Take the next batch of the first job that has one, and those of others that fit beside it."""
    parts: list[_Part] = []
    taken: list[_Job] = []
    longest = count = 0
    heads: set[tuple[int, ...]] = set()
    budgets = [queue.limit] if queue.limit else []
    while ready:
        job = ready[0]
        if _is_dropped(queue, job):
            ready.popleft()
            continue
        _halve(job, queue.limit)
        batch = job.batches[0]
        budgets.append(job.budget)
        longest, count = max(longest, job.longest(batch)), count + len(batch)
        heads.add(job.rows[0].head)
        tokens = longest * count + sum(map(len, heads))
        # The first goes in any case: a text longer than the budget must run at some time.
        if parts and (tokens > min(budgets) or job.alone or parts[0][0].alone):
            break
        parts.append((job, job.batches.popleft()))
        taken.append(ready.popleft())
    ready.extendleft(job for job in reversed(taken) if job.batches)
    return parts


def _halve(job: _Job, limit: int | None) -> None:
    """Cut a job's next batch as small as memory has shown to be needed."""
    batch = job.batches[0]
    if limit is not None and len(batch) > 1 and len(batch) * job.longest(batch) > limit:
        job.batches.popleft()
        plan = plan_batches([job.rows[i].cost for i in batch], limit)
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
    plan = plan_batches([row.cost for row in rows or ()], job.budget)
    with queue.ready_to_go:
        job.rows, job.batches, job.missing = rows or (), deque(plan), len(rows or ())
        (queue.ready if rows else queue.fresh)[job.priority].append(job)
        queue.ready_to_go.notify_all()


def _pass(queue: _Queue, parts: Sequence[_Part], device: int) -> None:
    """Run parts of jobs in one forward pass and deliver their hidden states."""
    rows = [job.rows[i] for job, batch in parts for i in batch]
    try:
        hidden = parts[0][0].run(device, rows)
    except BaseException as error:
        _failed(queue, parts, error)
        # The error's frames lead back to this one: what it holds would stay as long as they do.
        del parts, rows
        return
    start = 0
    with queue.ready_to_go:
        for job, batch in parts:
            if job.hidden is None:
                job.hidden = hidden.new_empty(len(job.rows), hidden.shape[1])
            job.hidden[batch] = hidden[start : start + len(batch)]
            start += len(batch)
            job.missing -= len(batch)
            if not job.missing:
                queue.fresh[job.priority].appendleft(job)
        _relax(queue)
        queue.ready_to_go.notify_all()


def _failed(queue: _Queue, parts: Sequence[_Part], error: BaseException) -> None:
    if _is_out_of_memory(error):
        # The frames hold the tensors that filled the memory.
        traceback.clear_frames(error.__traceback__)
        _try_smaller(queue, parts)
    elif len(parts) > 1:
        for job, _ in parts:
            job.alone = True
        _put_back(queue, parts)
    else:
        _end(queue, parts[0][0], error=error)


def _relax(queue: _Queue) -> None:
    """Try larger passes again once many have fitted: what filled the memory may be gone."""
    if queue.limit is not None:
        queue.passes_within += 1
        if queue.passes_within >= _PASSES_BEFORE_MORE:
            queue.limit, queue.passes_within = 2 * queue.limit, 0


def _put_back(queue: _Queue, parts: Sequence[_Part]) -> None:
    with queue.ready_to_go:
        for job, batch in reversed(parts):
            job.batches.appendleft(batch)
            ready = queue.ready[job.priority]
            if job not in ready:
                ready.appendleft(job)
        queue.ready_to_go.notify_all()


def _try_smaller(queue: _Queue, parts: Sequence[_Part]) -> None:
    count = sum(len(batch) for _, batch in parts)
    if count == 1:
        ((job, batch),) = parts
        error = DeviceMemoryError(
            f"A text of {len(job.rows[batch[0]].ids)} tokens does not fit into the "
            "memory of the device. Lower max_length, free memory, or use dtype='bfloat16', a smaller "
            "model or device='cpu'."
        )
        _end(queue, job, error=error)
        return
    half = max(count * max(job.longest(batch) for job, batch in parts) // 2, 1)
    with queue.ready_to_go:
        queue.limit, queue.passes_within = min(queue.limit or half, half), 0
    _put_back(queue, parts)


def _is_out_of_memory(error: BaseException) -> bool:
    # CPUs and Apple's GPUs raise a plain RuntimeError.
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(
            words in said
            for words in ("out of memory", "not enough memory", "can't allocate memory")
        )
    )


def _end(queue: _Queue, job: _Job, result: Any = None, error: BaseException | None = None) -> None:
    with queue.ready_to_go:
        # Another device may have ended it already.
        if job not in queue.jobs:
            return
        queue.jobs.discard(job)
    job.steps.close()
    # The future stays pending while its job runs, so that its caller can cancel it at any time.
    if job.future.set_running_or_notify_cancel():
        if error is None:
            job.future.set_result(result)
        else:
            # Without the scheduler's own frame, which holds this job and so the error itself: a
            # cycle would keep the weights until the garbage collector comes.
            trace = error.__traceback__
            job.future.set_exception(error.with_traceback(trace.tb_next if trace else None))
