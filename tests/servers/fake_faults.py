"""Every way in which a model server fails: in its rows, its bytes, its connection, its status."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from aiohttp import web

from .fake_model import Rows

HANG_S = 600.0


def _last(rows: Rows, change: Callable[[Any], Any]) -> Rows:
    index, value = rows[-1]
    return [*rows[:-1], (index, change(value))]


def _with_value(value: Any, wrong: float | None) -> Any:
    return [*value[:-1], wrong] if isinstance(value, list) else wrong


# Applied to the rows, before they are written down.
ROW_FAULTS: dict[str, Callable[[Rows], Rows]] = {
    "too few": lambda rows: rows[:-1],
    "too many": lambda rows: [*rows, (len(rows), rows[0][1])],
    "none at all": lambda _: [],
    "nan": lambda rows: _last(rows, lambda value: _with_value(value, float("nan"))),
    "infinite": lambda rows: _last(rows, lambda value: _with_value(value, float("inf"))),
    "null": lambda rows: _last(rows, lambda _: None),
}
VECTOR_FAULTS: dict[str, Callable[[Rows], Rows]] = {
    "short vector": lambda rows: _last(rows, lambda value: value[: len(value) // 2]),
    "short vectors": lambda rows: [(index, value[: len(value) // 2]) for index, value in rows],
    "empty vector": lambda rows: _last(rows, lambda _: []),
    "null in vector": lambda rows: _last(rows, lambda value: _with_value(value, None)),
}
INDEX_FAULTS: dict[str, Callable[[Rows], Rows]] = {
    "wrong index": lambda rows: [*rows[:-1], (len(rows) + 7, rows[-1][1])],
    "negative index": lambda rows: [*rows[:-1], (-1, rows[-1][1])],
    "duplicate index": lambda rows: [*rows[:-1], (0 if len(rows) > 1 else 1, rows[-1][1])],
}
ROWS = {**ROW_FAULTS, **VECTOR_FAULTS, **INDEX_FAULTS}

# Applied to the bytes of a right answer; sent with 200 and the right length of what is sent.
BODY_FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "half-written JSON": lambda body: body[: len(body) // 2],
    "empty body": lambda _: b"",
    "page of a proxy": lambda _: b"<html><body>Bad gateway, please wait</body></html>",
    "another document": lambda _: b'{"status": "loading"}',
    "not UTF-8": lambda body: b"\xff\xfe" + body,
}
STATUS_FAULTS: dict[str, tuple[int, Callable[[], dict[str, str]]]] = {
    "408": (408, dict),
    "425": (425, dict),
    "429": (429, dict),
    "429 in seconds": (429, lambda: {"Retry-After": "1"}),
    "429 by date": (429, lambda: {"Retry-After": formatdate(time.time() + 1, usegmt=True)}),
    "500": (500, dict),
    "502": (502, dict),
    "503": (503, dict),
    "503 in seconds": (503, lambda: {"Retry-After": "1"}),
    "504": (504, dict),
    "524": (524, dict),  # a proxy's own time-out
    "529": (529, dict),  # overloaded
}
# What happens to the connection.
WIRE_FAULTS = (
    "closed",  # before a byte of the answer
    "closed at accept",  # and the next connections are closed as soon as they are made
    "refused",  # and nobody listens for a moment
    "hang",  # no answer
    "hang in the body",
    "reset in the body",
    "closed in the body",
)
DRIBBLE = "dribble"  # an answer that never ends, a byte at a time
# TEI's vectors have no indices and no base64; a score is one number.
EMBEDDING_FAULTS = (*ROWS, *BODY_FAULTS, *STATUS_FAULTS, *WIRE_FAULTS)
LIST_FAULTS = tuple(name for name in EMBEDDING_FAULTS if name not in INDEX_FAULTS)
SCORE_FAULTS = tuple(name for name in EMBEDDING_FAULTS if name not in VECTOR_FAULTS)


def failed_status(name: str) -> web.Response:
    """Return the answer of a fault that is a status."""
    status, headers = STATUS_FAULTS[name]
    return web.Response(status=status, headers=headers(), text="<html>not now</html>")


async def fail_on_wire(name: str, request: web.BaseRequest, body: bytes) -> None:
    """Do to a request's connection what the fault says; `body` is the right answer."""
    transport = request.transport
    if transport is None:
        return
    if "body" in name:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        transport.write(head.encode() + b"\r\n\r\n" + body[: len(body) // 2])  # type: ignore[attr-defined]
        # What is written has to be on its way before the connection goes.
        await asyncio.sleep(0.02)
    if name == DRIBBLE:
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n[")  # type: ignore[attr-defined]
        while not transport.is_closing():
            await asyncio.sleep(0.1)
            transport.write(b" ")  # type: ignore[attr-defined]
    if name.startswith("hang"):
        await asyncio.sleep(HANG_S)
    if name == "reset in the body":
        reset(transport)
    transport.close()


def reset(transport: asyncio.BaseTransport) -> None:
    """Have a connection end by a reset in place of an orderly end."""
    linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
