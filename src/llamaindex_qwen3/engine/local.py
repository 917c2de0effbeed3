"""Load a checkpoint once per process, share it, run it."""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
import weakref
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM, Qwen3Model

from ..errors import CheckpointError, InvalidArgumentError, NonFiniteError, TruncationWarning
from ..prompts import RERANKER_PREFIX, RERANKER_SUFFIX, embedding_ids, pair_ids
from .batching import plan_batches
from .checkpoint import Checkpoint, find_file, read_geometry
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
        checkpoint = _resolve(checkpoint)
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
        self._control, self._plain = _load_tokenizer(checkpoint)
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
        self._end_id = _token_id(self._control, _END, self.checkpoint)
        return _from_pretrained(Qwen3Model, self.checkpoint)

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
        yes, no = (_token_id(self._control, word, self.checkpoint) for word in ("yes", "no"))
        model = _from_pretrained(Qwen3ForCausalLM, self.checkpoint)
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


def _resolve(checkpoint: Checkpoint) -> Checkpoint:
    """Make equal what loads the same weights: absolute path, actual device and dtype."""
    model, revision = checkpoint.model, checkpoint.revision
    if checkpoint.is_local:
        model, revision = str(Path(model).expanduser().resolve()), None
    device = checkpoint.device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if torch.backends.mps.is_available():
            device = "mps"
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgumentError(
            f"device={device!r} is not a torch device. Use None, 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from error
    kind = parsed.type
    if kind == "cuda":
        count = torch.cuda.device_count()
        index = (
            parsed.index if parsed.index is not None or not count else torch.cuda.current_device()
        )
        if index is None or index >= count:
            raise InvalidArgumentError(
                f"device={device!r}, but torch sees {count} CUDA GPUs here. Use device='cpu' or None, "
                "a GPU that is there, or a CUDA build of torch."
            )
        device = f"cuda:{index}"
    dtype = checkpoint.dtype
    if dtype == "auto":
        half = read_geometry(replace(checkpoint, model=model)).dtype in ("bfloat16", "float16")
        dtype = "bfloat16" if half and _multiplies_bfloat16(kind) else "float32"
    return replace(checkpoint, model=model, revision=revision, device=device, dtype=dtype)


def _multiplies_bfloat16(device: str) -> bool:
    """Whether products of bfloat16 matrices are native there, so that they are faster."""
    if device == "cpu":
        can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def _load_tokenizer(checkpoint: Checkpoint) -> tuple[Tokenizer, Tokenizer]:
    """Return the checkpoint's tokenizer, and a copy that knows no control tokens.

    The copy gives the same ids for all other text, so that no input can produce a control token.
    """
    path = find_file(checkpoint, "tokenizer.json")
    if path is None:
        raise CheckpointError(
            f"{checkpoint.model!r} has no tokenizer.json. Save it with "
            "AutoTokenizer.from_pretrained(base).save_pretrained(directory)."
        )
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        # A fine-tune may have saved its own; here cutting and padding are done by the caller.
        spec["truncation"] = spec["padding"] = None
        control = Tokenizer.from_str(json.dumps(spec))
        added = [token["content"] for token in spec["added_tokens"]]
        spec["added_tokens"], spec["post_processor"] = [], None
        plain = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(
            f"Cannot read {path}: {error}. Fetch the checkpoint again."
        ) from error
    for token in added:
        if control.token_to_id(token) in plain.encode(token, add_special_tokens=False).ids:
            raise CheckpointError(
                f"The tokenizer of {checkpoint.model!r} reads {token!r} in plain text as a control "
                "token: a document could steer its own score. Use the tokenizer of the original model."
            )
    return control, plain


def _token_id(tokenizer: Tokenizer, token: str, checkpoint: Checkpoint) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.model!r} has no token {token!r}: it is not Qwen3's. "
            "Use the tokenizer of the original model."
        )
    return int(index)


def _from_pretrained(kind: Any, checkpoint: Checkpoint) -> Any:
    """Load weights on their device, refusing a checkpoint that lacks any."""
    dtype_name = "dtype" if _major_minor(transformers.__version__) >= (4, 56) else "torch_dtype"
    options: dict[str, Any] = {dtype_name: getattr(torch, checkpoint.dtype)}
    if checkpoint.attn_implementation is not None:
        options["attn_implementation"] = checkpoint.attn_implementation
    try:
        model, report = kind.from_pretrained(
            checkpoint.model,
            revision=checkpoint.revision,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each reader of weights has errors of its own
        raise CheckpointError(
            f"Cannot load the weights of {checkpoint.model!r}: {error}"
        ) from error
    # transformers fills what is missing or misshapen with random numbers and only logs it.
    if wrong := sorted(report["mismatched_keys"]):
        name, found, expected = wrong[0]
        raise CheckpointError(
            f"{checkpoint.model!r} has {len(wrong)} weights of another shape than its config.json says: "
            f"{name} is {tuple(found)} and should be {tuple(expected)}. Fetch the checkpoint again."
        )
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{checkpoint.model!r} lacks {len(missing)} of its weights ({missing[0]}, …), and random "
            "numbers would stand in for them. Fetch the checkpoint again."
        )
    return model.to(checkpoint.device).eval().requires_grad_(False)


def _major_minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _check_finite(values: torch.Tensor, what: str, checkpoint: Checkpoint) -> None:
    if not bool(torch.isfinite(values).all()):
        bad = (~torch.isfinite(values).view(len(values), -1).all(1)).nonzero().flatten().tolist()
        raise NonFiniteError(
            f"{checkpoint.model!r} gave a {what} that is not finite for {len(bad)} of {len(values)} "
            f"texts (the first at index {bad[0]}) in {checkpoint.dtype} on {checkpoint.device}. "
            "Use dtype='bfloat16' or 'float32', and check that the weights are whole."
        )
