"""The process that the fake model servers run in: `python -m servers.fake_process` in tests/.

It prints the port of its control server, which starts, changes, stops and questions the fakes.
Each fake listens on a port of its own. The process ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from typing import Any

import torch
from aiohttp import web

from . import fake_faults
from .fake_model import Answer, Model, RefusedError, Settings, reference_of
from .fake_shapes import answer, texts_in

OUTAGE_S = 0.3


class _Closing(asyncio.Protocol):
    """Ends each connection as soon as it is made."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        fake_faults.reset(transport)
        transport.close()


class Fake:
    """One server: its behaviour, and a record of what it was asked."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.model = settings, Model(settings)
        self.port = 0
        self.requests: list[dict[str, Any]] = []
        self.posts = self.faulty = self.in_flight = self.peak = self.closing = 0
        self.held: list[asyncio.Future[None]] = []
        self.changed = asyncio.Condition()
        self._web = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._listener: asyncio.Server | None = None
        self._outage: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        if self._listener is not None:
            return
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._accept, "127.0.0.1", self.port, reuse_address=True
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _return(self) -> None:
        await asyncio.sleep(OUTAGE_S)
        await self.start()

    def stop(self) -> None:
        """Stop listening and break off every connection, as a killed process does."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for protocol in list(self._web.connections):
            if (transport := protocol.transport) is not None:
                fake_faults.reset(transport)
                transport.abort()

    async def until(self, key: str, count: int) -> None:
        """Wait until so many requests are held, have come in, or are done."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.counts()[key] >= count)

    def counts(self) -> dict[str, int]:
        """Return how many requests there were, and are."""
        return {
            "held": sum(not future.done() for future in self.held),
            "requests": len(self.requests),
            "posts": self.posts,
            "faults": self.faulty,
            "in_flight": self.in_flight,
            "peak": self.peak,
        }

    async def release(self, count: int | None) -> None:
        """Let the oldest held requests go on, or all and all to come."""
        if count is None:
            self.settings.hold_from = None
        for future in [f for f in self.held if not f.done()][:count]:
            future.set_result(None)

    def _accept(self) -> asyncio.BaseProtocol:
        if self.closing:
            self.closing -= 1
            return _Closing()
        return self._web()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        record: dict[str, Any] = {
            "method": request.method, "path": request.path_qs, "at": time.monotonic(),
            "headers": dict(request.headers), "texts": texts_in(body), "bytes": len(raw),
            "body": body, "ids": [], "status": None, "fault": None,
            "connection": request.transport and request.transport.get_extra_info("peername")[1],
        }  # fmt: skip
        self.requests.append(record)
        post = request.method == "POST"
        self.posts += post
        self.in_flight += post
        self.peak = max(self.peak, self.in_flight)
        await self._tell()
        try:
            response = await self._respond(request, body, record)
            record["status"] = response.status
            return response
        finally:
            record["until"] = time.monotonic()
            self.in_flight -= post
            await self._tell()

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _respond(
        self, request: web.BaseRequest, body: Any, record: dict[str, Any]
    ) -> web.StreamResponse:
        settings = self.settings
        name = self._fault(request.method)
        record["fault"] = name
        if settings.hold_from is not None and record["texts"] >= settings.hold_from:
            future = asyncio.get_running_loop().create_future()
            self.held.append(future)
            await self._tell()
            await future
        if settings.delay_s and request.method == "POST":
            await asyncio.sleep(settings.delay_s)
        if (instead := settings.instead) and request.path.startswith(instead.get("path", "/")):
            return _response(instead["status"], instead.get("body"), instead.get("headers"))
        # vLLM guards a part of its paths only.
        guarded = settings.kind != "vllm" or request.path.startswith(f"{settings.prefix}/v1/")
        denied = request.headers.get("Authorization") != f"Bearer {settings.key}"
        if settings.key and guarded and denied:
            return _response(401, {"error": "Unauthorized"})
        if name in fake_faults.STATUS_FAULTS:
            return fake_faults.failed_status(name)
        try:
            answered = answer(self.model, request.method, request.path, body)
        except RefusedError as error:
            return _response(error.status, error.document, error.headers)
        record["ids"] = answered.ids
        return await self._write(name, request, answered)

    async def _write(
        self, name: str | None, request: web.BaseRequest, answered: Answer
    ) -> web.StreamResponse:
        rows = answered.rows[::-1] if self.settings.shuffled else answered.rows
        if rows and name in fake_faults.ROWS:
            rows = fake_faults.ROWS[name](rows)
        data = json.dumps(answered.document(rows)).encode()
        if name in fake_faults.BODY_FAULTS:
            data = fake_faults.BODY_FAULTS[name](data)
        elif name in (*fake_faults.WIRE_FAULTS, fake_faults.DRIBBLE):
            if name == "closed at accept":
                self.closing = 2
            elif name == "refused":
                self.stop()
                self._outage = asyncio.create_task(self._return())
            await fake_faults.fail_on_wire(name, request, data)
        return web.Response(body=data, content_type="application/json")

    def _fault(self, method: str) -> str | None:
        settings, left = self.settings, self.settings.fault_count
        due = self.posts % settings.every == 0 and (left is None or self.faulty < left)
        if method != "POST" or not settings.faults or not due:
            return None
        self.faulty += 1
        return settings.faults[(self.faulty - 1) % len(settings.faults)]


def _response(status: int, document: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        headers=headers,
        body=b"" if document is None else json.dumps(document).encode(),
        content_type="application/json",
    )


class Control:
    """Starts, changes and questions the fakes."""

    def __init__(self) -> None:
        self.fakes: list[Fake] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Do what one request asks for: {"do": ..., "fake": its number, ...}."""
        order = await request.json()
        action = order.pop("do")
        if action == "create":
            fake = Fake(Settings(**order))
            if fake.settings.vectors == "reference":
                # Now, so that no request waits for it.
                reference_of(fake.settings.directory, fake.settings.role)
            await fake.start()
            self.fakes.append(fake)
            return _response(200, {"fake": len(self.fakes) - 1, "port": fake.port})
        return _response(200, await self._do(action, self.fakes[order.pop("fake")], order))

    async def _do(self, action: str, fake: Fake, order: dict[str, Any]) -> Any:
        match action:
            case "change":
                fake.settings = fake.model.settings = dataclasses.replace(fake.settings, **order)
            case "start":
                await fake.start()
            case "stop":
                fake.stop()
            case "restart":
                fake.stop()
                await asyncio.sleep(order["pause_s"])
                await fake.start()
            case "release":
                await fake.release(order["count"])
            case "until":
                await fake.until(order["key"], order["count"])
            case "requests":
                return fake.requests
            case "end":
                fake.stop()
                fake.requests.clear()
        return fake.counts()


async def main() -> None:
    """Serve until standard input ends."""
    torch.set_num_threads(1)
    loop = asyncio.get_running_loop()
    server = web.Server(Control().handle, access_log=None)
    listener = await loop.create_server(server, "127.0.0.1", 0)
    print(listener.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(main())
