"""Embed and score on model servers, with the prompts and the results of the library."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import InvalidArgumentError
from ..prompts import RERANKER_PREFIX, RERANKER_SUFFIX, embedding_ids, format_query, pair_ids
from . import background, probe_embedding, probe_reranker
from .background import Crew
from .client import Row, ServedClient
from .contact import identify
from .endpoint import Endpoint, ServedModel
from .probe_embedding import EmbeddingProfile, vectors
from .probe_reranker import RerankerProfile, classify, log_odds
from .protocol import EncodeRequest, EncodeResult, ScoreRequest, ScoreResult
from .texts import check_unicode, distinct
from .tokenizer import token_id
from .wire import Vectors, WrongAnswerError, read_reranking, reranking

_TEXTS_AT_ONCE = 256
_END = "<|endoftext|>"


class _Line:
    """Bulk calls in a line: each makes its requests in its turn, up to so many of all calls.

    So hundreds of calls at once, as LlamaIndex makes of one long list, tokenize no more than one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.places = asyncio.Semaphore(most)
        self.turn = asyncio.Lock()


class ServedEncoder(ServedClient):
    """A Qwen3-Embedding model on a server."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__(model)
        self._lines: dict[int, _Line] = {}

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
        # Once: a server that joins in the middle may take less.
        request = replace(request, max_length=self._max_length(request.max_length))
        texts, places = distinct(request.texts)
        found: list[list[float]] = [[]] * len(texts)
        truncated: list[int] = []

        async def fill(rows: Sequence[Row], group: list[int], start: int) -> None:
            part = [rows[i] for i in group]
            send = partial(self._send, request=request)
            for i, vector in zip(group, await self._deliver(send, part, request.bulk), strict=True):
                # At once: all of them at the end would hold up this loop's queries.
                found[start + i] = vector.tolist()

        line = self._line() if request.bulk else _Line(len(texts))
        async with Crew(line.most, line.places) as crew, line.turn:
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                rows, cut = await self._aside(
                    self._rows, texts[start : start + _TEXTS_AT_ONCE], request
                )
                truncated += cut
                for group in self._requests(rows, request.max_batch_tokens):
                    await crew.add(fill(rows, group, start))
        return EncodeResult(
            # Equal texts get lists of their own, as from the library.
            found if len(texts) == len(places) else [list(found[place]) for place in places],
            [truncated[place] for place in places],
        )

    def _line(self) -> _Line:
        # As connections, it does not survive a fork. This is called on the loop of all clients.
        pid = os.getpid()
        if pid not in self._lines:
            # Twice what is on the wire, so that places never wait for texts to be tokenized.
            self._lines[pid] = _Line(2 * self._servers().bulk_at_once)
        return self._lines[pid]

    def _rows(self, texts: Sequence[str], request: EncodeRequest) -> tuple[list[Row], list[int]]:
        end = token_id(self._control, _END, self.model.checkpoint)
        ids, cut = embedding_ids(self._encode_plain, end, request.task, texts, request.max_length)
        whole = texts if request.task is None else [format_query(request.task, t) for t in texts]
        return [Row(*row) for row in zip(whole, ids, cut, strict=True)], cut

    async def _send(
        self, endpoint: Endpoint, rows: Sequence[Row], request: EncodeRequest
    ) -> Vectors:
        profile: EmbeddingProfile = endpoint.profile
        inputs: Any = [row.ids for row in rows]
        if not profile.takes_ids:
            inputs = await self._aside(self._plain_rows, rows, profile.strips)
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

    def _plain_rows(self, rows: Sequence[Row], strips: bool) -> list[str]:
        for row in rows:
            if row.plain is None:
                text = row.text
                if row.truncated:
                    text = self._cut_text(text, len(row.ids) - 1)
                row.plain = self._plain_text(text, strips)
        return [str(row.plain) for row in rows]


class ServedScorer(ServedClient):
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
        rows = await self._aside(self._rows, documents, request)
        groups = self._requests(rows, request.max_batch_tokens)
        # Of so many documents, questions of others should not have to wait.
        bulk = len(groups) > self.model.max_in_flight
        found = [0.0] * len(rows)

        async def fill(group: list[int]) -> None:
            part = [rows[i] for i in group]
            scores = await self._deliver(partial(self._send, request=request), part, bulk)
            for index, score in zip(group, scores, strict=True):
                found[index] = score

        async with Crew(len(groups)) as crew:
            for group in groups:
                await crew.add(fill(group))
        return ScoreResult(
            [found[place] for place in places], [rows[place].truncated for place in places]
        )

    def _rows(self, documents: Sequence[str], request: ScoreRequest) -> list[Row]:
        prefix, suffix = (
            self._control.encode(text, add_special_tokens=False).ids
            for text in (RERANKER_PREFIX, RERANKER_SUFFIX)
        )
        ids, truncated = pair_ids(
            self._encode_plain, prefix, suffix, request.instruction, request.query, documents,
            self._max_length(request.max_length),
        )  # fmt: skip
        return [Row(*row) for row in zip(documents, ids, truncated, strict=True)]

    async def _send(
        self, endpoint: Endpoint, rows: Sequence[Row], request: ScoreRequest
    ) -> list[float]:
        profile: RerankerProfile = endpoint.profile
        private = [request.query, *(row.text for row in rows)]
        if not profile.renders:
            prompts = [row.ids for row in rows]
            return await classify(endpoint, profile.model, prompts, profile.raw, private)
        documents = await self._aside(self._plain_documents, rows, None)
        body = reranking(
            profile.model,
            self._plain_text(request.query),
            documents,
            self._plain_text(request.instruction),
            profile.raw,
        )
        scores = read_reranking(await endpoint.post(profile.path, body, private), len(rows))
        return scores if profile.raw else [log_odds(score) for score in scores]

    def _plain_documents(self, rows: Sequence[Row], _: None) -> list[str]:
        for row in rows:
            if row.plain is None:
                text = row.text
                if row.truncated:
                    # As in the prompt: the space before it belongs to its first token.
                    count = len(self._encode_plain([" " + text])[0])
                    text = self._cut_text(" " + text, count - row.truncated)[1:]
                row.plain = self._plain_text(text)
        return [str(row.plain) for row in rows]
