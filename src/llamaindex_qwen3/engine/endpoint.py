"""One model server: its address, its connections, and what its refusals mean."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx

from ..errors import InvalidArgumentError, ServerAccessError, ServerError
from .checkpoint import Checkpoint

_CONNECT_TIMEOUT_S = 10.0
# For a server that has not answered anything yet: a wrong address should show soon.
_FIRST_ANSWER_S = 5.0
_MESSAGE_CHARACTERS = 200
_LONGEST_RETRY_AFTER_S = 60.0
# Characters in a row that a message and a text share only if one repeats the other.
_STRETCH = 16
_AGAIN = {408, 425, 429}
_NEVER = {501, 505}


@dataclass(frozen=True)
class ServedModel:
    """Which model is asked for, and where: what one client is shared by."""

    checkpoint: Checkpoint
    urls: tuple[str, ...]
    server: str
    served_model_name: str | None
    timeout_s: float
    retry_s: float
    max_in_flight: int
    api_key: str | None = field(default=None, repr=False)


class TransientError(Exception):
    """A fault that may be gone at the next attempt.

    Attributes:
        status: HTTP status, where there was an answer.
        retry_after_s: How long the server asks to wait.
        is_outage: Whether the server was not there or not able to work, as in a restart: that can
            take long, where a wrong answer is worth a few attempts.
        is_timeout: Whether nothing came in time.
    """

    def __init__(
        self,
        fault: str,
        status: int | None = None,
        retry_after_s: float = 0.0,
        is_outage: bool = True,
        is_timeout: bool = False,
    ) -> None:
        super().__init__(fault)
        self.status = status
        self.retry_after_s = retry_after_s
        self.is_outage = is_outage
        self.is_timeout = is_timeout

    @property
    def is_absence(self) -> bool:
        """Whether another server may have come in its place since: not if it asks for patience."""
        return self.is_outage and self.status not in _AGAIN


class TooLargeError(ServerError):
    """The server wants smaller batches."""


class NotFoundError(ServerError):
    """There is nothing under this path, or no such model."""


def check_url(url: str) -> str:
    """Return the root of an address, without a trailing slash and /v1.

    Raises:
        InvalidArgumentError: It is no plain http address. A secret in it is not shown.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        plain = plain and url.isprintable() and " " not in url
    except ValueError:
        plain = False
    if "@" in url or "?" in url or "#" in url:
        raise InvalidArgumentError(
            "base_url holds credentials, a query or a fragment (@, ? or #). Give the plain address, "
            "and the key as api_key or in the environment variable QWEN3_API_KEY."
        )
    if not plain:
        raise InvalidArgumentError(
            f"base_url={url!r} is not an address. Give one such as 'http://127.0.0.1:8000'."
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def check_key(key: str | None) -> str | None:
    """Return a key without white space around it, and None for an empty one.

    Raises:
        InvalidArgumentError: It cannot stand in a header. It is not shown.
    """
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidArgumentError(
            "api_key (or QWEN3_API_KEY) holds characters that no key has, such as line breaks or "
            "accents. Check how it was copied."
        )
    return key or None


class Endpoint:
    """A server and the work it has."""

    def __init__(self, url: str, model: ServedModel) -> None:
        self.url = url
        self.in_flight = {True: 0, False: 0}  # requests, by whether they are bulk
        self.answered = False
        # Faults since it last worked; until when others are preferred, and nobody may ask.
        self.faults = 0
        self.down_until = 0.0
        self.held_until = 0.0
        # What the first contact shows; set by those who make it.
        self.profile: Any = None
        # Times that it was away, in all and when it last showed that it is the same as before.
        self.absences = self.absences_known = 0
        # When it last answered; until then nothing is known that could have changed.
        self.last_used = math.inf
        self._key = model.api_key
        self._timeout_s = model.timeout_s
        self._connect_s = min(_CONNECT_TIMEOUT_S, model.timeout_s)
        # One connection each: a shared pool looks at all of its connections for every request, which
        # costs more than the request.
        self._idle: list[httpx.AsyncClient] = []
        self._closing: set[asyncio.Future[None]] = set()
        self._tls: ssl.SSLContext | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether it was away since it last showed what it is."""
        return self.absences > self.absences_known

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await self._idle.pop().aclose()

    async def get(self, path: str) -> Any:
        """Return the JSON under a path; see `post`."""
        return await self._send("GET", path, None)

    async def post(self, path: str, body: dict[str, Any], private: Sequence[str] = ()) -> Any:
        """Send JSON and return the JSON of the answer.

        Args:
            path: Path below the address.
            body: The JSON.
            private: Texts that no error may repeat, as servers' own messages do.

        Raises:
            TransientError: A fault that may pass.
            ServerAccessError: 401 or 403.
            NotFoundError: 404 or 405.
            TooLargeError: 413.
            ServerError: Any other refusal.
        """
        return await self._send("POST", path, body, private)

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None, private: Sequence[str] = ()
    ) -> Any:
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json"} if content else {}
        client = self._idle.pop() if self._idle else self._connection()
        limit_s = self._timeout_s if self.answered else min(self._timeout_s, _FIRST_ANSWER_S)
        try:
            # httpx's own time-out begins anew with each byte.
            with anyio.fail_after(limit_s):
                answer = await client.request(
                    method, self.url + path, content=content, headers=headers
                )
        except BaseException as error:
            # Cancelled in the middle, a connection may never be given back inside httpx.
            self._drop(client)
            raise _transient(error) from None
        self._idle.append(client)
        if answer.status_code != httpx.codes.OK:
            raise self._refusal(answer, path, private)
        self.answered = True
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError):
            raise TransientError("broken JSON", answer.status_code, is_outage=False) from None

    def _drop(self, client: httpx.AsyncClient) -> None:
        closing = asyncio.ensure_future(client.aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _connection(self) -> httpx.AsyncClient:
        self._tls = self._tls or httpx.create_ssl_context()
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self._timeout_s, connect=self._connect_s),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            verify=self._tls,
            # A redirect may lead to another host, which must not get texts or the key.
            follow_redirects=False,
        )

    def _refusal(self, answer: httpx.Response, path: str, private: Sequence[str]) -> Exception:
        self.answered = True
        status = answer.status_code
        told = _message(answer)
        if (self._key and self._key in told) or _repeats(told, private):
            told = ""
        told = told[:_MESSAGE_CHARACTERS]
        place = f"{self.url}{path}"
        if status in _AGAIN or (status >= 500 and status not in _NEVER):
            # Not able to work now; 500 is more likely to be about this one request.
            return TransientError(
                f"HTTP {status}{told}", status, _retry_after(answer), is_outage=status != 500
            )
        if status in (401, 403):
            has = "refused the API key" if self._key else "wants an API key and was given none"
            return ServerAccessError(
                f"{self.url} {has} (HTTP {status}{told}). Give api_key, or set QWEN3_API_KEY.",
                self.url, status,
            )  # fmt: skip
        if 300 <= status < 400:
            try:
                # Not all of it: what follows the host may hold secrets.
                to = urlsplit(answer.headers.get("location", ""))
                target = f"{to.scheme}://{to.netloc.rpartition('@')[2]}" if to.netloc else "a path"
            except ValueError:
                target = "an address that is none"
            return ServerError(
                f"{place} redirects to {target} (HTTP {status}), which is not followed, since it would "
                "be sent the texts and the key. Give the final address as base_url.",
                self.url, status,
            )  # fmt: skip
        kind = {404: NotFoundError, 405: NotFoundError, 413: TooLargeError}.get(status, ServerError)
        return kind(f"{place} refused a request: HTTP {status}{told}.", self.url, status)


def _transient(error: BaseException) -> BaseException:
    """Return what a failed request means: a fault that may pass, or the error itself."""
    if isinstance(error, (httpx.TimeoutException, TimeoutError, asyncio.TimeoutError)):
        kind = "connecting" if isinstance(error, httpx.ConnectTimeout) else "waiting for it"
        return TransientError(f"a time-out while {kind}", is_timeout=True)
    if isinstance(error, (httpx.TransportError, httpx.DecodingError, httpx.StreamError)):
        return TransientError(f"a broken connection ({str(error) or type(error).__name__})")
    return error


def _message(answer: httpx.Response) -> str:
    """Return what a server says of its refusal."""
    try:
        said = answer.json()
    except (ValueError, RecursionError):
        return ""
    while isinstance(said, dict):
        said = said.get("error") or said.get("message") or said.get("detail")
    if isinstance(said, list):
        # FastAPI's, which repeat what was sent in other keys.
        said = "; ".join(str(item.get("msg", "")) for item in said if isinstance(item, dict))
    return f": {str(said).rstrip('. ')}" if said else ""


def _repeats(message: str, texts: Sequence[str]) -> bool:
    """Whether a message repeats a text, or a stretch of one."""
    whole = "\n".join(texts)
    stretches = (message[i : i + _STRETCH] for i in range(len(message) - _STRETCH + 1))
    return any(text in message for text in texts if len(text) > 3) or any(
        stretch in whole for stretch in stretches
    )


def _retry_after(answer: httpx.Response) -> float:
    """Return the seconds of a Retry-After header, given as seconds or as a date."""
    value = answer.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S) if math.isfinite(seconds) else 0.0
