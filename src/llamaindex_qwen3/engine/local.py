"""Load a checkpoint once per process, share it, run it."""

from __future__ import annotations

import asyncio
import threading
import warnings
import weakref
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from transformers import Qwen3ForCausalLM, Qwen3Model

from ..errors import InvalidArgumentError, NonFiniteError, TruncationWarning
from ..prompts import RERANKER_PREFIX, RERANKER_SUFFIX, embedding_ids, pair_ids
from .batching import plan_batches
from .checkpoint import Checkpoint, read_geometry
from .loading import load_tokenizer, load_weights, resolve, token_id
from .protocol import EncodeRequest, EncodeResult, ScoreRequest, ScoreResult
from .schedule import BULK, INTERACTIVE, Steps, Worker

# Padded tokens of one forward pass: small batches stay in the caches of a CPU, a GPU wants work.
_BATCH_TOKENS = {"cpu": 4096}
_BATCH_TOKENS_GPU = 32768
_END = "<|endoftext|>"
_TEXTS_AT_ONCE = 64

_M = TypeVar("_M", bound="_LocalModel")
_loaded: weakref.WeakValueDictionary[Checkpoint, Any] = weakref.WeakValueDictionary()
_loading = threading.Lock()


class _LocalModel:
    """One copy of one checkpoint's weights with its tokenizer and its worker."""

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
        self._worker = Worker()
        self._truncation_reported = False
        self._control, self._plain = load_tokenizer(checkpoint)
        self._model = self._load_weights()

    def __deepcopy__(self: _M, memo: dict[int, Any]) -> _M:
        return self

    def _load_weights(self) -> Any:
        raise NotImplementedError

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts whose control tokens are text like any other."""
        rows = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [row.ids for row in rows]

    def _max_length(self, asked: int) -> int:
        return min(asked, self.geometry.max_position_embeddings)

    @torch.inference_mode()
    def _last_hidden(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Run one batch and return each row's last hidden state, float32 [rows, hidden].

        Rows are padded on the right and no mask is given: under causal attention no real token
        ever sees what stands after it.
        """
        last = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.zeros(len(rows), int(last.max()) + 1, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        device = self._model.device
        hidden = self._model(input_ids=ids.to(device), use_cache=False).last_hidden_state
        last_hidden: torch.Tensor = hidden[torch.arange(len(rows)), last.to(device)]
        return last_hidden.float()

    def _run_batches(
        self, rows: Sequence[list[int]], max_batch_tokens: int | None
    ) -> Generator[None, None, torch.Tensor]:
        """Return the last hidden states of all rows, float32 [rows, hidden], in their order."""
        budget = max_batch_tokens or _BATCH_TOKENS.get(self._model.device.type, _BATCH_TOKENS_GPU)
        out = torch.empty(len(rows), self.geometry.hidden_size)
        for index in plan_batches([len(row) for row in rows], budget):
            yield
            out[index] = self._last_hidden([rows[i] for i in index]).cpu()
        return out

    def _report(self, truncated: Sequence[int], max_length: int) -> None:
        """Warn, once per model, that texts were cut."""
        cut = sum(count > 0 for count in truncated)
        if cut and not self._truncation_reported:
            self._truncation_reported = True
            warnings.warn(
                f"{cut} of {len(truncated)} texts are longer than max_length="
                f"{self._max_length(max_length)} tokens and were cut at their end (by up to "
                f"{max(truncated)} tokens). Split them smaller or raise max_length. "
                f"{self.checkpoint.model!r} warns of this once.",
                TruncationWarning,
                stacklevel=3,
            )


class LocalEncoder(_LocalModel):
    """A Qwen3-Embedding checkpoint in this process."""

    def encode(self, request: EncodeRequest) -> EncodeResult:
        """Embed and wait; see `Encoder`."""
        result = _wait(self._worker, self._steps(request), request.bulk)
        self._report(result.truncated, request.max_length)
        return result

    async def aencode(self, request: EncodeRequest) -> EncodeResult:
        """Embed without blocking the event loop; see `Encoder`."""
        priority = BULK if request.bulk else INTERACTIVE
        result = await asyncio.wrap_future(self._worker.submit(self._steps(request), priority))
        self._report(result.truncated, request.max_length)
        return result

    def _load_weights(self) -> Any:
        self._end_id = token_id(self._control, _END, self.checkpoint)
        return load_weights(Qwen3Model, self.checkpoint)

    def _steps(self, request: EncodeRequest) -> Steps[EncodeResult]:
        rows: list[list[int]] = []
        truncated: list[int] = []
        # In slices: a query need not wait for the tokens of a whole ingest.
        for start in range(0, len(request.texts), _TEXTS_AT_ONCE):
            texts = request.texts[start : start + _TEXTS_AT_ONCE]
            _check_unicode(texts, "Text", start)
            ids, cut = embedding_ids(
                self._encode_plain,
                self._end_id,
                request.task,
                texts,
                self._max_length(request.max_length),
            )
            rows += ids
            truncated += cut
            yield
        distinct, places = _distinct(rows)
        vectors = yield from self._run_batches(distinct, request.max_batch_tokens)
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
        result = _wait(self._worker, self._steps(request), bulk=False)
        self._report(result.truncated, request.max_length)
        return result

    async def ascore(self, request: ScoreRequest) -> ScoreResult:
        """Score without blocking the event loop; see `Scorer`."""
        result = await asyncio.wrap_future(self._worker.submit(self._steps(request)))
        self._report(result.truncated, request.max_length)
        return result

    def _load_weights(self) -> Any:
        self._prefix, self._suffix = (
            self._control.encode(text, add_special_tokens=False).ids
            for text in (RERANKER_PREFIX, RERANKER_SUFFIX)
        )
        yes, no = (token_id(self._control, word, self.checkpoint) for word in ("yes", "no"))
        model = load_weights(Qwen3ForCausalLM, self.checkpoint)
        # Two rows are all that is read of the output matrix. A copy lets an untied one go.
        weight = model.lm_head.weight
        self._yes_minus_no = weight[yes].float().cpu() - weight[no].float().cpu()
        return model.model

    def _steps(self, request: ScoreRequest) -> Steps[ScoreResult]:
        _check_unicode([request.query], "Query")
        _check_unicode(request.documents, "Text")
        rows, truncated = pair_ids(
            self._encode_plain,
            self._prefix,
            self._suffix,
            request.instruction,
            request.query,
            request.documents,
            self._max_length(request.max_length),
        )
        distinct, places = _distinct(rows)
        hidden = yield from self._run_batches(distinct, request.max_batch_tokens)
        # float32 throughout: in bfloat16 the scores of good documents tie.
        log_odds = (hidden @ self._yes_minus_no)[places]
        _check_finite(log_odds, "score", self.checkpoint)
        return ScoreResult(log_odds.tolist(), truncated)


_T = TypeVar("_T")


def _distinct(rows: Sequence[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Return the rows without repetition, and the place of each given row among them.

    Equal texts run once: it saves work, and their results are equal to the last bit.
    """
    places: dict[tuple[int, ...], int] = {}
    index = [places.setdefault(tuple(row), len(places)) for row in rows]
    return [list(row) for row in places], index


def _check_unicode(texts: Sequence[str], what: str, start: int = 0) -> None:
    # The tokenizer itself would fail on these with a TypeError that names nothing.
    for index, text in enumerate(texts, start):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"{what} {index} is not valid Unicode: it has a lone surrogate {text[error.start]!r} "
                f"at character {error.start}. Repair it before, for instance with "
                "text.encode('utf-8', 'replace').decode()."
            ) from None


def _wait(worker: Worker, steps: Steps[_T], bulk: bool) -> _T:
    future = worker.submit(steps, BULK if bulk else INTERACTIVE)
    try:
        return future.result()
    except BaseException:
        # Ctrl-C stops the job before its next pass.
        future.cancel()
        raise


def _check_finite(values: torch.Tensor, what: str, checkpoint: Checkpoint) -> None:
    if not bool(torch.isfinite(values).all()):
        bad = (~torch.isfinite(values).view(len(values), -1).all(1)).nonzero().flatten().tolist()
        raise NonFiniteError(
            f"{checkpoint.model!r} gave a {what} that is not finite for {len(bad)} of {len(values)} "
            f"texts (the first at index {bad[0]}) in {checkpoint.dtype} on {checkpoint.device}. "
            "Use dtype='bfloat16' or 'float32', and check that the weights are whole."
        )
