"""What model servers answer, written from their documented shapes: vLLM, TEI, infinity, OpenAI's."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from .fake_model import Answer, Input, Model, RefusedError, Rows, Settings, reference_of


def answer(model: Model, method: str, path: str, body: Any) -> Answer:
    """Return what a server of this kind answers.

    Raises:
        RefusedError: It answers with an error.
    """
    settings = model.settings
    if not path.startswith(settings.prefix):
        raise RefusedError(404, {"detail": "Not Found"})
    route = (method, path.removeprefix(settings.prefix))
    handle = _ROUTES[settings.kind].get(route)
    if handle is None:
        raise RefusedError(404, {"detail": "Not Found"})
    return handle(model, body)


def texts_in(body: Any) -> int:
    """Return how many texts a request brings."""
    if not isinstance(body, dict):
        return 0
    for name in ("input", "inputs", "documents", "texts", "text_2"):
        if name in body:
            found = body[name]
            single = isinstance(found, str) or (found and isinstance(found[0], int))
            return 1 if single else len(found)
    return 0


# --- vLLM and OpenAI --------------------------------------------------------------------------


def _error(status: int, message: str, kind: str = "BadRequestError") -> RefusedError:
    document = {"message": message, "type": kind, "param": None, "code": status}
    return RefusedError(status, {"error": document})


def _batch(value: Any) -> list[Input]:
    """Return the inputs of a request: one text or one row of ids, or several."""
    if isinstance(value, str) or (value and isinstance(value[0], int)):
        return [value]
    return list(value)


def _open_ai_ids(model: Model, body: Any) -> list[list[int]]:
    settings = model.settings
    if body.get("model") != settings.name:
        raise _error(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
    items = _batch(body["input"])
    if not items or any(item == [] for item in items):
        raise _error(400, "Either prompt or prompt_token_ids must not be empty")
    if not settings.takes_ids and not all(isinstance(item, str) for item in items):
        raise _error(400, "'input' must be a string or a list of strings", "invalid_request_error")
    if settings.max_texts is not None and len(items) > settings.max_texts:
        raise _error(413, f"batch size {len(items)} > {settings.max_texts}")
    rows = [model.read(item) for item in items]
    _check_length(settings, rows)
    return rows


def _check_length(settings: Settings, rows: list[list[int]]) -> None:
    longest = max(map(len, rows))
    if longest > settings.max_tokens:
        raise _error(
            400,
            f"This model's maximum context length is {settings.max_tokens} tokens. However, you "
            f"requested {longest} tokens in the input. Please reduce the length of the input.",
        )


def _packed(value: Any, encoding: str) -> Any:
    if encoding != "base64" or value is None or None in value:
        return value
    return base64.b64encode(np.asarray(value, dtype="<f4").tobytes()).decode()


def _open_ai_embeddings(model: Model, body: Any) -> Answer:
    if "dimensions" in body:
        raise _error(400, f'Model "{model.settings.name}" does not support matryoshka')
    if model.settings.role != "embedding":
        raise _error(400, "The model does not support Embeddings API")
    ids = _open_ai_ids(model, body)
    encoding = body.get("encoding_format", "float")

    def document(rows: Rows) -> Any:
        data = [
            {"index": index, "object": "embedding", "embedding": _packed(vector, encoding)}
            for index, vector in rows
        ]
        return {
            "id": "embd-1", "object": "list", "created": 1, "model": model.settings.name,
            "data": data, "usage": {"prompt_tokens": sum(map(len, ids)), "total_tokens": 0},
        }  # fmt: skip

    return Answer(document, _vectors(model, ids), ids)


def _vectors(model: Model, ids: list[list[int]]) -> Rows:
    return list(enumerate(model.vector(row) for row in ids))


def _models(model: Model, _: Any) -> Answer:
    settings = model.settings
    if not settings.lists_models:
        raise RefusedError(404, {"detail": "Not Found"})
    card: dict[str, Any] = {"id": settings.name, "object": "model", "created": 1}
    if settings.kind == "vllm":
        card |= {"owned_by": "vllm", "root": settings.directory, "parent": None}
        card |= {"max_model_len": settings.max_tokens, "permission": []}
    elif settings.kind == "infinity":
        card |= {"owned_by": "infinity", "backend": "torch", "capabilities": ["embed"]}
        card |= {"stats": {"queue_fraction": 0.0, "queue_absolute": 0, "results_pending": 0}}
    return Answer(lambda _: {"object": "list", "data": [card]})


def _classify(model: Model, body: Any) -> Answer:
    if model.settings.role != "reranker" or not model.settings.classifies:
        raise RefusedError(404, {"detail": "Not Found"})
    ids = _open_ai_ids(model, body)

    def document(rows: Rows) -> Any:
        data = [
            {"index": i, "label": "LABEL_0", "probs": None if p is None else [p], "num_classes": 1}
            for i, p in rows
        ]
        return {"id": "classify-1", "object": "list", "created": 1, "model": body["model"],
                "data": data, "usage": {"prompt_tokens": sum(map(len, ids))}}  # fmt: skip

    return Answer(document, list(enumerate(map(model.probability, ids))), ids)


def _rerank(model: Model, body: Any) -> Answer:
    """Answer as vLLM does: a server without a template joins query and document."""
    if body.get("model") != model.settings.name:
        raise _error(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
    documents = body["documents"]
    if model.settings.role == "embedding":
        ids = [model.read(text) for text in [body["query"], *documents]]
        query, *others = (np.asarray(model.vector(row)) for row in ids)
        scores = [float(query @ other) for other in others]
    else:
        reference = reference_of(model.settings.directory, "reranker")
        task = body.get("instruction")
        if model.settings.template == "none":
            ids = [model.read(body["query"] + text) for text in documents]
        else:
            instruction = (task,) if task else ()
            ids = [reference.ids(body["query"], text, *instruction) for text in documents]
        scores = [model.probability(row) for row in ids]
    _check_length(model.settings, ids)

    def document(rows: Rows) -> Any:
        kept = sorted(rows, key=lambda row: -(row[1] or 0))[: body.get("top_n") or None]
        results = [
            {"index": i, "document": {"text": documents[i % len(documents)]}, "relevance_score": s}
            for i, s in kept
        ]
        return {"id": "rerank-1", "model": body["model"], "usage": {}, "results": results}

    return Answer(document, list(enumerate(scores)), ids)


# --- infinity ---------------------------------------------------------------------------------


def _infinity_embeddings(model: Model, body: Any) -> Answer:
    """Answer as infinity does: any model name, texts stripped and cut without a word."""
    items = _batch(body["input"])
    if not all(isinstance(item, str) for item in items) or not 1 <= len(items) <= 2048:
        detail = [{"type": "string_type", "loc": ["body"], "msg": "Input should be a valid string"}]
        raise RefusedError(422, {"detail": detail})
    rows = [model.read(item.strip()) for item in items if isinstance(item, str)]
    most = model.settings.max_tokens
    ids = [row if len(row) <= most else [*row[: most - 1], row[-1]] for row in rows]
    encoding = body.get("encoding_format", "float")

    def document(rows: Rows) -> Any:
        data = [
            {"object": "embedding", "embedding": _packed(vector, encoding), "index": index}
            for index, vector in rows
        ]
        return {"object": "list", "data": data, "model": body.get("model", "default"),
                "usage": {"prompt_tokens": 0, "total_tokens": 0}, "id": "x", "created": 1}  # fmt: skip

    return Answer(document, _vectors(model, ids), ids)


# --- TEI --------------------------------------------------------------------------------------


def _tei_error(status: int, message: str) -> RefusedError:
    kinds = {400: "Empty", 413: "Validation", 422: "Tokenizer", 424: "Backend", 429: "Overloaded"}
    return RefusedError(status, {"error": message, "error_type": kinds[status]})


def _tei_info(model: Model, _: Any) -> Answer:
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


def _tei_ids(model: Model, inputs: Any, truncate: bool = False) -> list[list[int]]:
    """Return what is read of inputs; given ids are decoded to text, which is then read."""
    settings, items = model.settings, _batch(inputs)
    limit = settings.max_texts or 32
    if len(items) > limit:
        raise _tei_error(413, f"batch size {len(items)} > maximum allowed batch size {limit}")
    rows = []
    for item in items:
        text = item if isinstance(item, str) else model.tokenizer.decode(item, False)
        if not text:
            raise _tei_error(400, "`inputs` cannot be empty")
        row = model.read(text)
        if len(row) > settings.max_tokens and not truncate:
            most = f"`inputs` must have less than {settings.max_tokens} tokens. Given: {len(row)}"
            raise _tei_error(413, most)
        rows.append(row[: settings.max_tokens])
    return rows


def _tei_embed(model: Model, body: Any) -> Answer:
    if model.settings.role != "embedding":
        raise _tei_error(424, "model is not an embedding model")
    ids = _tei_ids(model, body["inputs"], body.get("truncate", False))
    return Answer(lambda rows: [vector for _, vector in rows], _vectors(model, ids), ids)


def _tei_rerank(model: Model, body: Any) -> Answer:
    if model.settings.role != "reranker":
        raise _tei_error(424, "model is not a re-ranker model")
    ids = _tei_ids(model, [body["query"] + text for text in body["texts"]])
    rows: Rows = list(enumerate(map(model.probability, ids)))

    def document(rows: Rows) -> Any:
        return [{"index": i, "score": s} for i, s in sorted(rows, key=lambda row: -(row[1] or 0))]

    return Answer(document, rows, ids)


def _tei_embeddings(model: Model, body: Any) -> Answer:
    ids = _tei_ids(model, body["input"])
    encoding = body.get("encoding_format", "float")

    def document(rows: Rows) -> Any:
        data = [
            {"object": "embedding", "embedding": _packed(vector, encoding), "index": index}
            for index, vector in rows
        ]
        return {"object": "list", "data": data, "model": model.settings.directory,
                "usage": {"prompt_tokens": 0, "total_tokens": 0}}  # fmt: skip

    return Answer(document, _vectors(model, ids), ids)


def _plain(document: Any) -> Callable[[Model, Any], Answer]:
    return lambda _model, _body: Answer(lambda _rows: document)


_ROUTES: dict[str, dict[tuple[str, str], Callable[[Model, Any], Answer]]] = {
    "vllm": {
        ("GET", "/health"): _plain(None),
        ("GET", "/version"): _plain({"version": "0.32.0"}),
        ("GET", "/v1/models"): _models,
        ("POST", "/v1/embeddings"): _open_ai_embeddings,
        ("POST", "/classify"): _classify,
        ("POST", "/rerank"): _rerank,
        ("POST", "/v1/rerank"): _rerank,
    },
    "openai": {
        ("GET", "/v1/models"): _models,
        ("POST", "/v1/embeddings"): _open_ai_embeddings,
    },
    "infinity": {
        ("GET", "/health"): _plain({"unix": 1.0}),
        ("GET", "/models"): _models,
        ("POST", "/embeddings"): _infinity_embeddings,
    },
    "tei": {
        ("GET", "/health"): _plain(None),
        ("GET", "/info"): _tei_info,
        ("POST", "/embed"): _tei_embed,
        ("POST", "/rerank"): _tei_rerank,
        ("POST", "/v1/embeddings"): _tei_embeddings,
    },
}
