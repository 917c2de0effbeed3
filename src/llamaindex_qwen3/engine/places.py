"""Who is asked next: the least loaded of the servers that are up, each within its limit."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from .endpoint import Endpoint, ServedModel

_QUERIES_AT_ONCE = 64


class Places:
    """The places for requests on the wire, and who waits for one.

    Those of bulk requests are limited per server. Queries have places of their own, and so never wait
    for an ingest here.
    """

    def __init__(self, endpoints: Sequence[Endpoint], model: ServedModel) -> None:
        self._endpoints = endpoints
        self._timeout_s = model.timeout_s
        self._most = {True: model.max_in_flight, False: max(_QUERIES_AT_ONCE, model.max_in_flight)}
        # With the room that each needs, in the order of their coming.
        self._waiting: dict[bool, dict[asyncio.Future[None], float]] = {True: {}, False: {}}

    @asynccontextmanager
    async def take(self, bulk: bool, room: float) -> AsyncIterator[Endpoint]:
        """Take a place at the least loaded server that is up, waiting for one if need be.

        Args:
            bulk: Whether the request is bulk work.
            room: Tokens of one text that are too few: servers known to read no more are left out.
        """
        waiting = self._waiting[bulk]
        while (endpoint := self._free(bulk, room)) is None:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting[turn] = room
            try:
                await turn
            except asyncio.CancelledError:
                if waiting.pop(turn, None) is None:
                    self._call_next(bulk)
                raise
        endpoint.in_flight[bulk] += 1
        if endpoint.faults:
            # One tries whether it works again; the others go elsewhere in the meantime.
            endpoint.down_until = time.monotonic() + self._timeout_s
        try:
            yield endpoint
        finally:
            endpoint.in_flight[bulk] -= 1
            self._call_next(bulk)

    def up(self, room: float) -> list[Endpoint]:
        """Return the servers that may take a request, but for those that were left alone."""
        now = time.monotonic()
        return [endpoint for endpoint in self._able(room) if endpoint.down_until <= now]

    def leave_alone(self, endpoint: Endpoint, away_s: float, held_s: float) -> None:
        """Prefer other servers for a while, and for another ask this one nothing at all."""
        now, loop = time.monotonic(), asyncio.get_running_loop()
        endpoint.down_until = now + away_s
        loop.call_later(away_s, self._call_all)
        if held_s:
            endpoint.held_until = now + held_s
            loop.call_later(held_s, self._call_all)

    def _able(self, room: float) -> list[Endpoint]:
        return [endpoint for endpoint in self._endpoints if room_of(endpoint) > room]

    def _free(self, bulk: bool, room: float) -> Endpoint | None:
        now = time.monotonic()
        free = [
            endpoint
            for endpoint in self.up(room) or self._able(room)
            if endpoint.in_flight[bulk] < self._most[bulk] and endpoint.held_until <= now
        ]
        return min(free, key=lambda endpoint: sum(endpoint.in_flight.values()), default=None)

    def _call_next(self, bulk: bool) -> None:
        """Have the first look again of those for whom there is a place."""
        waiting = self._waiting[bulk]
        for turn, room in waiting.items():
            if not turn.done() and self._free(bulk, room) is not None:
                del waiting[turn]
                turn.set_result(None)
                return

    def _call_all(self) -> None:
        """Have all who wait look again: a server is back."""
        for waiting in self._waiting.values():
            for turn in [turn for turn in waiting if not turn.done()]:
                del waiting[turn]
                turn.set_result(None)


def room_of(endpoint: Endpoint) -> float:
    """Return the most tokens of one text that a server reads, as far as is known."""
    known = endpoint.profile and endpoint.profile.max_tokens
    return known or math.inf
