"""What text-embeddings-inference (TEI) answers, as documented."""

from __future__ import annotations

from typing import Any

from .fake_model import Answer, Model, RefusedError, Rows
from .fake_open_ai import batch, packed, vectors


def _error(status: int, message: str) -> RefusedError:
    kinds = {400: "Empty", 413: "Validation", 422: "Tokenizer", 424: "Backend", 429: "Overloaded"}
    return RefusedError(status, {"error": message, "error_type": kinds[status]})


def info(model: Model, _: Any) -> Answer:
    settings = model.settings
    kind: dict[str, Any] = {"embedding": {"pooling": settings.pooling}}
    if settings.role == "reranker":
        kind = {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    info = {
        "model_id": settings.directory, "model_sha": None, "model_dtype": "float32",
        "model_type": kind, "max_concurrent_requests": 512, "max_input_length": settings.max_tokens,
        "max_batch_tokens": 16384, "max_batch_requests": None,
        "max_client_batch_size": settings.max_texts or 32, "auto_truncate": False,
        "tokenization_workers": 2, "version": "1.9.0", "sha": None, "docker_label": None,
    }  # fmt: skip
    return Answer(lambda _: info)


def _ids(model: Model, inputs: Any, truncate: bool = False) -> list[list[int]]:
    """Return what is read of inputs; given ids are decoded to text, which is then read."""
    settings, items = model.settings, batch(inputs)
    limit = settings.max_texts or 32
    if len(items) > limit:
        raise _error(413, f"batch size {len(items)} > maximum allowed batch size {limit}")
    rows = []
    for item in items:
        text = item if isinstance(item, str) else model.tokenizer.decode(item, False)
        if not text:
            raise _error(400, "`inputs` cannot be empty")
        row = model.read(text)
        if len(row) > settings.max_tokens and not truncate:
            most = f"`inputs` must have less than {settings.max_tokens} tokens. Given: {len(row)}"
            raise _error(413, most)
        rows.append(row[: settings.max_tokens])
    return rows


def embed(model: Model, body: Any) -> Answer:
    if model.settings.role != "embedding":
        raise _error(424, "model is not an embedding model")
    ids = _ids(model, body["inputs"], body.get("truncate", False))
    return Answer(lambda rows: [vector for _, vector in rows], vectors(model, ids), ids)


def rerank(model: Model, body: Any) -> Answer:
    if model.settings.role != "reranker":
        raise _error(424, "model is not a re-ranker model")
    ids = _ids(model, [body["query"] + text for text in body["texts"]])
    rows: Rows = list(enumerate(map(model.probability, ids)))

    def document(rows: Rows) -> Any:
        return [{"index": i, "score": s} for i, s in sorted(rows, key=lambda row: -(row[1] or 0))]

    return Answer(document, rows, ids)


def embeddings(model: Model, body: Any) -> Answer:
    ids = _ids(model, body["input"])
    encoding = body.get("encoding_format", "float")

    def document(rows: Rows) -> Any:
        data = [
            {"object": "embedding", "embedding": packed(vector, encoding), "index": index}
            for index, vector in rows
        ]
        return {"object": "list", "data": data, "model": model.settings.directory,
                "usage": {"prompt_tokens": 0, "total_tokens": 0}}  # fmt: skip

    return Answer(document, vectors(model, ids), ids)
