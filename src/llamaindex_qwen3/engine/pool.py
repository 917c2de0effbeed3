"""Several addresses of one model: the least loaded is asked, and another when it fails."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from ..errors import ServerError, ServerMismatchError
from .endpoint import Endpoint, NotFoundError, ServedModel, TooLargeError, TransientError
from .wire import WrongAnswerError

T = TypeVar("T")
Send = Callable[[Endpoint], Awaitable[T]]

# What a server that was never seen gets: a wrong address should show at once.
_FIRST_CONTACT_S = 3.0
# Attempts at a request whose answer is wrong, or that fails inside the server: it may be the text.
_WRONG_ANSWERS = 6
_QUERIES_AT_ONCE = 64
# For how long a server that failed again and again is left alone while others work.
_LONGEST_AWAY_S = 30.0
_back_off = wait_random_exponential(multiplier=0.2, max=10.0, min=0.05)


@dataclass
class _Tried:
    """What one request has met so far."""

    size: str
    # Of its first fault: waiting for a place is no attempt.
    since: float | None = None
    endpoint: Endpoint | None = None
    fault: TransientError | None = None
    wrong: int = 0
    waited_s: float = 0.0

    def met(self, fault: TransientError) -> TransientError:
        """Note a fault."""
        self.since = self.since or time.monotonic()
        self.fault = fault
        return fault

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first fault, without those spent waiting for a place."""
        return time.monotonic() - self.since - self.waited_s if self.since else 0.0


class Pool:
    """Sends each request to one of several servers, until one has answered it rightly.

    Bulk requests on the wire are limited per server. Queries have places of their own, and so never
    wait for an ingest here.
    """

    def __init__(self, model: ServedModel, contact: Callable[[Endpoint], Awaitable[None]]) -> None:
        self._model = model
        self._contact = contact
        self._endpoints = [Endpoint(url, model) for url in model.urls]
        self._most = {True: model.max_in_flight, False: max(_QUERIES_AT_ONCE, model.max_in_flight)}
        self._waiting: dict[bool, deque[asyncio.Future[None]]] = {True: deque(), False: deque()}
        self._contacts: dict[Endpoint, asyncio.Task[None]] = {}

    @property
    def bulk_at_once(self) -> int:
        """Bulk requests that all servers together take at once."""
        return self._model.max_in_flight * len(self._endpoints)

    @property
    def ready(self) -> list[Endpoint]:
        """The servers whose first contact went well."""
        return [endpoint for endpoint in self._endpoints if endpoint.profile is not None]

    async def close(self) -> None:
        """Close all connections."""
        for endpoint in self._endpoints:
            await endpoint.close()

    async def contact(self, everyone: bool = False) -> None:
        """Contact the servers; those that are away are contacted when they are first needed.

        Args:
            everyone: Wait for all of them, not only for the first that can work.

        Raises:
            ServerError: None can be reached, or one that can is not as it must be.
        """
        pending = {asyncio.ensure_future(self._first_contact(e)) for e in self._endpoints}
        for task in pending:
            # Those left behind speak for themselves when their server is asked.
            task.add_done_callback(_seen)
        while pending and (everyone or not self.ready):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is not None and not isinstance(error, TransientError):
                    raise error

        async def nothing(endpoint: Endpoint) -> None:
            """Be content with the contact."""

        if not self.ready:
            await self.call(nothing, bulk=False, size="the first contact")

    async def call(self, send: Send[T], *, bulk: bool, size: str) -> T:
        """Send a request until it is answered.

        Args:
            send: Sends it to a server and reads the answer.
            bulk: Whether it waits for a place that bulk work may take.
            size: What an error says of it.

        Raises:
            ServerError: It was refused, or more attempts would not help.
        """
        tried = _Tried(size)
        # Nearly all succeed at once: tenacity, whose own work is a tenth of a request's, comes in
        # with the first fault, as its first attempt.
        try:
            return await self._attempt(send, bulk, tried)
        except TransientError as error:
            faults = [error]

        async def again() -> T:
            if faults:
                raise faults.pop()
            return await self._attempt(send, bulk, tried)

        attempts = AsyncRetrying(
            retry=retry_if_exception_type(TransientError),
            wait=lambda state: self._pause(tried, state),
            stop=lambda state: self._is_hopeless(tried),
            retry_error_callback=lambda state: self._give_up(tried, state),
        )
        result: T = await attempts(again)
        return result

    async def _attempt(self, send: Send[T], bulk: bool, tried: _Tried) -> T:
        began = time.monotonic()
        async with self._place(bulk) as endpoint:
            if tried.since:
                tried.waited_s += time.monotonic() - began
            tried.endpoint = endpoint
            try:
                await self._first_contact(endpoint)
                result = await send(endpoint)
            except WrongAnswerError as error:
                raise tried.met(TransientError(str(error.args[0]), 200, is_outage=False)) from None
            except TransientError as error:
                raise tried.met(error) from None
            endpoint.faults, endpoint.down_until = 0, 0.0
            return result

    async def _first_contact(self, endpoint: Endpoint) -> None:
        if endpoint.profile is not None:
            return
        task = self._contacts.get(endpoint)
        if task is None:
            task = self._contacts[endpoint] = asyncio.ensure_future(self._make_contact(endpoint))
            task.add_done_callback(_seen)
        # All who wait share it, and one who is cancelled does not end it for the others.
        await asyncio.shield(task)

    async def _make_contact(self, endpoint: Endpoint) -> None:
        try:
            await self._contact(endpoint)
        except (NotFoundError, TooLargeError) as error:
            raise ServerMismatchError(str(error), error.url, error.status) from None
        finally:
            del self._contacts[endpoint]

    @asynccontextmanager
    async def _place(self, bulk: bool) -> AsyncIterator[Endpoint]:
        """Take a place at the least loaded server that is up, waiting for one if need be."""
        while (endpoint := self._free(bulk)) is None:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[bulk].append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._call_next(bulk)
                raise
        endpoint.in_flight[bulk] += 1
        if endpoint.faults:
            # One tries whether it works again; the others go elsewhere in the meantime.
            endpoint.down_until = time.monotonic() + self._model.timeout_s
        try:
            yield endpoint
        finally:
            endpoint.in_flight[bulk] -= 1
            self._call_next(bulk)

    def _call_next(self, bulk: bool) -> None:
        waiting = self._waiting[bulk]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _free(self, bulk: bool) -> Endpoint | None:
        now = time.monotonic()
        free = [
            endpoint
            for endpoint in self._up() or self._endpoints
            if endpoint.in_flight[bulk] < self._most[bulk] and endpoint.held_until <= now
        ]
        return min(free, key=lambda endpoint: sum(endpoint.in_flight.values()), default=None)

    def _up(self) -> list[Endpoint]:
        now = time.monotonic()
        return [endpoint for endpoint in self._endpoints if endpoint.down_until <= now]

    def _pause(self, tried: _Tried, state: RetryCallState) -> float:
        """Return the seconds before the next attempt: none where another server is up."""
        assert tried.fault is not None
        assert tried.endpoint is not None
        left = max(self._limit_s() - tried.elapsed_s, 0.0)
        # At the end of its time, once more.
        pause = min(max(tried.fault.retry_after_s, _back_off(state)), left)
        if not tried.fault.is_outage:
            tried.wrong += 1
            return pause
        endpoint, loop = tried.endpoint, asyncio.get_running_loop()
        endpoint.faults += 1
        away_s = max(pause, min(_LONGEST_AWAY_S, 0.1 * 2 ** min(endpoint.faults, 10)))
        endpoint.down_until = time.monotonic() + away_s
        loop.call_later(away_s, self._call_all)
        if tried.fault.retry_after_s:
            endpoint.held_until = time.monotonic() + pause
            loop.call_later(pause, self._call_all)
        return 0.0 if self._up() else pause

    def _call_all(self) -> None:
        """Have all who wait look again: a server is back."""
        for bulk, waiting in self._waiting.items():
            for _ in range(len(waiting)):
                self._call_next(bulk)

    def _limit_s(self) -> float:
        seen = any(endpoint.answered for endpoint in self._endpoints)
        return self._model.retry_s if seen else min(_FIRST_CONTACT_S, self._model.retry_s)

    def _is_hopeless(self, tried: _Tried) -> bool:
        return tried.wrong >= _WRONG_ANSWERS or tried.elapsed_s >= self._limit_s()

    def _give_up(self, tried: _Tried, state: RetryCallState) -> NoReturn:
        assert tried.fault is not None
        assert tried.endpoint is not None
        fault, url = tried.fault, tried.endpoint.url
        if not fault.is_outage:
            advice = "Its log may say why."
        elif fault.status is not None:
            advice = "Lower max_in_flight if it is overloaded, or raise retry_s."
        elif "time-out" in str(fault):
            advice = "Raise timeout_s if it is only slow."
        else:
            advice = "Check that it is running and that base_url is its address."
        attempts = (
            "one attempt" if state.attempt_number == 1 else f"{state.attempt_number} attempts"
        )
        raise ServerError(
            f"{url} has not answered {tried.size} in {attempts} over "
            f"{tried.elapsed_s:.1f} s; the last gave {fault}. {advice}",
            url,
            fault.status,
        )


def _seen(task: asyncio.Task[None]) -> None:
    # asyncio complains of errors that nobody has read.
    if not task.cancelled():
        task.exception()
