"""What both clients of model servers share: tokenizer, connections, requests, texts sent as text."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import AlteredTextWarning, ModelNotServedError, ServerError, ServerMismatchError
from . import background
from .batching import pack
from .checkpoint import read_geometry
from .endpoint import Endpoint, NotFoundError, ServedModel, TooLargeError
from .pool import Pool
from .texts import TruncationReport
from .tokenizer import load_tokenizer

# Of one request: servers make batches of their own, and several requests keep them busy.
_REQUEST_TOKENS = 4096
# Tokenized in about a millisecond.
_CHARACTERS_AT_ONCE = 2000

A = TypeVar("A")
T = TypeVar("T")
_M = TypeVar("_M", bound="ServedClient")
_shared: weakref.WeakValueDictionary[ServedModel, Any] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def _after_fork() -> None:
    global _sharing
    _sharing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass
class Row:
    """A text with its prompt or a document, the ids of all that is read, and how many were cut."""

    text: str
    ids: list[int]
    truncated: int
    # As a server takes it that takes no ids.
    plain: str | None = None


S = TypeVar("S", str, Row)


class ServedClient:
    """One model on one server or several, with the tokenizer that its prompts are made by."""

    @classmethod
    def shared(cls: type[_M], model: ServedModel) -> _M:
        """Return this process's client of a served model; it lives as long as somebody holds it."""
        with _sharing:
            client: _M | None = _shared.get(model)
            if client is None:
                client = _shared[model] = cls(model)
        return client

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.geometry = read_geometry(model.checkpoint)
        self._control, self._plain = load_tokenizer(model.checkpoint)
        self._truncation = TruncationReport(model.checkpoint.model)
        self._altered = self._altered_reported = False
        self._pools: dict[int, Pool] = {}

    def __deepcopy__(self: _M, memo: dict[int, Any]) -> _M:
        return self

    def contact(self) -> None:
        """Contact the servers now instead of at the first call."""
        background.wait(background.run(self._servers().contact(everyone=True)))

    async def _probe(self, endpoint: Endpoint) -> None:
        """Make the first contact with a server."""
        raise NotImplementedError

    def _accept(
        self, endpoint: Endpoint, profile: Any, check: Callable[[Endpoint, Endpoint], None]
    ) -> None:
        """Let a server work beside those there are, if it gives what they give."""
        others = self._servers().ready
        endpoint.profile = profile
        try:
            for other in others[:1]:
                check(other, endpoint)
        except ServerMismatchError:
            endpoint.profile = None
            raise

    def _servers(self) -> Pool:
        # Connections do not survive a fork. No lock: this is called on the loop of all clients.
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            # The pool must not hold this object, whose end is what closes it.
            probe = weakref.WeakMethod(self._probe)

            async def contact(endpoint: Endpoint) -> None:
                if (live := probe()) is not None:
                    await live(endpoint)

            made = Pool(self.model, contact)
            pool = self._pools.setdefault(pid, made)
            if pool is made:
                weakref.finalize(self, background.start, pool.close).atexit = False
        return pool

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [row.ids for row in rows]

    @staticmethod
    async def _aside(work: Callable[[Sequence[S], A], T], texts: Sequence[S], to: A) -> T:
        """Tokenize in a thread, unless it is so little that a query of this loop can wait for it."""
        lengths = (len(text.text if isinstance(text, Row) else text) for text in texts)
        if sum(lengths) < _CHARACTERS_AT_ONCE:
            return work(texts, to)
        return await asyncio.to_thread(work, texts, to)

    def _max_length(self, asked: int) -> int:
        """Return the most tokens of one text that model and servers allow."""
        served = [e.profile.max_tokens for e in self._servers().ready if e.profile.max_tokens]
        most: int = min(asked, self.geometry.max_position_embeddings, *served)
        return most

    def _cut_text(self, text: str, room: int) -> str:
        """Cut the end of a text so that at most `room` tokens stay."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        while len(encoding.ids) > room:
            # Between two tokens of one character, the cut falls before it.
            end = encoding.offsets[room][0]
            text = text[: end if end < len(text) else -1]
            encoding = self._plain.encode(text, add_special_tokens=False)
        return text

    def _plain_text(self, text: str, strips: bool = False) -> str:
        """Return a text as a server can take it that takes no ids: with control tokens broken up."""
        sent = whole = text
        for token in self._control.get_added_tokens_decoder().values():
            if token.content in sent:
                sent = sent.replace(token.content, token.content[0] + " " + token.content[1:])
        self._altered |= sent != whole or (strips and sent != sent.strip())
        return sent

    def _warn(self, truncated: Sequence[int], max_length: int) -> None:
        """Warn, in the caller's thread and once per model, of texts that were not taken whole."""
        self._truncation.warn(truncated, self._max_length(max_length))
        if self._altered and not self._altered_reported:
            self._altered_reported = True
            warnings.warn(
                f"A server of {self.model.checkpoint.model!r} takes texts only, not token ids: control "
                "tokens in them are broken up by a space, and white space at their ends may be lost. "
                "Vectors and scores of such texts differ from the library's; with vLLM they do not.",
                AlteredTextWarning,
                stacklevel=4,
            )

    async def _deliver(
        self,
        send: Callable[[Endpoint, Sequence[Row]], Awaitable[Any]],
        rows: Sequence[Row],
        bulk: bool,
    ) -> list[Any]:
        """Send rows in one request, or in several if they are too large for one."""
        count = "one text" if len(rows) == 1 else f"{len(rows)} texts"
        size = f"{count} of {sum(len(row.ids) for row in rows)} tokens"
        try:
            answer = await self._servers().call(lambda e: send(e, rows), bulk=bulk, size=size)
        except NotFoundError as error:
            # It was there at the first contact.
            raise ModelNotServedError(
                f"{error} Check which model {error.url} serves now.", error.url, error.status
            ) from None
        except TooLargeError as error:
            if len(rows) == 1:
                raise ServerError(
                    f"{error} Lower max_length, or raise the server's limit.",
                    error.url,
                    error.status,
                ) from None
            half: int = len(rows) // 2
            return [
                *await self._deliver(send, rows[:half], bulk),
                *await self._deliver(send, rows[half:], bulk),
            ]
        return list(answer)

    def _requests(self, rows: Sequence[Row], max_tokens: int | None) -> list[list[int]]:
        """Return which rows go together."""
        most = min(e.profile.max_texts for e in self._servers().ready)
        return pack([len(row.ids) for row in rows], max_tokens or _REQUEST_TOKENS, most)
