"""Embed and score on model servers, with the prompts and the results of the library."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..errors import AlteredTextWarning, InvalidArgumentError
from ..prompts import (
    RERANKER_PREFIX,
    RERANKER_SUFFIX,
    embedding_ids,
    format_query,
    pair_ids,
)
from . import background
from .batching import pack
from .checkpoint import read_geometry
from .contact import identify
from .endpoint import Endpoint, ServedModel, TooLargeError
from .pool import Pool
from .probe_embedding import EmbeddingProfile, probe_embedding, vectors
from .probe_reranker import RerankerProfile, classify, log_odds, probe_reranker
from .protocol import EncodeRequest, EncodeResult, ScoreRequest, ScoreResult
from .texts import TruncationReport, check_unicode, distinct
from .tokenizer import load_tokenizer, token_id
from .wire import Vectors, WrongAnswerError, read_reranking, reranking

# Of one request: servers make batches of their own, and several requests keep them busy.
_REQUEST_TOKENS = 4096
_TEXTS_AT_ONCE = 256
_END = "<|endoftext|>"

_M = TypeVar("_M", bound="_ServedModel")
_R = TypeVar("_R")
_V = TypeVar("_V")
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

    def _plain_text(self, text: str, room: int, strips: bool) -> str:
        """Return a text as a server can take it that takes no ids.

        Its end is cut to `room` tokens, and control tokens in it are broken up by a space.
        """
        sent = text
        encoding = self._plain.encode(sent, add_special_tokens=False)
        while len(encoding.ids) > room:
            # Between two tokens of one character, the cut falls before it.
            end = encoding.offsets[room][0]
            sent = sent[: end if end < len(sent) else -1]
            encoding = self._plain.encode(sent, add_special_tokens=False)
        whole = sent
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

    async def _spread(
        self,
        send: Callable[[Endpoint, Sequence[_R]], Any],
        rows: Sequence[_R],
        lengths: Sequence[int],
        request: EncodeRequest | ScoreRequest,
        bulk: bool,
    ) -> Iterable[tuple[list[int], Any]]:
        """Send rows in requests of many, several at once; return indices and answers of each."""
        servers = self._servers()
        most = min(e.profile.max_texts for e in servers.ready)
        groups = pack(lengths, request.max_batch_tokens or _REQUEST_TOKENS, most)

        async def one(group: list[int]) -> list[tuple[list[int], Any]]:
            size = f"{len(group)} texts of {sum(lengths[i] for i in group)} tokens"
            part = [rows[i] for i in group]
            try:
                answer = await servers.call(lambda e: send(e, part), bulk=bulk, size=size)
            except TooLargeError:
                if len(group) == 1:
                    raise
                half = len(group) // 2
                return [*await one(group[:half]), *await one(group[half:])]
            return [(group, answer)]

        tasks = [asyncio.ensure_future(one(group)) for group in groups]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            # One failed, or the call was cancelled: nothing more is sent.
            for task in tasks:
                task.cancel()
        return [pair for answer in answers for pair in answer]


def _close(pool: Pool, pid: int) -> None:
    if pid == os.getpid():
        background.run(pool.close())


@dataclass(frozen=True)
class _Text:
    """A text with its prompt, and its ids as the model reads them."""

    text: str
    ids: list[int]


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
        endpoint.profile = await probe_embedding(
            endpoint,
            identity,
            lambda texts: [[*row, end] for row in self._encode_plain(texts)],
            self.geometry.hidden_size,
        )

    async def _encode(self, request: EncodeRequest) -> EncodeResult:
        check_unicode(request.texts, "Text")
        if not request.texts:
            return EncodeResult([], [])
        await self._servers().contact()
        width = request.dimensions or self.geometry.hidden_size
        texts, places = distinct(request.texts)
        found = np.empty((len(texts), width), dtype=np.float32)
        truncated: list[int] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = texts[start : start + _TEXTS_AT_ONCE]
            # In a thread: tokenizing many texts would hold up the queries of this loop.
            rows, cut = await asyncio.to_thread(self._rows, part, request)
            truncated += cut
            answers = await self._spread(
                partial(self._send, request=request),
                rows,
                [len(row.ids) for row in rows],
                request,
                request.bulk,
            )
            for group, answer in answers:
                found[[start + i for i in group]] = answer
        result = found[places].tolist()
        return EncodeResult(result, [truncated[place] for place in places])

    def _rows(self, texts: Sequence[str], request: EncodeRequest) -> tuple[list[_Text], list[int]]:
        end = token_id(self._control, _END, self.model.checkpoint)
        ids, cut = embedding_ids(
            self._encode_plain, end, request.task, texts, self._max_length(request.max_length)
        )
        whole = texts if request.task is None else [format_query(request.task, t) for t in texts]
        return [_Text(text, row) for text, row in zip(whole, ids, strict=True)], cut

    async def _send(
        self, endpoint: Endpoint, rows: Sequence[_Text], request: EncodeRequest
    ) -> Vectors:
        profile: EmbeddingProfile = endpoint.profile
        inputs: Any = [row.ids for row in rows]
        if not profile.takes_ids:
            inputs = [self._plain_text(row.text, len(row.ids) - 1, profile.strips) for row in rows]
        given = await vectors(
            endpoint, profile.kind, profile.model, profile.path, inputs, request.normalize
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


@dataclass(frozen=True)
class _Document:
    """A document, and the ids of the whole prompt it stands in."""

    text: str
    ids: list[int]
    truncated: int


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
        endpoint.profile = await probe_reranker(
            endpoint,
            identity,
            lambda prompts: [
                self._control.encode(prompt, add_special_tokens=False).ids for prompt in prompts
            ],
            renders=self.model.server == "openai",
        )

    async def _score(self, request: ScoreRequest) -> ScoreResult:
        check_unicode([request.query], "Query")
        check_unicode(request.documents, "Text")
        if not request.documents:
            return ScoreResult([], [])
        await self._servers().contact()
        documents, places = distinct(request.documents)
        rows = await asyncio.to_thread(self._rows, documents, request)
        found = [0.0] * len(rows)
        answers = await self._spread(
            partial(self._send, request=request),
            rows,
            [len(row.ids) for row in rows],
            request,
            bulk=False,
        )
        for group, answer in answers:
            for index, score in zip(group, answer, strict=True):
                found[index] = score
        return ScoreResult(
            [found[place] for place in places], [rows[place].truncated for place in places]
        )

    def _rows(self, documents: Sequence[str], request: ScoreRequest) -> list[_Document]:
        prefix, suffix = (
            self._control.encode(text, add_special_tokens=False).ids
            for text in (RERANKER_PREFIX, RERANKER_SUFFIX)
        )
        ids, truncated = pair_ids(
            self._encode_plain, prefix, suffix, request.instruction, request.query, documents,
            self._max_length(request.max_length),
        )  # fmt: skip
        return [_Document(*row) for row in zip(documents, ids, truncated, strict=True)]

    async def _send(
        self, endpoint: Endpoint, rows: Sequence[_Document], request: ScoreRequest
    ) -> list[float]:
        profile: RerankerProfile = endpoint.profile
        if not profile.renders:
            return await classify(endpoint, profile.model, [row.ids for row in rows], profile.raw)
        documents = [self._cut_document(row) for row in rows]
        body = reranking(
            profile.model,
            self._plain_text(request.query, len(request.query), strips=False),
            documents,
            self._plain_text(request.instruction, len(request.instruction), strips=False),
            profile.raw,
        )
        scores = read_reranking(await endpoint.post(profile.path, body), len(rows))
        return scores if profile.raw else [log_odds(score) for score in scores]

    def _cut_document(self, row: _Document) -> str:
        count = len(self._encode_plain([" " + row.text])[0])
        return self._plain_text(" " + row.text, count - row.truncated, strips=False)[1:]
