"""Several addresses of one model: one is asked, and another or the same again when it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from ..errors import ServerError, ServerMismatchError
from .contact import recognise
from .endpoint import Endpoint, NotFoundError, ServedModel, TooLargeError, TransientError
from .places import Places, room_of
from .wire import WrongAnswerError

T = TypeVar("T")
Send = Callable[[Endpoint], Awaitable[T]]

# What a server that was never seen gets: a wrong address should show at once.
_FIRST_CONTACT_S = 3.0
# Attempts at a request whose answer is wrong, or that fails inside the server: it may be the text.
_WRONG_ANSWERS = 6
# For how long a server that failed again and again is left alone while others work.
_LONGEST_AWAY_S = 30.0
# After so long without an answer a server may have been changed, and no connection shows it: servers
# close idle ones after seconds.
_IDLE_S = 60.0
# How servers refuse a text that is longer than they read.
_TOO_LONG = {400, 413, 422}
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
    # What a server answered that has to show that it is the same; whether it was asked to before.
    answer: tuple[Endpoint, Any] | None = None
    inquired: bool = False
    # Tokens of one text that were not enough, and who said so.
    room: float = 0
    refusal: ServerError | None = None

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
    """Sends each request to one of several servers, until one has answered it rightly."""

    def __init__(self, model: ServedModel, contact: Callable[[Endpoint], Awaitable[None]]) -> None:
        self._model = model
        self._contact = contact
        self._endpoints = [Endpoint(url, model) for url in model.urls]
        self._places = Places(self._endpoints, model)
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
        while True:
            try:
                return await self._ask(send, bulk, tried)
            except ServerError as error:
                if not self._others_have_room(tried, error):
                    raise

    async def _ask(self, send: Send[T], bulk: bool, tried: _Tried) -> T:
        began = time.monotonic()
        async with self._places.take(bulk, tried.room) as endpoint:
            if tried.since:
                tried.waited_s += time.monotonic() - began
            tried.endpoint = endpoint
            try:
                result = await self._proven(send, endpoint, tried)
            except WrongAnswerError as error:
                raise tried.met(TransientError(str(error.args[0]), 200, is_outage=False)) from None
            except TransientError as error:
                endpoint.absences += error.is_absence
                raise tried.met(error) from None
            endpoint.faults, endpoint.down_until = 0, 0.0
            endpoint.last_used = time.monotonic()
            return result

    async def _proven(self, send: Send[T], endpoint: Endpoint, tried: _Tried) -> T:
        """Ask a server, and return its answer when it is sure that the server is the same as ever."""
        if tried.answer is None or tried.answer[0] is not endpoint:
            await self._first_contact(endpoint)
            if endpoint.last_used < time.monotonic() - _IDLE_S and not endpoint.in_doubt:
                # Beside the request, which so takes no longer.
                endpoint.absences, endpoint.last_used = endpoint.absences + 1, time.monotonic()
                self._begin(endpoint)
            elif endpoint.in_doubt and not tried.inquired:
                # Before it gets any text, but not each time: were every other request to fail, as
                # behind a proxy with one of two servers down, only inquiries would succeed.
                await self._recognise(endpoint)
                tried.inquired = True
            tried.answer = endpoint, await send(endpoint)
        # If it, or a proxy's other connection, was away meanwhile, the answer may be another's.
        await self._recognise(endpoint)
        result: T = tried.answer[1]
        return result

    def _others_have_room(self, tried: _Tried, error: ServerError) -> bool:
        """Note who refused a request, and say whether a server that reads longer texts may take it.

        Texts are cut to what all servers read that are known by then: one that joins later may read
        less.
        """
        assert tried.endpoint is not None
        profile = tried.endpoint.profile
        if type(error) not in (ServerError, TooLargeError) or error.status not in _TOO_LONG:
            return False
        if profile is None or not profile.max_tokens:
            return False
        tried.room = max(tried.room, profile.max_tokens)
        tried.refusal = error
        return any(room_of(endpoint) > tried.room for endpoint in self.ready)

    async def _first_contact(self, endpoint: Endpoint) -> None:
        if endpoint.profile is None:
            await self._share(endpoint)

    async def _recognise(self, endpoint: Endpoint) -> None:
        """See after each outage, and after idle minutes, that the same server is there.

        A single connection that broke counts as well: when a proxy changes over to another server,
        nothing more shows. All requests that it concerns share one small question, and as each of
        them is sent again whole, that adds little.
        """
        while endpoint.in_doubt:
            await self._share(endpoint)

    async def _share(self, endpoint: Endpoint) -> None:
        """Wait for what is asked of a server about itself, or ask it."""
        # All who wait share it, and one who is cancelled does not end it for the others.
        await asyncio.shield(self._begin(endpoint))

    def _begin(self, endpoint: Endpoint) -> asyncio.Task[None]:
        task = self._contacts.get(endpoint)
        if task is None:
            task = self._contacts[endpoint] = asyncio.ensure_future(self._inquire(endpoint))
            task.add_done_callback(_seen)
        return task

    async def _inquire(self, endpoint: Endpoint) -> None:
        # An outage that is met from here on may be a later one.
        absences = endpoint.absences
        try:
            if endpoint.profile is not None:
                await recognise(endpoint)
            else:
                await self._make_contact(endpoint)
            endpoint.absences_known, endpoint.last_used = absences, time.monotonic()
        finally:
            del self._contacts[endpoint]

    async def _make_contact(self, endpoint: Endpoint) -> None:
        try:
            await self._contact(endpoint)
        except (NotFoundError, TooLargeError) as error:
            raise ServerMismatchError(str(error), error.url, error.status) from None

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
        endpoint = tried.endpoint
        endpoint.faults += 1
        away_s = max(pause, min(_LONGEST_AWAY_S, 0.1 * 2 ** min(endpoint.faults, 10)))
        self._places.leave_alone(
            endpoint, away_s, held_s=pause if tried.fault.retry_after_s else 0.0
        )
        return 0.0 if self._places.up(tried.room) else pause

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
        if tried.refusal is not None:
            advice += f" Before that, {tried.refusal}"
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
