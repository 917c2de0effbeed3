"""Load a checkpoint once per process, share it, run it."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from transformers import Qwen3ForCausalLM, Qwen3Model

from ..errors import CheckpointError, NonFiniteError
from ..prompts import (
    RERANKER_PREFIX,
    RERANKER_SUFFIX,
    embedding_ids,
    format_pair,
    format_query,
    pair_ids,
)
from .background import wait
from .checkpoint import Checkpoint, read_geometry
from .loading import load_weights, resolve
from .network import Network, PackedNetwork, TransformersNetwork
from .prefixes import PrefixCache, Row, common_length
from .protocol import EncodeRequest, EncodeResult, ScoreRequest, ScoreResult
from .schedule import BULK, INTERACTIVE, Steps, Worker
from .texts import TruncationReport, check_unicode, distinct
from .tokenizer import load_tokenizer, token_id

# Padded tokens of one forward pass: few stay in the caches of a CPU, a GPU wants more work.
_BATCH_TOKENS = {"cpu": 1024}
_BATCH_TOKENS_GPU = 32768
_END = "<|endoftext|>"
_TEXTS_AT_ONCE = 64

_M = TypeVar("_M", bound="_LocalModel")
_T = TypeVar("_T")
_loaded: weakref.WeakValueDictionary[Checkpoint, Any] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def _after_fork() -> None:
    # The parent may have been loading at that moment, in a thread that the child does not have.
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _LocalModel:
    """One copy of one checkpoint's weights per device, with its tokenizer and its worker."""

    @classmethod
    def shared(cls: type[_M], checkpoint: Checkpoint) -> _M:
        """Return this process's copy of a checkpoint, loading it at the first call.

        The copy lives as long as somebody holds it.
        """
        checkpoint = resolve(checkpoint)
        with _loading:
            model: _M | None = _loaded.get(checkpoint)
            if model is None:
                model = _loaded[checkpoint] = cls(checkpoint)
        return model

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.geometry = read_geometry(checkpoint)
        self._truncation = TruncationReport(checkpoint.model)
        self._control, self._plain = load_tokenizer(checkpoint)
        devices = [str(device) for device in checkpoint.devices]  # resolved
        self._copies = [PrefixCache(self._load(device)) for device in devices]
        self._most_shared = min(copy.most_tokens for copy in self._copies)
        self._budget = min(
            _BATCH_TOKENS.get(device.partition(":")[0], _BATCH_TOKENS_GPU) for device in devices
        )
        self._worker = Worker(len(devices))

    def __deepcopy__(self: _M, memo: dict[int, Any]) -> _M:
        return self

    def _load(self, device: str) -> Network:
        """Load the weights onto a device."""
        raise NotImplementedError

    def _network(self, model: Any) -> Network:
        # Attention of transformers' own is only to be had with its own forward pass.
        rows = len(model.embed_tokens.weight)
        if self._plain.get_vocab_size() > rows:
            raise CheckpointError(
                f"The tokenizer of {self.checkpoint.model!r} has {self._plain.get_vocab_size()} tokens "
                f"and the model {rows}: they are not of the same model."
            )
        if self.checkpoint.attn_implementation is None and PackedNetwork.supports(model):
            return PackedNetwork(model)
        return TransformersNetwork(model)

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts whose control tokens are text like any other."""
        rows = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [row.ids for row in rows]

    def _max_length(self, asked: int) -> int:
        return min(asked, self.geometry.max_position_embeddings)

    def _run(self, device: int, rows: Sequence[Row]) -> torch.Tensor:
        return self._copies[device].run(rows)

    def _submit(self, steps: Steps[_T], max_batch_tokens: int | None, bulk: bool) -> Future[_T]:
        priority = BULK if bulk else INTERACTIVE
        return self._worker.submit(steps, self._run, max_batch_tokens or self._budget, priority)

    def _rows(
        self, ids: Sequence[tuple[int, ...]], prompt: tuple[int, ...], alike: bool
    ) -> list[Row]:
        """Mark how many first tokens are shared: with rows of other calls, and among these.

        Args:
            ids: Token ids of each row.
            prompt: What rows of other calls begin with as well.
            alike: Whether these rows are likely to share more than that.
        """
        # Its last token is left out: it may join with the text, in some rows and not in others.
        beginnings = {common_length([*ids, prompt])} if prompt else set()
        if alike and len(ids) > 1:
            beginnings.add(common_length(ids))
        cuts = sorted({min(cut, self._most_shared) for cut in beginnings} - {0})
        head = tuple(ids[0][: cuts[-1]]) if cuts else ()
        return [Row(row, tuple(cuts), head) for row in ids]


class LocalEncoder(_LocalModel):
    """A Qwen3-Embedding checkpoint in this process."""

    def encode(self, request: EncodeRequest) -> EncodeResult:
        """Embed and wait; see `Encoder`."""
        result = wait(self._submit(self._steps(request), request.max_batch_tokens, request.bulk))
        self._truncation.warn(result.truncated, self._max_length(request.max_length))
        return result

    async def aencode(self, request: EncodeRequest) -> EncodeResult:
        """Embed without blocking the event loop; see `Encoder`."""
        result = await asyncio.wrap_future(
            self._submit(self._steps(request), request.max_batch_tokens, request.bulk)
        )
        self._truncation.warn(result.truncated, self._max_length(request.max_length))
        return result

    def _load(self, device: str) -> Network:
        self._end_id = token_id(self._control, _END, self.checkpoint)
        return self._network(load_weights(Qwen3Model, self.checkpoint, device))

    def _steps(self, request: EncodeRequest) -> Steps[EncodeResult]:
        rows: list[list[int]] = []
        truncated: list[int] = []
        # In slices: a query need not wait for the tokens of a whole ingest.
        for start in range(0, len(request.texts), _TEXTS_AT_ONCE):
            texts = request.texts[start : start + _TEXTS_AT_ONCE]
            check_unicode(texts, "Text", start)
            ids, cut = embedding_ids(
                self._encode_plain,
                self._end_id,
                request.task,
                texts,
                self._max_length(request.max_length),
            )
            rows += ids
            truncated += cut
            yield None
        if not rows:
            return EncodeResult([], [])
        unique, places = distinct([tuple(row) for row in rows])
        prompt = (
            tuple(self._encode_plain([format_query(request.task, "")])[0]) if request.task else ()
        )
        vectors = yield self._rows(unique, prompt, alike=False)
        # Shorten first, then normalise again: a cut unit vector is no longer one.
        vectors = vectors[:, : request.dimensions]
        if request.normalize:
            vectors = F.normalize(vectors, dim=-1)
        vectors = vectors[places]
        _check_finite(vectors, "vector", self.checkpoint)
        return EncodeResult(vectors.tolist(), truncated)


class LocalScorer(_LocalModel):
    """A Qwen3-Reranker checkpoint in this process."""

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Score and wait; see `Scorer`."""
        result = wait(self._submit(self._steps(request), request.max_batch_tokens, bulk=False))
        self._truncation.warn(result.truncated, self._max_length(request.max_length))
        return result

    async def ascore(self, request: ScoreRequest) -> ScoreResult:
        """Score without blocking the event loop; see `Scorer`."""
        result = await asyncio.wrap_future(
            self._submit(self._steps(request), request.max_batch_tokens, bulk=False)
        )
        self._truncation.warn(result.truncated, self._max_length(request.max_length))
        return result

    def _load(self, device: str) -> Network:
        self._prefix, self._suffix = (
            self._control.encode(text, add_special_tokens=False).ids
            for text in (RERANKER_PREFIX, RERANKER_SUFFIX)
        )
        yes, no = (token_id(self._control, word, self.checkpoint) for word in ("yes", "no"))
        model = load_weights(Qwen3ForCausalLM, self.checkpoint, device)
        # Two rows are all that is read of the output matrix. A copy lets an untied one go.
        weight = model.lm_head.weight
        self._yes_minus_no = weight[yes].float().cpu() - weight[no].float().cpu()
        return self._network(model.model)

    def _steps(self, request: ScoreRequest) -> Steps[ScoreResult]:
        check_unicode([request.query], "Query")
        check_unicode(request.documents, "Text")
        rows, truncated = pair_ids(
            self._encode_plain,
            self._prefix,
            self._suffix,
            request.instruction,
            request.query,
            request.documents,
            self._max_length(request.max_length),
        )
        unique, places = distinct([tuple(row) for row in rows])
        head, _, _ = format_pair(request.instruction, "", "").rpartition(" \n<Document>")
        ids = self._encode_plain([head])[0]
        hidden = yield self._rows(unique, (*self._prefix, *ids), alike=True)
        # float32 throughout: in bfloat16 the scores of good documents tie.
        log_odds = (hidden @ self._yes_minus_no)[places]
        _check_finite(log_odds, "score", self.checkpoint)
        return ScoreResult(log_odds.tolist(), truncated)


def _check_finite(values: torch.Tensor, what: str, checkpoint: Checkpoint) -> None:
    if not bool(torch.isfinite(values).all()):
        bad = (~torch.isfinite(values).view(len(values), -1).all(1)).nonzero().flatten().tolist()
        raise NonFiniteError(
            f"{checkpoint.model!r} gave a {what} that is not finite for {len(bad)} of {len(values)} "
            f"texts (the first at index {bad[0]}) in {checkpoint.dtype} on {checkpoint.device}. "
            "Use dtype='bfloat16' or 'float32', and check that the weights are whole."
        )
