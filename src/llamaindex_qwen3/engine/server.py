"""Embed and score on model servers, with the prompts and the results of the library."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..errors import (
    AlteredTextWarning,
    InvalidArgumentError,
    ModelNotServedError,
    ServerError,
    ServerMismatchError,
)
from ..prompts import (
    RERANKER_PREFIX,
    RERANKER_SUFFIX,
    embedding_ids,
    format_query,
    pair_ids,
)
from . import background, probe_embedding, probe_reranker
from .background import Crew
from .batching import pack
from .checkpoint import read_geometry
from .contact import identify
from .endpoint import Endpoint, NotFoundError, ServedModel, TooLargeError
from .pool import Pool
from .probe_embedding import EmbeddingProfile, vectors
from .probe_reranker import RerankerProfile, classify, log_odds
from .protocol import EncodeRequest, EncodeResult, ScoreRequest, ScoreResult
from .texts import TruncationReport, check_unicode, distinct
from .tokenizer import load_tokenizer, token_id
from .wire import Vectors, WrongAnswerError, read_reranking, reranking

# Of one request: servers make batches of their own, and several requests keep them busy.
_REQUEST_TOKENS = 4096
_TEXTS_AT_ONCE = 256
_END = "<|endoftext|>"

_M = TypeVar("_M", bound="_ServedModel")
_shared: weakref.WeakValueDictionary[ServedModel, Any] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def _after_fork() -> None:
    global _sharing
    _sharing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _ServedModel:
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
        self._pid = -1
        self._starting = threading.Lock()

    def __deepcopy__(self: _M, memo: dict[int, Any]) -> _M:
        return self

    def contact(self) -> None:
        """Contact the servers now instead of at the first call."""
        background.wait(background.run(self._servers().contact()))

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
        # Connections do not survive a fork, nor does the lock in a child of another thread's fork.
        if self._pid != os.getpid():
            with self._starting:
                if self._pid != os.getpid():
                    # The pool must not hold this object, whose end is what closes it.
                    probe = weakref.WeakMethod(self._probe)

                    async def contact(endpoint: Endpoint) -> None:
                        if (live := probe()) is not None:
                            await live(endpoint)

                    pool = Pool(self.model, contact)
                    weakref.finalize(self, _close, pool, os.getpid()).atexit = False
                    self._pool, self._pid = pool, os.getpid()
        return self._pool

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [row.ids for row in rows]

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
        send: Callable[[Endpoint, Sequence[_Row]], Awaitable[Any]],
        rows: Sequence[_Row],
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

    def _requests(self, rows: Sequence[_Row], max_tokens: int | None) -> list[list[int]]:
        """Return which rows go together."""
        most = min(e.profile.max_texts for e in self._servers().ready)
        return pack([len(row.ids) for row in rows], max_tokens or _REQUEST_TOKENS, most)


def _close(pool: Pool, pid: int) -> None:
    if pid == os.getpid():
        background.run(pool.close())


@dataclass(frozen=True)
class _Row:
    """A text with its prompt or a document, the ids of all that is read, and how many were cut."""

    text: str
    ids: list[int]
    truncated: int


class ServedEncoder(_ServedModel):
    """A Qwen3-Embedding model on a server."""

    def encode(self, request: EncodeRequest) -> EncodeResult:
        """Embed and wait; see `Encoder`."""
        return self._told(background.wait(background.run(self._encode(request))), request)

    async def aencode(self, request: EncodeRequest) -> EncodeResult:
        """Embed without blocking the event loop; see `Encoder`."""
        result = await asyncio.wrap_future(background.run(self._encode(request)))
        return self._told(result, request)

    def _told(self, result: EncodeResult, request: EncodeRequest) -> EncodeResult:
        if result.vectors:
            self._warn(result.truncated, request.max_length)
        return result

    async def _probe(self, endpoint: Endpoint) -> None:
        end = token_id(self._control, _END, self.model.checkpoint)
        identity = await identify(endpoint, self.model)
        profile = await probe_embedding.probe(
            endpoint,
            identity,
            lambda texts: [[*row, end] for row in self._encode_plain(texts)],
            self.geometry.hidden_size,
        )
        self._accept(endpoint, profile, probe_embedding.check_alike)

    async def _encode(self, request: EncodeRequest) -> EncodeResult:
        check_unicode(request.texts, "Text")
        if not request.texts:
            return EncodeResult([], [])
        await self._servers().contact()
        width = request.dimensions or self.geometry.hidden_size
        texts, places = distinct(request.texts)
        found = np.empty((len(texts), width), dtype=np.float32)
        truncated: list[int] = []

        async def fill(rows: Sequence[_Row], group: list[int], start: int) -> None:
            part = [rows[i] for i in group]
            send = partial(self._send, request=request)
            found[[start + i for i in group]] = await self._deliver(send, part, request.bulk)

        # Twice what is on the wire, so that places never wait for texts to be tokenized.
        async with Crew(2 * self._servers().bulk_at_once) as crew:
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                # In a thread: tokenizing many texts would hold up the queries of this loop.
                rows, cut = await asyncio.to_thread(
                    self._rows, texts[start : start + _TEXTS_AT_ONCE], request
                )
                truncated += cut
                for group in self._requests(rows, request.max_batch_tokens):
                    await crew.add(fill(rows, group, start))
        result = found[places].tolist()
        return EncodeResult(result, [truncated[place] for place in places])

    def _rows(self, texts: Sequence[str], request: EncodeRequest) -> tuple[list[_Row], list[int]]:
        end = token_id(self._control, _END, self.model.checkpoint)
        ids, cut = embedding_ids(
            self._encode_plain, end, request.task, texts, self._max_length(request.max_length)
        )
        whole = texts if request.task is None else [format_query(request.task, t) for t in texts]
        return [_Row(*row) for row in zip(whole, ids, cut, strict=True)], cut

    async def _send(
        self, endpoint: Endpoint, rows: Sequence[_Row], request: EncodeRequest
    ) -> Vectors:
        profile: EmbeddingProfile = endpoint.profile
        inputs: Any = [row.ids for row in rows]
        if not profile.takes_ids:
            cut = [
                self._cut_text(row.text, len(row.ids) - 1) if row.truncated else row.text
                for row in rows
            ]
            inputs = [self._plain_text(text, profile.strips) for text in cut]
        given = await vectors(
            endpoint,
            profile.kind,
            profile.model,
            profile.path,
            inputs,
            request.normalize,
            private=[row.text for row in rows],
        )
        if given.shape[1] != self.geometry.hidden_size:
            raise WrongAnswerError(f"vectors of {given.shape[1]} values")
        lengths = np.linalg.norm(given, axis=1, keepdims=True)
        if not request.normalize and np.allclose(lengths, 1, atol=1e-4):
            raise InvalidArgumentError(
                f"normalize=False: {endpoint.url} gives unit vectors only. Leave normalize out."
            )
        # Shorten first, then normalise again: a cut unit vector is no longer one.
        kept = given[:, : request.dimensions]
        if not request.normalize:
            return kept
        scaled: Vectors = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12)
        return scaled


class ServedScorer(_ServedModel):
    """A Qwen3-Reranker model on a server."""

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Score and wait; see `Scorer`."""
        return self._told(background.wait(background.run(self._score(request))), request)

    async def ascore(self, request: ScoreRequest) -> ScoreResult:
        """Score without blocking the event loop; see `Scorer`."""
        result = await asyncio.wrap_future(background.run(self._score(request)))
        return self._told(result, request)

    def _told(self, result: ScoreResult, request: ScoreRequest) -> ScoreResult:
        if result.log_odds:
            self._warn(result.truncated, request.max_length)
        return result

    async def _probe(self, endpoint: Endpoint) -> None:
        identity = await identify(endpoint, self.model)
        profile = await probe_reranker.probe(
            endpoint,
            identity,
            lambda prompts: [
                self._control.encode(prompt, add_special_tokens=False).ids for prompt in prompts
            ],
            renders=self.model.server == "openai",
        )
        self._accept(endpoint, profile, probe_reranker.check_alike)

    async def _score(self, request: ScoreRequest) -> ScoreResult:
        check_unicode([request.query], "Query")
        check_unicode(request.documents, "Text")
        if not request.documents:
            return ScoreResult([], [])
        await self._servers().contact()
        documents, places = distinct(request.documents)
        rows = await asyncio.to_thread(self._rows, documents, request)
        groups = self._requests(rows, request.max_batch_tokens)
        found = [0.0] * len(rows)

        async def fill(group: list[int]) -> None:
            part = [rows[i] for i in group]
            scores = await self._deliver(partial(self._send, request=request), part, bulk=False)
            for index, score in zip(group, scores, strict=True):
                found[index] = score

        async with Crew(len(groups)) as crew:
            for group in groups:
                await crew.add(fill(group))
        return ScoreResult(
            [found[place] for place in places], [rows[place].truncated for place in places]
        )

    def _rows(self, documents: Sequence[str], request: ScoreRequest) -> list[_Row]:
        prefix, suffix = (
            self._control.encode(text, add_special_tokens=False).ids
            for text in (RERANKER_PREFIX, RERANKER_SUFFIX)
        )
        ids, truncated = pair_ids(
            self._encode_plain, prefix, suffix, request.instruction, request.query, documents,
            self._max_length(request.max_length),
        )  # fmt: skip
        return [_Row(*row) for row in zip(documents, ids, truncated, strict=True)]

    async def _send(
        self, endpoint: Endpoint, rows: Sequence[_Row], request: ScoreRequest
    ) -> list[float]:
        profile: RerankerProfile = endpoint.profile
        private = [request.query, *(row.text for row in rows)]
        if not profile.renders:
            prompts = [row.ids for row in rows]
            return await classify(endpoint, profile.model, prompts, profile.raw, private)
        documents = [self._cut_document(row) for row in rows]
        body = reranking(
            profile.model,
            self._plain_text(request.query),
            documents,
            self._plain_text(request.instruction),
            profile.raw,
        )
        scores = read_reranking(await endpoint.post(profile.path, body, private), len(rows))
        return scores if profile.raw else [log_odds(score) for score in scores]

    def _cut_document(self, row: _Row) -> str:
        text = row.text
        if row.truncated:
            # As in the prompt: the space before it belongs to its first token.
            count = len(self._encode_plain([" " + text])[0])
            text = self._cut_text(" " + text, count - row.truncated)[1:]
        return self._plain_text(text)
