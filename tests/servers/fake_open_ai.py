"""What vLLM, infinity and other servers in OpenAI's shapes answer, as documented."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from reference import PREFIX, SUFFIX, TASK

from .fake_model import Answer, Input, Model, RefusedError, Rows, Settings


def _error(status: int, message: str, kind: str = "BadRequestError") -> RefusedError:
    document = {"message": message, "type": kind, "param": None, "code": status}
    return RefusedError(status, {"error": document})


def batch(value: Any) -> list[Input]:
    """Return the inputs of a request: one text or one row of ids, or several."""
    if isinstance(value, str) or (value and isinstance(value[0], int)):
        return [value]
    return list(value)


def _ids(model: Model, body: Any) -> list[list[int]]:
    settings = model.settings
    if body.get("model") != settings.name:
        raise _error(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
    items = batch(body["input"])
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


def packed(value: Any, encoding: str) -> Any:
    if encoding != "base64" or value is None or None in value:
        return value
    return base64.b64encode(np.asarray(value, dtype="<f4").tobytes()).decode()


def embeddings(model: Model, body: Any) -> Answer:
    if "dimensions" in body:
        raise _error(400, f'Model "{model.settings.name}" does not support matryoshka')
    if model.settings.role != "embedding":
        raise RefusedError(404, {"detail": "Not Found"})
    ids = _ids(model, body)
    encoding = body.get("encoding_format", "float")

    def document(rows: Rows) -> Any:
        data = [
            {"index": index, "object": "embedding", "embedding": packed(vector, encoding)}
            for index, vector in rows
        ]
        return {
            "id": "embd-1", "object": "list", "created": 1, "model": model.settings.name,
            "data": data, "usage": {"prompt_tokens": sum(map(len, ids)), "total_tokens": 0},
        }  # fmt: skip

    return Answer(document, vectors(model, ids), ids)


def vectors(model: Model, ids: list[list[int]]) -> Rows:
    return list(enumerate(model.vector(row) for row in ids))


def models(model: Model, _: Any) -> Answer:
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


def classify(model: Model, body: Any) -> Answer:
    settings = model.settings
    if settings.role != "reranker" or not settings.classifies:
        raise RefusedError(404, {"detail": "Not Found"})
    ids = _ids(model, body)

    def document(rows: Rows) -> Any:
        data = [
            {"index": i, "label": "LABEL_0", "probs": None if p is None else [p], "num_classes": 1}
            for i, p in rows
        ]
        return {"id": "classify-1", "object": "list", "created": 1, "model": body["model"],
                "data": data, "usage": {"prompt_tokens": sum(map(len, ids))}}  # fmt: skip

    return Answer(document, _scores(model, body, ids), ids)


def _scores(model: Model, body: Any, ids: list[list[int]]) -> Rows:
    """Return probabilities, or log-odds where they are asked for and known of."""
    raw = body.get("use_activation") is False and model.settings.raw_scores
    return list(enumerate(map(model.log_odds if raw else model.probability, ids)))


def _rendered(model: Model, query: str, text: str, instruction: str | None) -> list[int]:
    """Return the ids of a pair under the server's template, in which control tokens count."""
    template = model.settings.template
    if template == "none":
        return model.read(query + text)
    task = TASK if template == "ignores the task" else instruction or TASK
    suffix = SUFFIX.removesuffix("\n") if template == "lost newline" else SUFFIX
    body = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {text}"
    return model.read(PREFIX + body + suffix)


def rerank(model: Model, body: Any) -> Answer:
    """Answer as vLLM does: by its template, and an embedding server by cosines."""
    if body.get("model") != model.settings.name:
        raise _error(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
    documents = body["documents"]
    if model.settings.role == "embedding":
        ids = [model.read(text) for text in [body["query"], *documents]]
        query, *others = (np.asarray(model.vector(row)) for row in ids)
        rows: Rows = [(i, float(query @ other)) for i, other in enumerate(others)]
    else:
        task = body.get("instruction")
        ids = [_rendered(model, body["query"], text, task) for text in documents]
        rows = _scores(model, body, ids)
    _check_length(model.settings, ids)

    def document(rows: Rows) -> Any:
        kept = sorted(rows, key=lambda row: -(row[1] or 0))[: body.get("top_n") or None]
        results = [
            {"index": i, "document": {"text": documents[i % len(documents)]}, "relevance_score": s}
            for i, s in kept
        ]
        usage = {"prompt_tokens": sum(map(len, ids))}
        return {"id": "score-1", "model": body["model"], "usage": usage, "results": results}

    return Answer(document, rows, ids)


def infinity_embeddings(model: Model, body: Any) -> Answer:
    """Answer as infinity does: any model name, texts stripped and cut without a word."""
    items = batch(body["input"])
    if not all(isinstance(item, str) for item in items) or not 1 <= len(items) <= 2048:
        detail = [{"type": "string_type", "loc": ["body"], "msg": "Input should be a valid string"}]
        raise RefusedError(422, {"detail": detail})
    rows = [model.read(item.strip()) for item in items if isinstance(item, str)]
    most = model.settings.max_tokens
    ids = [row if len(row) <= most else [*row[: most - 1], row[-1]] for row in rows]
    encoding = body.get("encoding_format", "float")

    def document(rows: Rows) -> Any:
        data = [
            {"object": "embedding", "embedding": packed(vector, encoding), "index": index}
            for index, vector in rows
        ]
        return {"object": "list", "data": data, "model": body.get("model", "default"),
                "usage": {"prompt_tokens": 0, "total_tokens": 0}, "id": "x", "created": 1}  # fmt: skip

    return Answer(document, vectors(model, ids), ids)
